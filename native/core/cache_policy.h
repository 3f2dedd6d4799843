// Which page of the cache goes when another needs its slot. Pure: slots are numbers, no page and no tag is seen here.
//
// S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP 2023): most pages of
// a scan are never asked for again, so a page first has to prove itself in a small queue; what leaves that unused is
// remembered by a fingerprint only, and if it comes back soon it goes to the main queue at once.
//
//                       used twice, or worth something
//   new ──► small (1/10) ────────────────────────────► main ──► evicted: neither uses nor worth left
//             │ neither                                 ▲  ╰──╮ else: one of them is spent, and to the tail
//             ▼                                         │ ◄───╯
//           ghost (fingerprints, as many as slots) ─────╯ comes back while it is remembered
//
// Ours on top: *value*, 0 to 15, given from outside (how many bytes the page is expected to save). Where the paper has
// one count of uses, a page has two: uses (0 to 3, made by hits, spent first) and worth (the value, spent last). So a
// page of value v outlives v turns of the main queue without a single hit, and an old value fades, as the growing floor
// of GreedyDual-Size-Frequency makes it fade, without any sorting.
//
// A held slot (a running migration needs it) is in no queue: it costs the search for a victim nothing.
//
// Cost: each step of the search spends a use or a worth, or moves a page out of the small queue, which it entered once:
// O(1) amortized over hits and inserts. One search takes kMaxSteps at most. Nothing is allocated after Make. 12 bytes a
// slot.
//
// Threads: Touch from any thread at any time; all else by one thread at a time.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "core/cache_table.h"

namespace pagetide {

inline constexpr uint8_t kMaxValue = 15;
inline constexpr uint32_t kNoSlot = UINT32_MAX;

class EvictionPolicy {
 public:
  Error Make(uint32_t slots);

  // A hit. Lost updates among threads cost a use, nothing else.
  void Touch(uint32_t slot) {
    std::atomic_ref<uint8_t> uses(uses_[slot]);
    uint8_t now = uses.load(std::memory_order_relaxed);
    if (now < kMaxUses) uses.store(now + 1, std::memory_order_relaxed);
  }
  // Brings what Touch looks at nearer.
  void Prefetch(uint32_t slot) const { __builtin_prefetch(&uses_[slot], 1); }
  // Puts a slot that is in no queue into one. `fingerprint`: any 64 well mixed bits of what the slot holds.
  // `proven`: it was here before (after a restart): straight into the main queue.
  void Insert(uint32_t slot, uint64_t fingerprint, uint8_t value, bool proven = false);
  // A slot whose content goes for another reason than eviction, held or not.
  void Remove(uint32_t slot);
  // The next slot to evict, still in its queue; kNoSlot where every page is held, or there is none.
  uint32_t Victim();
  // It was evicted.
  void Evicted(uint32_t slot, uint64_t fingerprint);
  // It could not be evicted just now: last in its queue.
  void Skip(uint32_t slot);
  // Out of the queues until Unhold, which puts it into the main one. Both once.
  void Hold(uint32_t slot);
  void Unhold(uint32_t slot);
  // Replaces what is left of the slot's value.
  void SetValue(uint32_t slot, uint8_t value);
  void RaiseValue(uint32_t slot, uint8_t value) {
    if (value > Worth(slot)) SetValue(slot, value);
  }

  // Slots in a queue.
  uint32_t queued() const { return queues_[kSmall].count + queues_[kMain].count; }
  size_t bytes() const { return links_.bytes() + uses_.bytes() + marks_.bytes() + ghosts_.bytes(); }

 private:
  static constexpr uint8_t kMaxUses = 3;
  // Uses in the small queue that make a page worth a place in the main one.
  static constexpr uint8_t kProof = 2;
  static constexpr uint32_t kMaxSteps = 4096;
  static constexpr uint32_t kWays = 8;
  enum Queue : uint8_t { kNone = 0, kSmall = 1, kMain = 2 };
  struct Link {
    uint32_t older, newer;
  };
  struct Ends {
    uint32_t oldest = kNoSlot, newest = kNoSlot, count = 0;
  };
  // worth in the upper half, queue in the lower
  uint8_t Worth(uint32_t slot) const { return marks_[slot] >> 4; }
  Queue QueueOf(uint32_t slot) const { return static_cast<Queue>(marks_[slot] & 15); }
  void Mark(uint32_t slot, uint8_t worth, Queue queue) { marks_[slot] = static_cast<uint8_t>(worth << 4 | queue); }
  void Append(uint32_t slot, Queue queue);
  void Unlink(uint32_t slot);
  bool SpendOne(uint32_t slot);
  bool Recall(uint64_t fingerprint);
  void Remember(uint64_t fingerprint);
  uint16_t* GhostsOf(uint64_t fingerprint);

  Table<Link> links_;
  Table<uint8_t> uses_;
  Table<uint8_t> marks_;
  // Sets of kWays fingerprints, the newest first: each set is a short queue of its own. 0: none.
  Table<uint16_t> ghosts_;
  Ends queues_[3];
  uint32_t small_target_ = 1;
};

}  // namespace pagetide
