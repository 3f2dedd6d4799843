#include "core/resident_tags.h"

#include <algorithm>

namespace pagetide {

namespace {

// Tags in one bucket: one on average, two before its turn to be split comes.
constexpr uint32_t kMaxWalk = 64;

uint32_t PowerAtMost(uint32_t n) {
  return 1u << (31 - __builtin_clz(n));
}

}  // namespace

Error ResidentTags::Make(uint32_t slots) {
  if (Error error = entries_.Make(slots)) return error;
  return heads_.Make(std::max(slots, kMinBuckets));
}

// Buckets beyond the last power of two exist as far as they have been split off; until then their tags are in the
// bucket that they will be split from.
uint32_t ResidentTags::Bucket(uint32_t low) const {
  uint32_t buckets = buckets_.load(std::memory_order_acquire);
  uint32_t power = PowerAtMost(buckets);
  uint32_t bucket = low & (2 * power - 1);
  return bucket < buckets ? bucket : low & (power - 1);
}

bool ResidentTags::Holds(uint32_t slot, const Tag& tag) const {
  return Load(entries_[slot].low) == Low(tag) && Load(entries_[slot].high) == High(tag);
}

uint32_t ResidentTags::First(const Tag& tag) const {
  uint32_t cell = Load(heads_[Bucket(Low(tag))]);
  for (uint32_t step = 0; cell != 0 && step < kMaxWalk; step++) {
    if (Holds(cell - 1, tag)) return cell - 1;
    cell = Load(entries_[cell - 1].next);
  }
  return kNoSlot;
}

// kNoSlot or the slot. By the one thread that makes changes: the chain is right.
uint32_t ResidentTags::FindLeader(uint32_t low, uint32_t high) const {
  for (uint32_t cell = heads_[Bucket(low)]; cell != 0; cell = entries_[cell - 1].next) {
    if (entries_[cell - 1].low == low && entries_[cell - 1].high == high) return cell - 1;
  }
  return kNoSlot;
}

void ResidentTags::LinkLeader(uint32_t bucket, uint32_t slot) {
  uint32_t head = heads_[bucket];
  Store(entries_[slot].next, head);
  Store(entries_[slot].prev, kLeader);
  if (head != 0) Store(entries_[head - 1].prev, kLeader | (slot + 1));
  Store(heads_[bucket], slot + 1);
}

// Its own links stay as they are: a reader that stands on it goes on from there.
void ResidentTags::UnlinkLeader(uint32_t slot) {
  const Entry& entry = entries_[slot];
  uint32_t prev = entry.prev & ~kLeader;
  Store(prev == 0 ? heads_[Bucket(entry.low)] : entries_[prev - 1].next, entry.next);
  if (entry.next != 0) Store(entries_[entry.next - 1].prev, entry.prev);
}

void ResidentTags::Set(uint32_t slot, const Tag& tag) {
  if (Holds(slot, tag)) return;
  if (IsListed(slot)) Drop(slot);
  uint32_t low = Low(tag), high = High(tag);
  if ((low | high) == 0) return;
  changes_.fetch_add(1, std::memory_order_acq_rel);
  Entry& entry = entries_[slot];
  uint32_t leader = FindLeader(low, high);
  Store(entry.low, low);
  Store(entry.high, high);
  if (leader == kNoSlot) {
    Store(entry.same, 0);
    LinkLeader(Bucket(low), slot);
    if (++different_ > buckets_.load(std::memory_order_relaxed)) Split();
  } else {
    // behind the first: what was seen last is the likeliest to be as it was
    uint32_t next = entries_[leader].same;
    Store(entry.same, next);
    Store(entry.prev, leader + 1);
    if (next != 0) Store(entries_[next - 1].prev, slot + 1);
    Store(entries_[leader].same, slot + 1);
  }
  listed_++;
  changes_.fetch_add(1, std::memory_order_release);
}

void ResidentTags::Drop(uint32_t slot) {
  if (!IsListed(slot)) return;
  changes_.fetch_add(1, std::memory_order_acq_rel);
  Entry& entry = entries_[slot];
  if ((entry.prev & kLeader) == 0) {
    Store(entries_[entry.prev - 1].same, entry.same);
    if (entry.same != 0) Store(entries_[entry.same - 1].prev, entry.prev);
  } else if (entry.same != 0) {
    // the next one alike takes its place
    uint32_t heir = entry.same - 1, prev = entry.prev & ~kLeader;
    Store(entries_[heir].next, entry.next);
    Store(entries_[heir].prev, entry.prev);
    if (entry.next != 0) Store(entries_[entry.next - 1].prev, kLeader | (heir + 1));
    Store(prev == 0 ? heads_[Bucket(entry.low)] : entries_[prev - 1].next, heir + 1);
  } else {
    UnlinkLeader(slot);
    different_--;
  }
  Store(entry.low, 0);
  Store(entry.high, 0);
  // some more than there are tags: a frame that changes back and forth moves nothing
  if (buckets_.load(std::memory_order_relaxed) > different_ + kMinBuckets) Join();
  listed_--;
  changes_.fetch_add(1, std::memory_order_release);
}

void ResidentTags::Split() {
  uint32_t fresh = buckets_.load(std::memory_order_relaxed), power = PowerAtMost(fresh);
  if (fresh >= heads_.length()) return;
  uint32_t cell = heads_[fresh - power];
  buckets_.store(fresh + 1, std::memory_order_release);
  while (cell != 0) {
    uint32_t slot = cell - 1;
    cell = entries_[slot].next;
    if ((entries_[slot].low & (2 * power - 1)) != fresh) continue;
    uint32_t prev = entries_[slot].prev & ~kLeader;
    Store(prev == 0 ? heads_[fresh - power] : entries_[prev - 1].next, cell);
    if (cell != 0) Store(entries_[cell - 1].prev, entries_[slot].prev);
    LinkLeader(fresh, slot);
  }
}

void ResidentTags::Join() {
  uint32_t last = buckets_.load(std::memory_order_relaxed) - 1;
  uint32_t into = last - PowerAtMost(last);
  uint32_t cell = heads_[last];
  buckets_.store(last, std::memory_order_release);
  Store(heads_[last], 0);
  while (cell != 0) {
    uint32_t slot = cell - 1;
    cell = entries_[slot].next;
    LinkLeader(into, slot);
  }
  constexpr uint32_t kHeadsInPage = 4096 / sizeof(uint32_t);
  if (last % kHeadsInPage == 0)
    madvise(&heads_[last], std::min<size_t>(4096, heads_.bytes() - last * sizeof(uint32_t)), MADV_DONTNEED);
}

void ResidentTags::Discard(uint32_t first, uint32_t count) {
  madvise(&entries_[first], count * sizeof(Entry), MADV_DONTNEED);
}

}  // namespace pagetide
