// An array of fixed length outside the heap, zero when made: what is known of each slot of the shared-page cache.
// Memory that is lacking is an error here, not the end of the process.
#pragma once

#include <sys/mman.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>

#include "core/error.h"

namespace pagetide {

// T: trivial, and right when all its bytes are zero.
template <typename T>
class Table {
 public:
  Table() = default;
  ~Table() {
    if (items_ != nullptr) munmap(items_, bytes());
  }
  Table(const Table&) = delete;
  Table& operator=(const Table&) = delete;

  // `length` ≥ 1. Once.
  Error Make(size_t length) {
    void* memory = mmap(nullptr, length * sizeof(T), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return SyscallError("mmap", errno, 0, length * sizeof(T), "index of the cache");
    items_ = static_cast<T*>(memory);
    length_ = length;
    return {};
  }
  T& operator[](size_t at) { return items_[at]; }
  const T& operator[](size_t at) const { return items_[at]; }
  size_t length() const { return length_; }
  size_t bytes() const { return length_ * sizeof(T); }

 private:
  T* items_ = nullptr;
  size_t length_ = 0;
};

}  // namespace pagetide
