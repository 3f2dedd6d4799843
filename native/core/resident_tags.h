// Which frames of the guests that run here have which tag: any number of threads look up without a lock and without
// allocating, while one at a time lists, relists and drops frames.
//
// A frame has a slot, for as long as its guest is registered; a slot has an entry of 20 bytes:
//
//    heads              entries: one for each different tag in the chain, those alike behind it
//   ┌──────┐   next    ┌─────────┐   next    ┌─────────┐
//   │ 0    │ ────────► │ slot 17 │ ────────► │ slot 4  │
//   │ 1    │           └────┬────┘           └─────────┘
//   │ …    │           same ▼
//   │ n-1  │           ┌─────────┐  same     ┌─────────┐
//   └──────┘           │ slot 99 │ ────────► │ slot 23 │       `prev` leads back, in whichever list an entry is
//                      └─────────┘           └─────────┘
//
// Frames alike hang off the chain instead of in it: a guest in which every page is alike makes one link, not a chain of
// a million that hides whatever lies behind it. All lists are linked both ways, so that dropping an entry takes a time
// that does not depend on how many are alike.
//
// Heads: linear hashing (Litwin, VLDB 1980). There are as many buckets as different tags, or a few more; one bucket is
// split, or joined to the one it was split from, by the change that makes it due. So there is no moment at which all
// of it is rebuilt, heads take 4 bytes a different tag (and 4 KiB in all), and they are given back when guests go.
//
// What a lookup gives is a hint, never a promise, for three reasons: an entry holds 8 bytes of the tag; the entry may
// be another's a moment later; and the guest may have written the page since. Whoever follows the hint compares the
// page that is found there with the tag. So these lists need not be right for a reader at any moment: it loads links
// with acquire (what is behind them was written before), takes a bounded number of steps (a list that changes under a
// reader may lead it into another one, or in a circle), and looks again where `Changes` has moved.
//
// Memory: 20 bytes a slot and 4 a different tag: 24 a frame at most, 0.6% of the guests' memory. Slots that were never
// listed, or were dropped with their guest, take none (by pages of 4 KiB).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "core/cache_index.h"
#include "core/cache_table.h"

namespace pagetide {

class ResidentTags {
 public:
  static constexpr uint32_t kMaxSlots = 1u << 30;

  // `slots`: 1 to kMaxSlots. Reserves addresses; memory is taken as slots are listed.
  Error Make(uint32_t slots);

  // Any thread.
  // The first slot that seems to have the tag, or kNoSlot.
  uint32_t First(const Tag& tag) const;
  // The next one after `slot`, which came from First or Next with the same tag; or kNoSlot.
  uint32_t Next(uint32_t slot) const { return Load(entries_[slot].same) - 1; }
  // Whether the entry has that tag just now.
  bool Holds(uint32_t slot, const Tag& tag) const;
  // Moves with every change, odd while one is under way.
  uint64_t Changes() const { return changes_.load(std::memory_order_acquire); }
  // Brings what First looks at first nearer.
  void Prefetch(const Tag& tag) const { __builtin_prefetch(&heads_[Bucket(Low(tag))]); }

  // The rest: one thread at a time.
  // Lists the slot under this tag, instead of the one that it has. A tag whose first 8 bytes are zero is not listed:
  // the zero page's, and one in 2^64.
  void Set(uint32_t slot, const Tag& tag);
  void Drop(uint32_t slot);
  bool IsListed(uint32_t slot) const { return (entries_[slot].low | entries_[slot].high) != 0; }
  // Gives back the memory of `count` slots of which none is listed; both multiples of kSlotsAtOnce.
  void Discard(uint32_t first, uint32_t count);
  // The smallest number of entries that fills whole pages of memory.
  static constexpr uint32_t kSlotsAtOnce = 1024;

  uint64_t listed() const { return listed_; }
  uint64_t different() const { return different_; }
  size_t head_bytes() const { return buckets_.load(std::memory_order_relaxed) * sizeof(uint32_t); }
  static constexpr size_t kEntryBytes = 20;

 private:
  // Links are slot + 1, 0: none.
  struct Entry {
    uint32_t low, high;  // of the tag; both 0: not listed
    uint32_t next;       // in the chain: the next tag
    uint32_t same;       // the next with the same tag
    uint32_t prev;       // in the chain with kLeader, else among those alike
  };
  static_assert(sizeof(Entry) == kEntryBytes);
  static constexpr uint32_t kLeader = 1u << 31;
  static constexpr uint32_t kMinBuckets = 1024;

  static uint32_t Low(const Tag& tag) { return static_cast<uint32_t>(tag.low); }
  static uint32_t High(const Tag& tag) { return static_cast<uint32_t>(tag.low >> 32); }
  static uint32_t Load(const uint32_t& cell) {
    return std::atomic_ref<uint32_t>(const_cast<uint32_t&>(cell)).load(std::memory_order_acquire);
  }
  static void Store(uint32_t& cell, uint32_t value) {
    std::atomic_ref<uint32_t>(cell).store(value, std::memory_order_release);
  }
  uint32_t Bucket(uint32_t low) const;
  uint32_t FindLeader(uint32_t low, uint32_t high) const;
  void LinkLeader(uint32_t bucket, uint32_t slot);
  void UnlinkLeader(uint32_t slot);
  void Split();
  void Join();

  Table<Entry> entries_;
  Table<uint32_t> heads_;
  std::atomic<uint32_t> buckets_{kMinBuckets};
  std::atomic<uint64_t> changes_{0};
  uint64_t listed_ = 0, different_ = 0;
};

}  // namespace pagetide
