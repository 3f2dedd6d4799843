#include "guest/state.h"

#include <cmath>
#include <cstring>
#include <type_traits>

namespace guest {

namespace {

constexpr char kMagic[8] = {'P', 'T', 'G', 'S', 'T', 'A', 'T', 'E'};
constexpr size_t kFailuresMax = 1024;

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t reserved;
  uint64_t payload;
};

struct Fixed {
  uint64_t memory_size;
  uint64_t groups;
  uint32_t threads;
  uint32_t failures;
  uint64_t failure_count;
  uint64_t seed;
  double write_rate;
  double read_rate;
  double working_set;
  double zero_fraction;
};

static_assert(sizeof(Header) == 24 && sizeof(Fixed) == 72);
static_assert(sizeof(ThreadRegisters) == 56 && sizeof(Failure) == 40, "no padding may travel");
static_assert(std::is_trivially_copyable_v<ThreadRegisters> && std::is_trivially_copyable_v<Failure>);

// The bytes hashed: all before the checksum, padded with zeros to whole words.
uint64_t Checksum(const uint8_t* data, size_t bytes) {
  std::vector<uint8_t> padded(data, data + bytes);
  padded.resize((bytes + 7) / 8 * 8);
  return HashWords(padded.data(), padded.size()) ^ bytes;
}

void Append(std::vector<uint8_t>* out, const void* data, size_t bytes) {
  const auto* at = static_cast<const uint8_t*>(data);
  out->insert(out->end(), at, at + bytes);
}

uint64_t PayloadSize(const Fixed& fixed) {
  return sizeof(Fixed) + fixed.threads * sizeof(ThreadRegisters) + fixed.groups * sizeof(uint64_t) +
         fixed.failures * sizeof(Failure);
}

bool IsFraction(double value) {
  return std::isfinite(value) && value >= 0 && value <= 1;
}
bool IsRate(double value) {
  return std::isfinite(value) && value >= 0 && value <= 1e9;
}

}  // namespace

std::vector<uint8_t> EncodeState(const Registers& r, const StateShape& shape) {
  Fixed fixed = {};
  fixed.memory_size = shape.memory_size;
  fixed.groups = shape.groups;
  fixed.threads = shape.threads;
  fixed.failures = static_cast<uint32_t>(r.failures.size());
  fixed.failure_count = r.failure_count;
  fixed.seed = r.seed;
  fixed.write_rate = r.write_rate;
  fixed.read_rate = r.read_rate;
  fixed.working_set = r.working_set;
  fixed.zero_fraction = r.zero_fraction;
  Header header = {};
  memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kStateVersion;
  header.payload = PayloadSize(fixed);

  std::vector<uint8_t> out;
  out.reserve(sizeof header + header.payload + sizeof(uint64_t));
  Append(&out, &header, sizeof header);
  Append(&out, &fixed, sizeof fixed);
  Append(&out, r.threads.data(), r.threads.size() * sizeof(ThreadRegisters));
  Append(&out, r.sums.data(), r.sums.size() * sizeof(uint64_t));
  Append(&out, r.failures.data(), r.failures.size() * sizeof(Failure));
  const uint64_t checksum = Checksum(out.data(), out.size());
  Append(&out, &checksum, sizeof checksum);
  return out;
}

bool DecodeState(const std::vector<uint8_t>& bytes, const StateShape& shape, Registers* registers, std::string* error) {
  Header header = {};
  if (bytes.size() < sizeof header + sizeof(Fixed) + sizeof(uint64_t)) {
    *error = "state: too short";
    return false;
  }
  memcpy(&header, bytes.data(), sizeof header);
  if (memcmp(header.magic, kMagic, sizeof kMagic) != 0) {
    *error = "state: not a state of an embedded guest";
    return false;
  }
  if (header.version != kStateVersion || header.reserved != 0) {
    *error = "state: version " + std::to_string(header.version) + ", this guest knows " + std::to_string(kStateVersion);
    return false;
  }
  if (header.payload != bytes.size() - sizeof header - sizeof(uint64_t)) {
    *error = "state: wrong length";
    return false;
  }
  uint64_t checksum = 0;
  memcpy(&checksum, bytes.data() + bytes.size() - sizeof checksum, sizeof checksum);
  if (checksum != Checksum(bytes.data(), bytes.size() - sizeof checksum)) {
    *error = "state: damaged (wrong checksum)";
    return false;
  }

  Fixed fixed = {};
  const uint8_t* at = bytes.data() + sizeof header;
  memcpy(&fixed, at, sizeof fixed);
  at += sizeof fixed;
  if (fixed.memory_size != shape.memory_size || fixed.groups != shape.groups) {
    *error = "state: of a guest with " + std::to_string(fixed.memory_size) + " bytes of memory, this one has " +
             std::to_string(shape.memory_size);
    return false;
  }
  if (fixed.threads != shape.threads) {
    *error = "state: of a guest with " + std::to_string(fixed.threads) + " threads, this one has " +
             std::to_string(shape.threads);
    return false;
  }
  if (fixed.failures > kFailuresMax || PayloadSize(fixed) != header.payload || !IsRate(fixed.write_rate) ||
      !IsRate(fixed.read_rate) || !IsFraction(fixed.working_set) || !IsFraction(fixed.zero_fraction)) {
    *error = "state: impossible values";
    return false;
  }

  Registers r;
  r.seed = fixed.seed;
  r.write_rate = fixed.write_rate;
  r.read_rate = fixed.read_rate;
  r.working_set = fixed.working_set;
  r.zero_fraction = fixed.zero_fraction;
  r.failure_count = fixed.failure_count;
  const auto take = [&at](auto* values, size_t count) {
    using Value = typename std::remove_reference_t<decltype(*values)>::value_type;
    values->resize(count);
    if (count > 0) memcpy(static_cast<void*>(values->data()), at, count * sizeof(Value));
    at += count * sizeof(Value);
  };
  take(&r.threads, fixed.threads);
  take(&r.sums, fixed.groups);
  take(&r.failures, fixed.failures);
  *registers = std::move(r);
  return true;
}

}  // namespace guest
