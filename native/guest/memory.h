// Guest RAM: one or several mappings with gaps between them, seen as one row of 4 KiB units.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "guest/hash.h"
#include "guest/options.h"

namespace guest {

struct Region {
  uint8_t* address;
  uint64_t size;    // bytes
  uint64_t offset;  // bytes into guest memory
};

// "what: strerror(errno)".
std::string SystemError(const std::string& what);

class Memory {
 public:
  // Maps; touches nothing. A memory file is made new (refused where it exists) unless `existing_memory`.
  bool Open(const Options& options, std::string* error);
  // Removes the memory file again, if `Open` made it: for a start that failed.
  void Discard();

  // Address of a unit. Units of one region are contiguous, those of different regions are not.
  uint8_t* Unit(uint64_t unit) const {
    const uint64_t region = unit / units_per_region_;
    return regions_[region].address + (unit - region * units_per_region_) * kUnit;
  }

  // Gives frames up like a balloon. `frame` and `count` are in pages of `page_size`.
  enum class Remove { kDontNeed, kRemove, kPunch };
  bool Give(uint64_t frame, uint64_t count, Remove how, std::string* error);

  uint64_t units() const { return size_ / kUnit; }
  uint64_t frames() const { return size_ / page_size_; }
  uint64_t size() const { return size_; }
  uint64_t page_size() const { return page_size_; }
  bool is_private() const { return fd_ < 0; }
  const std::vector<Region>& regions() const { return regions_; }
  const std::string& path() const { return path_; }

 private:
  std::vector<Region> regions_;
  uint64_t units_per_region_ = 0;
  uint64_t size_ = 0;
  uint64_t page_size_ = 0;
  int fd_ = -1;
  std::string path_;
  bool made_ = false;
};

}  // namespace guest
