// Where a guest's memory lies, checked before a session is made over it.
#pragma once

#include <cstdint>
#include <vector>

#include "core/error.h"

namespace pagetide {

struct Region {
  uint64_t host;    // address in the guest's process
  uint64_t size;    // bytes
  uint64_t offset;  // bytes in guest memory space
};

// A file of guest memory.
struct TargetFile {
  int fd;           // open for reading and writing
  uint64_t size;    // bytes
  uint64_t offset;  // bytes in guest memory space
};

// Checks a userfaultfd and the memory that it is to be registered for: a negotiated descriptor, the page size,
// alignment, overlap, cover without gaps from offset 0. Changes nothing. Returns the regions by offset.
Result<std::vector<Region>> CheckLayout(int uffd, std::vector<Region> regions, uint64_t page_size);

// The same for files: regular ones, open for writing, that have their size. Returns them by offset.
Result<std::vector<TargetFile>> CheckFiles(std::vector<TargetFile> files, uint64_t page_size);

}  // namespace pagetide
