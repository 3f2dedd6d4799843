// The file of the shared-page cache: a header, a table of slot headers, the pages.
//
//   0        4096                        4096 + T                                    T: 32 bytes a slot,
//   ┌────────┬──────┬──────┬─────┬───────┬─────────┬─────────┬─────┬─────────┐       rounded up to 4096
//   │ header │ slot │ slot │  …  │       │ page    │ page    │  …  │ page    │
//   │        │ 0    │ 1    │     │ (pad) │ 0       │ 1       │     │ n - 1   │
//   └────────┴──────┴──────┴─────┴───────┴─────────┴─────────┴─────┴─────────┘
//   header: magic, version, page size, slots, check (little-endian)
//   slot:   tag (16), domain (4), state (1), value (1), zero (2), check (8)
//
// How it is touched, and why no way of it can raise SIGBUS or make a page of zeros:
//  * All of its space is allocated before it is mapped, so that no store fails for lack of it.
//  * Somebody may cut the file off while it is mapped. The mapping is therefore never read or written by instructions
//    of ours: pages reach guests by UFFDIO_COPY and are stored by process_vm_writev on this very process, and both
//    answer EFAULT where a store would be a signal. (Only the page in which the file then ends is still readable, with
//    zeros behind the end: the length is looked at before a fault is answered from the mapping.) Neither can make the
//    file longer again: pwrite would, and would leave holes before itself that read as zero pages. What is read for
//    checking is read with pread: short there.
//  * Whoever may open the file for writing may also overwrite it in place, at the same length. That is the agent's
//    user only (mode 0600), who could write to the guests just as well; nothing is done about it while the file is in
//    use. What was done to it while no agent had it is found by the check of each page at its first use.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "core/error.h"

namespace pagetide {

inline constexpr uint64_t kCachePage = 4096;
inline constexpr uint32_t kCacheVersion = 1;
inline constexpr uint64_t kMaxCacheSlots = 1ull << 31;  // 8 TiB

enum class StoredState : uint8_t { Free = 0, Writing = 1, Used = 2 };

// A slot header as it lies in the file.
struct StoredSlot {
  uint8_t tag[16];
  uint32_t domain;
  StoredState state;
  uint8_t value;
  uint16_t zero;
  uint64_t check;  // over all above and the slot's number; 0 where the slot was never used

  void Seal(uint64_t slot);
  bool IsSealed(uint64_t slot) const;
  bool IsUntouched() const;
};
static_assert(sizeof(StoredSlot) == 32);

class CacheFile {
 public:
  // Opens or creates `path` with mode 0600, locks it against every other opener, and maps it. A file that is there must
  // be of this version, page size and number of slots, and whole; with `replace` one of another shape (but a cache
  // file: the magic says so) is emptied and made anew. A file whose making was cut short is made anew as well.
  // Errors: CacheInUse, CacheFile, Argument, a Syscall (ENOSPC: nothing is left behind).
  static Result<std::unique_ptr<CacheFile>> Open(const std::string& path, uint64_t slots, bool replace);
  ~CacheFile();
  CacheFile(const CacheFile&) = delete;
  CacheFile& operator=(const CacheFile&) = delete;

  // Bytes of a file with that many slots; 0 where there is no such file.
  static uint64_t BytesOf(uint64_t slots);
  // How many slots fit into `bytes`; 0 where not even one does.
  static uint64_t SlotsIn(uint64_t bytes);

  uint64_t slots() const { return slots_; }
  bool fresh() const { return fresh_; }
  // Where the page lies in this process: for UFFDIO_COPY only.
  const uint8_t* PageAddress(uint64_t slot) const { return base_ + pages_at_ + slot * kCachePage; }

  // Calls `each` for every slot header, in order; reads no page.
  Error ReadHeaders(const std::function<void(uint64_t, const StoredSlot&)>& each) const;
  // The whole page into `into` (4096 bytes), or false.
  bool ReadPage(uint64_t slot, uint8_t* into) const;
  // In this order: the header as `Writing`, the page, the header as `Used`. A process that is killed in between leaves
  // `Writing`, or a header without it that is whole. False where the file was cut off.
  bool WriteSlot(uint64_t slot, StoredSlot header, const uint8_t* page);
  // Overwrites the page with zeros, then the header. False where the file was cut off.
  bool EraseSlot(uint64_t slot);
  // Whether the file still has its length.
  bool IsWhole() const;

 private:
  CacheFile() = default;
  Error Create(const std::string& path);
  Error Check(const std::string& path, uint64_t length, bool* unfinished, bool* ours) const;
  Error Map(const std::string& path);
  bool Store(const void* const* from, const uint64_t* at, const uint64_t* length, int pieces);

  int fd_ = -1;
  uint8_t* base_ = nullptr;
  uint64_t slots_ = 0, pages_at_ = 0, length_ = 0;
  bool fresh_ = false;
};

}  // namespace pagetide
