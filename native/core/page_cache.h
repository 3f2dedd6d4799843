// The shared-page cache: pages by tag in the slots of one mapped file.
//
//   cache_file.h    the file: its layout, its lock, and why touching it never ends the process
//   cache_index.h   tag → slot, readers without a lock, and why a slot is never reused under a reader
//   cache_policy.h  which page goes when another needs its slot
//
// The life of a slot, in memory and in the file:
//
//               reserve                    page and header are written, publish
//   free ────────────────────► reserved ────────────────────────────────────────► live ──► held (in no queue)
//    ▲  header: zeros           header: Writing, then Used           header: Used  │ ◄──── by running migrations
//    │                               ▲                                             │
//    │                               ╰──────── evict: nobody reads it ─────────────┤
//    ╰──────── erase: page and header overwritten with zeros ◄── retire ───────────╯
//                (domain removed, wrong page found, another thread was faster)
//
// Threads: Enter, Leave, Read, Has and Lose from any thread at once, without a lock. All else takes one mutex; the
// writing of a page happens outside of it, into a slot that only its writer knows. Holding the mutex, Retire waits for
// readers; a reader never takes the mutex while it is inside a slot, so neither waits for the other for ever.
//
// A wrong page is never served: one that comes in is copied and compared with its tag before it enters, and one that an
// earlier run left is compared at its first use; a header only says where to look. So the order in which the kernel
// writes the file back does not matter, and nothing is ever synced: after a crash of the host some slots are dropped.
//
// Memory: 46 bytes a slot (index 28, policy 12, domain 4, holds 2), and 8 a page held by a migration.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/cache_file.h"
#include "core/cache_index.h"
#include "core/cache_policy.h"
#include "core/error.h"

namespace pagetide {

enum class Verdict {
  Right,
  Wrong,
  Unknown,  // the domain's key is not here (yet)
};

// Compares a page (4096 bytes) with its tag (16 bytes) under the key of `domain`. Called by any thread, and by several
// at once; must not block nor call the cache.
struct PageVerify {
  Verdict (*verify)(void* context, uint32_t domain, const uint8_t* page, const uint8_t* tag) = nullptr;
  void* context = nullptr;
};

// What an insertion came to. Keep equal to `Insertion` in src/memory/native.ts.
enum class Insertion : int {
  Inserted = 0,
  Present = 1,     // it was there already
  Rejected = 2,    // the page does not have that tag, or the tag is that of the zero page, which is never cached
  Unverified = 3,  // the domain's key is not known
  Full = 4,        // every slot is held by a running migration, or just being read; or pages are being removed
  Lost = 5,        // the file was cut off: the cache is of no use any more
};

struct CacheStats {
  uint64_t slots, used, pinned, hits, misses, insertions, evictions, rejected, dropped, refused, index_bytes;
  bool lost;
};

class PageCache {
 public:
  struct Options {
    std::string path;
    uint64_t slots = 0;    // 1 to 2^31; see CacheFile::SlotsIn
    bool replace = false;  // make a cache file of another shape anew
    PageVerify verify;
  };
  struct Hit {
    uint32_t slot;
    const uint8_t* page;  // for UFFDIO_COPY only
  };

  // See CacheFile::Open for the errors. Reads the slot headers, no page.
  static Result<std::shared_ptr<PageCache>> Open(const Options& options);
  PageCache(const PageCache&) = delete;
  PageCache& operator=(const PageCache&) = delete;

  // True: `hit` is the slot with that tag, and it stays what it is until Leave. Counts a hit or a miss. Where the slot
  // comes from an earlier run, its page is compared with the tag first (once).
  bool Enter(const Tag& tag, Hit* hit);
  void Leave(const Hit& hit) { index_.Leave(hit.slot); }
  // Bring what Enter looks at nearer: the second one some time after the first.
  void Prefetch(const Tag& tag) const { index_.Prefetch(tag); }
  void PrefetchSlot(const Tag& tag) const {
    uint32_t slot = index_.PrefetchSlot(tag);
    if (slot != kNoSlot) policy_.Prefetch(slot);
  }
  // Copies the page (4096 bytes) out, with pread; counts like Enter.
  bool Read(const Tag& tag, uint8_t* into);
  // Whether it seems to be there; counts nothing, and is no promise.
  bool Has(const Tag& tag) { return !lost_.load(std::memory_order_relaxed) && index_.Has(tag); }
  // Loses the cache where its file no longer has its length. For whoever copies pages from the mapping: beyond the
  // file's end that is EFAULT, but the page in which it ends reads as zeros from there on, without any error.
  void CheckWhole() {
    if (!file_->IsWhole()) Lose();
  }
  // The file was cut off: every lookup misses from now on, and nothing is inserted.
  void Lose() { lost_.store(true, std::memory_order_relaxed); }

  // `page`: 4096 bytes, which may change meanwhile; it is the copy that is verified and stored. `value`: 0 to 15, see
  // cache_policy.h; of a page that is there already it replaces a smaller one.
  Insertion Insert(const Tag& tag, uint32_t domain, const uint8_t* page, uint8_t value);
  // Returns whether the page is there.
  bool SetValue(const Tag& tag, uint8_t value);

  // Keeps those of the `count` pages that are there from being evicted until Unpin(set); returns how many that are,
  // each counted once a call. Removing their domain or finding them wrong takes them away all the same. Volatile.
  uint64_t Pin(uint64_t set, const uint8_t* tags, uint64_t count);
  // Returns how many were still held.
  uint64_t Unpin(uint64_t set);

  // Erases every page of the domain; returns how many. Forget its key first: an insertion that was verified before this
  // call is refused where it would be published after it, and one that begins later finds no key.
  uint64_t RemoveDomain(uint32_t domain);
  uint64_t Clear();

  CacheStats Stats();
  uint64_t slots() const { return file_->slots(); }

 private:
  struct Held {
    uint32_t slot, generation;
    auto operator<=>(const Held&) const = default;
  };
  struct alignas(64) Counter {
    std::atomic<uint64_t> count{0};
    void Add(uint64_t n = 1) { count.fetch_add(n, std::memory_order_relaxed); }
    uint64_t Get() const { return count.load(std::memory_order_relaxed); }
  };

  PageCache() = default;
  Error Load();
  // Inside `index_` as a reader; leaves where it gives false.
  bool FirstUse(uint32_t slot, const Tag& tag);
  void Drop(uint32_t slot, const Tag& tag);
  // With the mutex.
  uint32_t Reserve();
  void PushFree(uint32_t slot);
  void Free(uint32_t slot);
  template <typename Keep>
  uint64_t FreeAll(Keep keep);

  std::unique_ptr<CacheFile> file_;
  CacheIndex index_;
  EvictionPolicy policy_;
  PageVerify verify_;
  std::mutex mutex_;
  Table<uint32_t> domains_;  // of a live slot; of a free one the next free one + 1
  Table<uint16_t> holds_;    // by how many calls of Pin
  std::map<uint64_t, std::vector<Held>> sets_;
  uint32_t free_ = 0;  // first free slot + 1
  uint64_t used_ = 0, pinned_ = 0;
  std::atomic<uint64_t> removals_{0};  // written with the mutex
  std::atomic<bool> lost_{false};
  Counter hits_, misses_, insertions_, evictions_, rejected_, dropped_, refused_;
};

}  // namespace pagetide
