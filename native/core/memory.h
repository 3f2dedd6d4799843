// Memory that is looked at from outside: which parts of it exist, whether a page is zero, arenas of page slots.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/error.h"

namespace pagetide {

struct Extent {
  uint64_t offset;
  uint64_t length;
};

// Extents of a file that hold data, by SEEK_DATA/SEEK_HOLE, within [offset, offset + length). Moves the file position,
// which nothing here relies on. Never touches a page, so never creates one.
Result<std::vector<Extent>> DataExtents(int fd, uint64_t offset, uint64_t length);

// Extents of [address, address + size) in process `pid` that are in memory or swapped out, by /proc/pid/pagemap.
// Offsets are relative to `address`.
Result<std::vector<Extent>> PresentExtents(int pid, uint64_t address, uint64_t size);

bool IsZero(const uint8_t* data, size_t length);

// Page slots in a file of our own, allocated in full: a mapping of it can be read without fear of SIGBUS.
class Arena {
 public:
  // Creates the file with mode 0600, or takes one that has exactly this size.
  static Result<std::shared_ptr<Arena>> Open(const std::string& path, uint64_t slot_size, uint64_t slots);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  uint8_t* data() { return data_; }
  uint64_t slots() const { return slots_; }
  uint64_t slot_size() const { return slot_size_; }
  size_t size() const { return size_; }

 private:
  Arena() = default;
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
  uint64_t slots_ = 0, slot_size_ = 0;
};

}  // namespace pagetide
