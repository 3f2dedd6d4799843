#include "core/cache_policy.h"

#include <algorithm>
#include <cstring>

namespace pagetide {

Error EvictionPolicy::Make(uint32_t slots) {
  small_target_ = std::max<uint32_t>(1, slots / 10);
  if (Error error = links_.Make(slots)) return error;
  if (Error error = uses_.Make(slots)) return error;
  if (Error error = marks_.Make(slots)) return error;
  return ghosts_.Make((static_cast<size_t>(slots) + kWays - 1) / kWays * kWays);
}

void EvictionPolicy::Append(uint32_t slot, Queue queue) {
  Ends& ends = queues_[queue];
  links_[slot] = {ends.newest, kNoSlot};
  (ends.newest == kNoSlot ? ends.oldest : links_[ends.newest].newer) = slot;
  ends.newest = slot;
  ends.count++;
  Mark(slot, Worth(slot), queue);
}

void EvictionPolicy::Unlink(uint32_t slot) {
  Ends& ends = queues_[QueueOf(slot)];
  Link link = links_[slot];
  (link.older == kNoSlot ? ends.oldest : links_[link.older].newer) = link.newer;
  (link.newer == kNoSlot ? ends.newest : links_[link.newer].older) = link.older;
  ends.count--;
  Mark(slot, Worth(slot), kNone);
}

void EvictionPolicy::Insert(uint32_t slot, uint64_t fingerprint, uint8_t value, bool proven) {
  std::atomic_ref<uint8_t>(uses_[slot]).store(0, std::memory_order_relaxed);
  Mark(slot, std::min(value, kMaxValue), kNone);
  Append(slot, proven || Recall(fingerprint) ? kMain : kSmall);
}

void EvictionPolicy::Remove(uint32_t slot) {
  if (QueueOf(slot) != kNone) Unlink(slot);
}

bool EvictionPolicy::SpendOne(uint32_t slot) {
  std::atomic_ref<uint8_t> uses(uses_[slot]);
  uint8_t now = uses.load(std::memory_order_relaxed);
  if (now > 0) {
    uses.store(now - 1, std::memory_order_relaxed);
    return true;
  }
  if (Worth(slot) == 0) return false;
  Mark(slot, Worth(slot) - 1, QueueOf(slot));
  return true;
}

uint32_t EvictionPolicy::Victim() {
  const Ends &small = queues_[kSmall], &main = queues_[kMain];
  for (uint32_t step = 0;; step++) {
    bool from_small = small.count > 0 && (small.count > small_target_ || main.count == 0);
    uint32_t slot = from_small ? small.oldest : main.oldest;
    if (slot == kNoSlot) return kNoSlot;
    // Threads that hit meanwhile may give uses as fast as they are spent here.
    if (step == kMaxSteps) return slot;
    if (from_small) {
      std::atomic_ref<uint8_t> uses(uses_[slot]);
      if (uses.load(std::memory_order_relaxed) < kProof && Worth(slot) == 0) return slot;
      uses.store(0, std::memory_order_relaxed);
    } else if (!SpendOne(slot)) {
      return slot;
    }
    Unlink(slot);
    Append(slot, kMain);
  }
}

void EvictionPolicy::Evicted(uint32_t slot, uint64_t fingerprint) {
  if (QueueOf(slot) == kSmall) Remember(fingerprint);
  Unlink(slot);
}

void EvictionPolicy::Skip(uint32_t slot) {
  Queue queue = QueueOf(slot);
  Unlink(slot);
  Append(slot, queue);
}

void EvictionPolicy::Hold(uint32_t slot) {
  Unlink(slot);
}

void EvictionPolicy::Unhold(uint32_t slot) {
  Append(slot, kMain);
}

void EvictionPolicy::SetValue(uint32_t slot, uint8_t value) {
  Mark(slot, std::min(value, kMaxValue), QueueOf(slot));
}

uint16_t* EvictionPolicy::GhostsOf(uint64_t fingerprint) {
  uint64_t sets = ghosts_.length() / kWays;
  return &ghosts_[((fingerprint & UINT32_MAX) * sets >> 32) * kWays];
}

bool EvictionPolicy::Recall(uint64_t fingerprint) {
  uint16_t* set = GhostsOf(fingerprint);
  uint16_t want = static_cast<uint16_t>(fingerprint >> 48 | 1);
  for (uint32_t i = 0; i < kWays; i++) {
    if (set[i] != want) continue;
    memmove(set + i, set + i + 1, (kWays - 1 - i) * sizeof *set);
    set[kWays - 1] = 0;
    return true;
  }
  return false;
}

void EvictionPolicy::Remember(uint64_t fingerprint) {
  uint16_t* set = GhostsOf(fingerprint);
  memmove(set + 1, set, (kWays - 1) * sizeof *set);
  set[0] = static_cast<uint16_t>(fingerprint >> 48 | 1);
}

}  // namespace pagetide
