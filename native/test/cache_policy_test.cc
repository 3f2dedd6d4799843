// The eviction policy alone: numbers only.
#include "core/cache_policy.h"

#include <set>
#include <vector>

#include "test/harness.h"

namespace pagetide::test {

namespace {

uint64_t Mixed(uint64_t n) {
  return Random(n).Next();
}

// Slots 0 … n-1 hold keys; asks for keys and counts hits.
struct Simulated {
  explicit Simulated(uint32_t slots) : slots(slots), keys(slots, UINT64_MAX) { CHECK_OK(policy.Make(slots)); }
  bool Ask(uint64_t key, uint8_t value = 0) {
    for (uint32_t slot = 0; slot < used; slot++) {
      if (keys[slot] != key) continue;
      policy.Touch(slot);
      return true;
    }
    uint32_t slot = used;
    if (used < slots) {
      used++;
    } else {
      slot = policy.Victim();
      CHECK(slot != kNoSlot);
      policy.Evicted(slot, Mixed(keys[slot]));
    }
    keys[slot] = key;
    policy.Insert(slot, Mixed(key), value);
    return false;
  }
  bool Has(uint64_t key) const {
    for (uint64_t one : keys)
      if (one == key) return true;
    return false;
  }
  uint32_t slots, used = 0;
  std::vector<uint64_t> keys;
  EvictionPolicy policy;
};

}  // namespace

TEST(cache_policy_needs_twelve_bytes_a_slot) {
  for (uint32_t slots : {8u, 1000u, 4096u}) {
    EvictionPolicy policy;
    CHECK_OK(policy.Make(slots));
    CHECK(policy.bytes() <= 12 * slots + 16);
    CHECK_EQ(policy.Victim(), kNoSlot);
  }
}

TEST(cache_policy_keeps_what_is_used_through_a_scan) {
  Simulated s(100);
  for (int turn = 0; turn < 5; turn++)
    for (uint64_t key = 0; key < 60; key++) s.Ask(key);
  for (uint64_t key = 1000; key < 3000; key++) s.Ask(key);
  int kept = 0;
  for (uint64_t key = 0; key < 60; key++) kept += s.Has(key) ? 1 : 0;
  CHECK_EQ(kept, 60);
}

TEST(cache_policy_takes_back_what_it_remembers) {
  Simulated s(100);
  for (uint64_t key = 0; key < 100; key++) s.Ask(key);
  s.Ask(100);
  CHECK(!s.Has(0));  // the first of the small queue, never used
  s.Ask(0);          // to the main queue at once
  for (uint64_t key = 1000; key < 1400; key++) s.Ask(key);
  CHECK(s.Has(0));
}

TEST(cache_policy_value_outlives_turns_and_fades) {
  Simulated s(64);
  for (uint64_t key = 0; key < 64; key++) s.Ask(key, key < 16 ? 3 : 0);
  for (uint64_t key = 1000; key < 1300; key++) s.Ask(key);
  for (uint64_t key = 0; key < 16; key++) CHECK(s.Has(key));
  // pages that are used, or worth as much, push it out in the end
  for (uint64_t key = 2000; key < 4000; key++) s.Ask(key, 3);
  for (uint64_t key = 0; key < 16; key++) CHECK(!s.Has(key));
}

TEST(cache_policy_against_a_model_of_its_sets) {
  Random random(Seed());
  constexpr uint32_t kSlots = 37;
  EvictionPolicy policy;
  CHECK_OK(policy.Make(kSlots));
  std::set<uint32_t> queued, held, empty;
  for (uint32_t slot = 0; slot < kSlots; slot++) empty.insert(slot);
  auto any = [&](const std::set<uint32_t>& set) {
    auto at = set.begin();
    std::advance(at, random.Below(set.size()));
    return *at;
  };
  for (int step = 0; step < 200'000; step++) {
    switch (random.Below(8)) {
      case 0:
      case 1:
        if (empty.empty()) break;
        {
          uint32_t slot = any(empty);
          policy.Insert(slot, random.Below(64) * 0x9e3779b97f4a7c15ull, static_cast<uint8_t>(random.Below(20)),
                        random.Below(4) == 0);
          empty.erase(slot);
          queued.insert(slot);
        }
        break;
      case 2:
        if (!queued.empty()) {
          uint32_t slot = any(queued);
          policy.Hold(slot);
          queued.erase(slot);
          held.insert(slot);
        }
        break;
      case 3:
        if (!held.empty()) {
          uint32_t slot = any(held);
          policy.Unhold(slot);
          held.erase(slot);
          queued.insert(slot);
        }
        break;
      case 4: {
        auto& set = random.Below(2) == 0 ? queued : held;
        if (set.empty()) break;
        uint32_t slot = any(set);
        policy.Remove(slot);
        set.erase(slot);
        empty.insert(slot);
        break;
      }
      case 5: {
        uint32_t slot = policy.Victim();
        CHECK_EQ(slot == kNoSlot, queued.empty());
        if (slot == kNoSlot) break;
        CHECK(queued.contains(slot));
        if (random.Below(3) == 0) {
          policy.Skip(slot);
          break;
        }
        policy.Evicted(slot, random.Below(64) * 0x9e3779b97f4a7c15ull);
        queued.erase(slot);
        empty.insert(slot);
        break;
      }
      case 6:
        if (!queued.empty()) policy.SetValue(any(queued), static_cast<uint8_t>(random.Below(16)));
        if (!held.empty()) policy.RaiseValue(any(held), static_cast<uint8_t>(random.Below(16)));
        break;
      default:
        policy.Touch(static_cast<uint32_t>(random.Below(kSlots)));
    }
    CHECK_EQ(policy.queued(), queued.size());
  }
}

}  // namespace pagetide::test
