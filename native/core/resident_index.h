// The resident index: pages of the guests that run on this host, by tag. A source of pages that costs no memory but the
// index: a page is copied out of the guest's memory file when it is asked for.
//
//   Add(file, frames, domain, key) ── Set(first, count, tags), as tags become known and whenever they change ── Remove
//
//   Copy(domain, tag) ── a frame that is listed under the tag ── enter its file ── pread into the caller's own page
//                         ▲    none: miss                                                   │
//                         ╰──── another one, three at most ◄─── not the page ◄─── compared with the tag ──► leave, hit
//
// Nothing holds a guest still: it may write, drop or lose the page at any moment, and what is listed may be old. So the
// one thing that everything rests on is this order: the page is *copied* to where the caller alone writes, the *copy*
// is compared with the tag under the domain's secret, and the copy is what is installed. Then:
//
//  * The guest writes during the pread: the copy is of neither moment, and does not have the tag (a miss), unless what
//    was copied happens to be the page that was asked for, which is then what it is installed as.
//  * The guest writes after the pread: it has its page, the copy stays what it is. Pages are equal by content, not by
//    where they came from.
//  * A hole: read with pread it gives zeros and makes no page (a mapping would make one, which a guest on userfaultfd
//    then never faults on). Zeros never have a tag other than the zero page's, which nobody asks for here. So a guest
//    that is itself arriving would do no harm with frames that have not come yet; listing them is useless all the same:
//    list what is known to be present.
//  * The file was truncated: pread comes up short, which is a miss; nothing is padded. There is no mapping, hence no
//    SIGBUS.
//  * The entry is replaced, or its slot becomes another guest's, between finding and reading: the frame that is read is
//    another one of a guest that is entered (below), and has another tag: a miss. Domains: the file's own domain must
//    be the one that was asked for and the comparison is made with that file's key, so that even a tag that the guests
//    of two domains share by chance gives nothing away.
//  * The guest is removed: `Remove` makes the file's word not live, then waits until those who had entered have left,
//    and only then closes the descriptor, lets go of the key and gives its slots away. Whoever enters does so by
//    compare-and-swap on a live word, and looks only then whose the slot is. So a reader never holds a descriptor that
//    is closed, or is another file by now; and what it looks at belongs to the file that it has entered until it
//    leaves.
//
// Comparing: beside a frame lies the hash that its page had when it was digested (page_hash.h), from whoever listed it,
// or from the first copy that was found right. A copy with that hash is the page; any other copy is digested, and only
// the digest says that a page is wrong. What lies there may be old, or half of a change: see page_hash.h for why a hash
// that is not the one does no harm.
//
// A page that turns out to be another one is dropped from the index, by a lock that is tried but not waited for, after
// the file has been left: Remove waits for readers while it holds that lock. Should the guest have put the page back
// meanwhile, the entry is missed until the frame is set again: a miss, no more.
//
// Threads: Copy from any thread at once, without waiting and without allocating; all else takes one mutex. Set takes it
// for 512 frames at a time.
//
// Memory: see resident_tags.h, and 8 bytes a frame for its hash: 32 at most; all tables are address space until they
// are used.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "core/error.h"
#include "core/resident_tags.h"
#include "core/tags.h"

namespace pagetide {

struct ResidentStats {
  uint64_t files, frames, listed, different, hits, misses, stale, index_bytes;
};

class ResidentIndex {
 public:
  static constexpr uint32_t kMaxFiles = 1u << 15;

  // Room for `frames` frames of all guests together, rounded up to kSlotsAtOnce of them; 1 to 2^30. Reserves addresses.
  static Result<std::shared_ptr<ResidentIndex>> Open(uint64_t frames);
  ~ResidentIndex();
  ResidentIndex(const ResidentIndex&) = delete;
  ResidentIndex& operator=(const ResidentIndex&) = delete;

  // Frame n of the file is at byte 4096 n. Keeps a duplicate of `fd`, which must be open for reading. Nothing is listed
  // yet. ENOSPC where the frames have no room. Returns a number that is never used again.
  Result<uint32_t> Add(int fd, uint64_t frames, uint32_t domain, std::shared_ptr<DomainKey> key);
  // Lists `count` frames from `first` under these tags (16 bytes each), instead of what they were listed under. The
  // zero tag: not listed. Nothing to do for a file that was removed meanwhile, with its domain.
  // `hashes`: 8 bytes a frame, from TagFile together with these tags, kNoPageHash where there is none; or null.
  Error Set(uint32_t file, uint64_t first, uint64_t count, const uint8_t* tags, const uint8_t* hashes = nullptr);
  // Waits for readers, each in one pread and one digest at most; closes the descriptor. Idempotent.
  void Remove(uint32_t file);
  // Every file of the domain; returns how many.
  uint64_t RemoveDomain(uint32_t domain);
  void Clear();

  // Any thread. True: `page` (4096 bytes, which nobody else writes) holds the page with that tag. False: it holds
  // anything.
  bool Copy(uint32_t domain, const Tag& tag, uint8_t* page);
  void Prefetch(const Tag& tag) const { tags_.Prefetch(tag); }
  // Any thread. Whether it seems to be listed; counts nothing, looks at no page, and is no promise.
  bool Has(const Tag& tag) const { return tags_.First(tag) != kNoSlot; }

  ResidentStats Stats();

 private:
  static constexpr uint32_t kLive = 1u << 31;
  enum class Found { Right, Wrong, Elsewhere };
  struct File {
    uint32_t word;  // kLive, and the number of threads inside
    int fd;
    uint32_t domain;
    uint32_t frames;
    const DomainKey* key;
  };
  // kSlotsAtOnce slots.
  struct Part {
    uint32_t file;   // + 1; 0: free
    uint32_t first;  // frame
  };
  // What the mutex guards of a file.
  struct Held {
    uint32_t at;  // in files_
    std::shared_ptr<DomainKey> key;
    std::vector<uint32_t> parts;
  };
  struct alignas(64) Counter {
    std::atomic<uint64_t> count{0};
    void Add() { count.fetch_add(1, std::memory_order_relaxed); }
    uint64_t Get() const { return count.load(std::memory_order_relaxed); }
  };

  ResidentIndex() = default;
  std::atomic_ref<uint64_t> HashOf(uint32_t slot) { return std::atomic_ref<uint64_t>(hashes_[slot]); }
  // Whether the page is that of the tag. `slot` belongs to a file that the caller has entered, and whose key this is.
  bool IsRight(uint32_t slot, const DomainKey& key, const uint8_t* page, const Tag& tag);
  Found CopyFrame(uint32_t slot, uint32_t domain, const Tag& tag, uint8_t* page);
  void DropStale(const uint32_t* slots, int count, const Tag& tag);
  void RemoveHeld(const Held& held);

  ResidentTags tags_;
  Table<uint64_t> hashes_;  // of a slot, where one is known
  Table<File> files_;
  Table<Part> parts_;
  std::mutex mutex_;
  std::map<uint32_t, Held> held_;  // by number
  uint32_t last_ = 0;
  std::vector<uint32_t> free_files_, free_parts_;  // used again, last first
  uint32_t fresh_file_ = 0, fresh_part_ = 0;       // never used from here on
  uint64_t frames_ = 0;
  Counter hits_, misses_, stale_;
};

}  // namespace pagetide
