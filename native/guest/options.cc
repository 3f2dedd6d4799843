#include "guest/options.h"

#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "guest/hash.h"

namespace guest {

const char* const kUsage =
    R"(Usage: pagetide-guest --memory-size SIZE (--memory-file PATH | --private) --control SOCKET [options]

A program that behaves like a small virtual machine: it has memory, device state, a workload and a control socket,
and can verify every page of itself at any time.

  --memory-size SIZE        bytes, or with K, M or G
  --memory-file PATH        memory is this shared file, made new (on tmpfs)
  --existing-memory         the memory file is there already, with its content (with --incoming)
  --private                 memory is private and anonymous
  --page-size 4096|2M       2M is MAP_HUGETLB, with --private only
  --regions N               split memory into N mappings with gaps between (1)
  --control SOCKET          Unix socket for control, mode 0600
  --write-rate N            pages written a second (1000)
  --read-rate N             pages read and checked a second (1000)
  --working-set FRACTION    part of memory that the workload keeps to (0.25)
  --zero-fraction FRACTION  part of memory that is never touched at first (0.3)
  --threads N               workload threads (1)
  --fill-from DIR           real content: the files below DIR, in sorted order (/usr/lib)
  --seed N                  (1)
  --incoming                wait for a state; make a userfaultfd, touch no memory
  --no-userfaultfd          with --incoming: make none, as the memory is whole before the state comes
  --handover SOCKET         send the userfaultfd to the pager that listens there
  --register, --no-register register memory with the userfaultfd (--private) or leave it to the pager (--memory-file)

Example: pagetide-guest --memory-size 64M --memory-file /dev/shm/g1 --control /tmp/g1.sock
)";

namespace {

bool ParseSize(const char* text, uint64_t* bytes) {
  if (*text < '0' || *text > '9') return false;
  char* end = nullptr;
  errno = 0;
  const uint64_t value = strtoull(text, &end, 10);
  uint64_t unit = 1;
  if (*end == 'K') unit = 1ull << 10;
  if (*end == 'M') unit = 1ull << 20;
  if (*end == 'G') unit = 1ull << 30;
  if (unit != 1) end++;
  if (errno != 0 || *end != '\0' || value > UINT64_MAX / unit) return false;
  *bytes = value * unit;
  return true;
}

bool ParseNumber(const char* text, double low, double high, double* value) {
  char* end = nullptr;
  *value = strtod(text, &end);
  return end != text && *end == '\0' && std::isfinite(*value) && *value >= low && *value <= high;
}

bool ParseCount(const char* text, uint64_t low, uint64_t high, uint64_t* value) {
  if (*text < '0' || *text > '9') return false;
  char* end = nullptr;
  errno = 0;
  *value = strtoull(text, &end, 10);
  return errno == 0 && *end == '\0' && *value >= low && *value <= high;
}

// Checks what options mean together.
bool Check(const Options& o, std::string* error) {
  const struct {
    bool wrong;
    const char* text;
  } rules[] = {
      {o.memory_size == 0, "--memory-size is missing"},
      {o.control.empty(), "--control is missing"},
      {o.memory_file.empty() != o.is_private, "give either --memory-file or --private"},
      {o.page_size != kUnit && !o.is_private, "--page-size 2M needs --private"},
      {!o.handover.empty() && !o.incoming, "--handover needs --incoming"},
      {!o.userfaultfd && (!o.incoming || o.is_private || o.register_self || !o.handover.empty()),
       "--no-userfaultfd needs --incoming and --memory-file, and goes with neither --handover nor --register"},
      {o.existing_memory && (!o.incoming || o.is_private), "--existing-memory needs --incoming and --memory-file"},
      {o.register_self && !o.incoming, "--register needs --incoming"},
      {o.memory_size < (1u << 20) || o.memory_size > (1ull << 42), "--memory-size must be from 1M to 4096G"},
      {o.memory_size % o.page_size != 0, "--memory-size is not a multiple of --page-size"},
      {o.regions > o.memory_size / o.page_size, "--regions is more than there are pages"},
  };
  for (const auto& rule : rules) {
    if (!rule.wrong) continue;
    *error = rule.text;
    return false;
  }
  return true;
}

}  // namespace

bool ParseOptions(int argc, char** argv, Options* options, bool* help, std::string* error) {
  *help = false;
  int registers = -1;  // unset, no, yes
  for (int i = 1; i < argc; i++) {
    const std::string name = argv[i];
    if (name == "--help" || name == "-h") return *help = true;
    if (name == "--private" || name == "--incoming" || name == "--existing-memory" || name == "--register" ||
        name == "--no-register" || name == "--no-userfaultfd") {
      if (name == "--private") options->is_private = true;
      if (name == "--incoming") options->incoming = true;
      if (name == "--existing-memory") options->existing_memory = true;
      if (name == "--register") registers = 1;
      if (name == "--no-register") registers = 0;
      if (name == "--no-userfaultfd") options->userfaultfd = false;
      continue;
    }
    if (i + 1 >= argc) {
      *error = name + " is unknown or lacks its value";
      return false;
    }
    const char* value = argv[++i];
    uint64_t count = 0;
    bool good = true;
    if (name == "--memory-size") {
      good = ParseSize(value, &options->memory_size);
    } else if (name == "--memory-file") {
      options->memory_file = value;
    } else if (name == "--page-size") {
      good = ParseSize(value, &options->page_size) && (options->page_size == kUnit || options->page_size == 2u << 20);
    } else if (name == "--regions") {
      good = ParseCount(value, 1, 64, &count);
      options->regions = static_cast<uint32_t>(count);
    } else if (name == "--control") {
      options->control = value;
    } else if (name == "--write-rate") {
      good = ParseNumber(value, 0, 1e9, &options->write_rate);
    } else if (name == "--read-rate") {
      good = ParseNumber(value, 0, 1e9, &options->read_rate);
    } else if (name == "--working-set") {
      good = ParseNumber(value, 0, 1, &options->working_set);
    } else if (name == "--zero-fraction") {
      good = ParseNumber(value, 0, 1, &options->zero_fraction);
    } else if (name == "--threads") {
      good = ParseCount(value, 1, 64, &count);
      options->threads = static_cast<uint32_t>(count);
    } else if (name == "--fill-from") {
      options->fill_from = value;
    } else if (name == "--seed") {
      good = ParseCount(value, 0, UINT64_MAX, &options->seed);
    } else if (name == "--handover") {
      options->handover = value;
    } else {
      *error = "unknown option " + name;
      return false;
    }
    if (!good) {
      *error = name + ": bad value '" + value + "'";
      return false;
    }
  }
  options->register_self = registers == -1 ? options->incoming && options->is_private : registers == 1;
  return Check(*options, error);
}

}  // namespace guest
