// The command line of pagetide-guest.
#pragma once

#include <cstdint>
#include <string>

namespace guest {

struct Options {
  uint64_t memory_size = 0;  // bytes
  std::string memory_file;   // empty with --private
  bool is_private = false;
  bool existing_memory = false;  // the memory file is there already, with its content
  uint64_t page_size = 4096;     // bytes
  uint32_t regions = 1;
  std::string control;  // Unix socket

  // the workload
  double write_rate = 1000;  // pages per second, over all threads
  double read_rate = 1000;
  double working_set = 0.25;  // fraction of the frames
  double zero_fraction = 0.3;
  uint32_t threads = 1;
  std::string fill_from = "/usr/lib";
  uint64_t seed = 1;

  // the destination
  bool incoming = false;
  bool userfaultfd = true;     // make one, where incoming
  std::string handover;        // Unix socket of a pager; empty: the userfaultfd waits to be taken
  bool register_self = false;  // register the memory with the userfaultfd, as Firecracker does
};

// Returns false with one line in `error`. `help` is set where the user asked for it.
bool ParseOptions(int argc, char** argv, Options* options, bool* help, std::string* error);

extern const char* const kUsage;

}  // namespace guest
