// Which slot holds which tag, for any number of threads that look up without a lock while one changes it.
//
// A slot's word tells whether it may be read, and how many threads read it right now:
//
//      publish             last reader leaves, content goes
//   ──────────► live ─────────────────────────────────────────► empty
//                │  ▲ verified: its page was compared with its tag since the file was opened
//         retire ▼  │
//              retired: nobody new comes in; whoever is inside may finish
//
//   31          18 17       16    15            0
//   ┌─────────────┬──────────┬──────┬─────────────┐
//   │ generation  │ verified │ live │ readers     │
//   └─────────────┴──────────┴──────┴─────────────┘
//
// Why a reader never gets a page of another tag, whatever happens meanwhile:
//  1. A reader counts itself in by compare-and-swap on a word that is live, and only then compares the slot's tag with
//     the one it wants. What it saw of the chain or of the tag before was a hint.
//  2. Tag and page of a slot change only between a Take (or a Retire that has seen the last reader leave) and the next
//     Publish. Take succeeds only by compare-and-swap from a word without readers to one that isn't live; Retire makes
//     the word not live first and waits for readers to reach 0. As (1) is refused on a word that isn't live, no
//     reader is inside while the page changes: the change cannot begin before the last UFFDIO_COPY from it has ended.
//  3. The page is written before Publish stores `live` with release; the reader's compare-and-swap acquires it (other
//     readers' in between are read-modify-writes, which go on with the release sequence). So the tag compared in (1)
//     and the page copied belong together. A reader that slept between looking at the chain and counting itself in may
//     come into the slot's next content: its comparison then fails, and it leaves.
//  4. A reader leaves with release, Take and Retire acquire: its reads are over before the page is overwritten.
//
// Chains: a reader that stands on a slot while it moves to another chain would go on there and may miss a tag that is
// present. So the whole index has a count of changes; a lookup that found nothing while the count moved looks again, a
// few times, and then says that it missed, which is slow, not wrong. Steps are bounded, as a chain that changes while
// one walks on it may have no end.
//
// 28 bytes a slot.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/cache_policy.h"
#include "core/cache_table.h"

namespace pagetide {

struct Tag {
  uint64_t low = 0, high = 0;
  static Tag Load(const uint8_t* bytes) {
    Tag tag;
    memcpy(&tag, bytes, sizeof tag);
    return tag;
  }
  bool operator==(const Tag&) const = default;
  bool IsZero() const { return (low | high) == 0; }
};
static_assert(sizeof(Tag) == 16);

class CacheIndex {
 public:
  Error Make(uint32_t slots);

  // Any thread. Counts the caller in as a reader of the slot that holds `tag`, or gives kNoSlot. Leave follows.
  uint32_t Enter(const Tag& tag, bool* verified);
  void Leave(uint32_t slot) { Word(slot).fetch_sub(1, std::memory_order_release); }
  // By a reader that compared.
  void SetVerified(uint32_t slot) { Word(slot).fetch_or(kVerified, std::memory_order_release); }
  // Any thread; true says little about the next moment.
  bool Has(const Tag& tag);
  // Brings what Enter will look at first nearer.
  void Prefetch(const Tag& tag) const { __builtin_prefetch(&heads_[Bucket(tag)]); }
  // And what it looks at next, some time after that. kNoSlot, or the slot that is most likely it.
  uint32_t PrefetchSlot(const Tag& tag) const {
    uint32_t cell = Cell(heads_[Bucket(tag)]).load(std::memory_order_relaxed);
    if (cell == 0) return kNoSlot;
    __builtin_prefetch(&slots_[cell - 1], 1);
    return cell - 1;
  }

  // The rest: one thread at a time.
  uint32_t Find(const Tag& tag) const;
  Tag TagOf(uint32_t slot) const;
  bool IsLive(uint32_t slot) const { return (Word(slot).load(std::memory_order_relaxed) & kLive) != 0; }
  bool IsVerified(uint32_t slot) const { return (Word(slot).load(std::memory_order_relaxed) & kVerified) != 0; }
  // Changes whenever the slot gets new content; repeats after 2^14 of them.
  uint32_t Generation(uint32_t slot) const { return Word(slot).load(std::memory_order_relaxed) >> kGenerationShift; }
  // An empty slot, whose page is written, can be found from now on.
  void Publish(uint32_t slot, const Tag& tag, bool verified);
  // Live → empty, where nobody reads it; or false and nothing has changed.
  bool Take(uint32_t slot);
  // Live → empty; waits for readers, who are in no more than one UFFDIO_COPY or one check of a page.
  void Retire(uint32_t slot);

  size_t bytes() const { return slots_.bytes() + heads_.bytes(); }

 private:
  static constexpr uint32_t kReaders = 0xffff, kLive = 1u << 16, kVerified = 1u << 17, kGenerationShift = 18;
  // Together, as a lookup needs all of it: 24 bytes lie in one line of the processor's cache, most of the time.
  struct Slot {
    uint64_t low, high;  // the tag
    uint32_t word;
    uint32_t chain;  // slot + 1 of the next in the chain, 0: none
  };
  std::atomic_ref<uint32_t> Word(uint32_t slot) const {
    return std::atomic_ref<uint32_t>(const_cast<uint32_t&>(slots_[slot].word));
  }
  static std::atomic_ref<uint32_t> Cell(const uint32_t& cell) {
    return std::atomic_ref<uint32_t>(const_cast<uint32_t&>(cell));
  }
  bool Holds(uint32_t slot, const Tag& tag) const;
  uint32_t Bucket(const Tag& tag) const {
    return static_cast<uint32_t>((tag.low & UINT32_MAX) * heads_.length() >> 32);
  }
  uint32_t Walk(const Tag& tag) const;
  void Unchain(uint32_t slot);

  Table<Slot> slots_;
  Table<uint32_t> heads_;  // slot + 1 of the first in the bucket
  std::atomic<uint64_t> changes_{0};
};

}  // namespace pagetide
