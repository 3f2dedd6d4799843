#include "core/cache_index.h"

#include <sched.h>

namespace pagetide {

namespace {
// A bucket has one slot on average, and more than a few dozen only by a change under way.
constexpr uint32_t kMaxWalk = 256;
constexpr int kMaxTries = 4;
}  // namespace

Error CacheIndex::Make(uint32_t slots) {
  if (Error error = slots_.Make(slots)) return error;
  return heads_.Make(slots);
}

bool CacheIndex::Holds(uint32_t slot, const Tag& tag) const {
  Slot& one = const_cast<Slot&>(slots_[slot]);
  return std::atomic_ref<uint64_t>(one.low).load(std::memory_order_relaxed) == tag.low &&
         std::atomic_ref<uint64_t>(one.high).load(std::memory_order_relaxed) == tag.high;
}

Tag CacheIndex::TagOf(uint32_t slot) const {
  return {slots_[slot].low, slots_[slot].high};
}

uint32_t CacheIndex::Walk(const Tag& tag) const {
  uint32_t cell = Cell(heads_[Bucket(tag)]).load(std::memory_order_acquire);
  for (uint32_t step = 0; cell != 0 && step < kMaxWalk; step++) {
    if (Holds(cell - 1, tag)) return cell - 1;
    cell = Cell(slots_[cell - 1].chain).load(std::memory_order_acquire);
  }
  return kNoSlot;
}

uint32_t CacheIndex::Enter(const Tag& tag, bool* verified) {
  for (int tries = 0; tries < kMaxTries; tries++) {
    uint64_t changes = changes_.load(std::memory_order_acquire);
    uint32_t slot = Walk(tag);
    if (slot != kNoSlot) {
      std::atomic_ref<uint32_t> word = Word(slot);
      uint32_t now = word.load(std::memory_order_relaxed);
      bool entered = false;
      // A count at its end would overflow into `live`; no process has that many threads here.
      while ((now & kLive) != 0 && (now & kReaders) != kReaders && !entered)
        entered = word.compare_exchange_weak(now, now + 1, std::memory_order_acquire, std::memory_order_relaxed);
      if (entered) {
        if (Holds(slot, tag)) {
          *verified = (now & kVerified) != 0;
          return slot;
        }
        Leave(slot);
      }
    }
    // Odd: a change is under way; different: there was one. The walk's loads acquire: none of them comes after this.
    if ((changes & 1) == 0 && changes_.load(std::memory_order_acquire) == changes) break;
  }
  return kNoSlot;
}

bool CacheIndex::Has(const Tag& tag) {
  for (int tries = 0; tries < kMaxTries; tries++) {
    uint64_t changes = changes_.load(std::memory_order_acquire);
    uint32_t slot = Walk(tag);
    if (slot != kNoSlot) return (Word(slot).load(std::memory_order_relaxed) & kLive) != 0;
    if ((changes & 1) == 0 && changes_.load(std::memory_order_acquire) == changes) break;
  }
  return false;
}

uint32_t CacheIndex::Find(const Tag& tag) const {
  uint32_t cell = Cell(heads_[Bucket(tag)]).load(std::memory_order_relaxed);
  for (; cell != 0; cell = Cell(slots_[cell - 1].chain).load(std::memory_order_relaxed)) {
    if (Holds(cell - 1, tag)) return cell - 1;
  }
  return kNoSlot;
}

void CacheIndex::Publish(uint32_t slot, const Tag& tag, bool verified) {
  changes_.fetch_add(1, std::memory_order_acq_rel);
  std::atomic_ref<uint64_t>(slots_[slot].low).store(tag.low, std::memory_order_relaxed);
  std::atomic_ref<uint64_t>(slots_[slot].high).store(tag.high, std::memory_order_relaxed);
  uint32_t generation = Generation(slot) + 1;
  Word(slot).store(generation << kGenerationShift | kLive | (verified ? kVerified : 0), std::memory_order_release);
  std::atomic_ref<uint32_t> head = Cell(heads_[Bucket(tag)]);
  Cell(slots_[slot].chain).store(head.load(std::memory_order_relaxed), std::memory_order_release);
  head.store(slot + 1, std::memory_order_release);
  changes_.fetch_add(1, std::memory_order_release);
}

void CacheIndex::Unchain(uint32_t slot) {
  changes_.fetch_add(1, std::memory_order_acq_rel);
  const uint32_t* at = &heads_[Bucket(TagOf(slot))];
  for (uint32_t cell; (cell = Cell(*at).load(std::memory_order_relaxed)) != slot + 1;) at = &slots_[cell - 1].chain;
  Cell(*at).store(Cell(slots_[slot].chain).load(std::memory_order_relaxed), std::memory_order_release);
  changes_.fetch_add(1, std::memory_order_release);
}

bool CacheIndex::Take(uint32_t slot) {
  std::atomic_ref<uint32_t> word = Word(slot);
  uint32_t now = word.load(std::memory_order_relaxed);
  do {
    if ((now & kLive) == 0 || (now & kReaders) != 0) return false;
  } while (!word.compare_exchange_weak(now, now & ~(kLive | kVerified), std::memory_order_acq_rel,
                                       std::memory_order_relaxed));
  Unchain(slot);
  return true;
}

void CacheIndex::Retire(uint32_t slot) {
  std::atomic_ref<uint32_t> word = Word(slot);
  word.fetch_and(~kLive, std::memory_order_acq_rel);
  Unchain(slot);
  while ((word.load(std::memory_order_acquire) & kReaders) != 0) sched_yield();
  word.fetch_and(~kVerified, std::memory_order_relaxed);
}

}  // namespace pagetide
