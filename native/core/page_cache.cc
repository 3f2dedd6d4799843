#include "core/page_cache.h"

#include <algorithm>
#include <cstring>

namespace pagetide {

namespace {
// Slots looked at before the mutex is given to others for a moment.
constexpr uint64_t kBatch = 1024;
// Victims that are just being read: as many as there may be threads reading, and more.
constexpr int kMaxVictims = 64;
}  // namespace

Result<std::shared_ptr<PageCache>> PageCache::Open(const Options& options) {
  if (options.verify.verify == nullptr) return ArgumentError("a cache needs something that verifies pages");
  auto file = CacheFile::Open(options.path, options.slots, options.replace);
  if (!file.ok()) return file.error;
  std::shared_ptr<PageCache> cache(new PageCache());
  cache->file_ = std::move(file.value);
  cache->verify_ = options.verify;
  if (Error error = cache->Load()) return error;
  return cache;
}

Error PageCache::Load() {
  uint32_t slots = static_cast<uint32_t>(file_->slots());
  if (Error error = index_.Make(slots)) return error;
  if (Error error = policy_.Make(slots)) return error;
  if (Error error = domains_.Make(slots)) return error;
  if (Error error = holds_.Make(slots)) return error;
  std::lock_guard hold(mutex_);
  if (file_->fresh()) {
    for (uint32_t slot = slots; slot-- > 0;) PushFree(slot);
    return {};
  }
  return file_->ReadHeaders([this](uint64_t at, const StoredSlot& stored) {
    uint32_t slot = static_cast<uint32_t>(at);
    Tag tag = Tag::Load(stored.tag);
    if (stored.IsUntouched()) {
      PushFree(slot);
    } else if (stored.IsSealed(at) && stored.state == StoredState::Used && !tag.IsZero() &&
               index_.Find(tag) == kNoSlot) {
      domains_[slot] = stored.domain;
      index_.Publish(slot, tag, false);
      policy_.Insert(slot, tag.high, stored.value, true);
      used_++;
    } else {
      // Half written or damaged. What page lies there, and of which domain, is not known: no trace of it may stay.
      dropped_.Add();
      if (!file_->EraseSlot(at)) Lose();
      PushFree(slot);
    }
  });
}

bool PageCache::Enter(const Tag& tag, Hit* hit) {
  bool verified = false;
  uint32_t slot = kNoSlot;
  if (!lost_.load(std::memory_order_relaxed)) slot = index_.Enter(tag, &verified);
  if (slot == kNoSlot || (!verified && !FirstUse(slot, tag))) {
    misses_.Add();
    return false;
  }
  policy_.Touch(slot);
  hits_.Add();
  *hit = {slot, file_->PageAddress(slot)};
  return true;
}

bool PageCache::FirstUse(uint32_t slot, const Tag& tag) {
  uint8_t page[kCachePage];
  if (!file_->ReadPage(slot, page)) {
    Lose();
    index_.Leave(slot);
    return false;
  }
  // The reader's acquire makes the domain visible that was stored before the slot was published.
  Verdict verdict = verify_.verify(verify_.context, domains_[slot], page, reinterpret_cast<const uint8_t*>(&tag));
  if (verdict == Verdict::Right) {
    index_.SetVerified(slot);
    return true;
  }
  index_.Leave(slot);
  if (verdict == Verdict::Wrong) Drop(slot, tag);
  return false;
}

// The slot may have been dropped, and may have got new content, since the caller left it.
void PageCache::Drop(uint32_t slot, const Tag& tag) {
  std::lock_guard hold(mutex_);
  if (index_.Find(tag) != slot || index_.IsVerified(slot)) return;
  Free(slot);
  dropped_.Add();
}

bool PageCache::Read(const Tag& tag, uint8_t* into) {
  Hit hit;
  if (!Enter(tag, &hit)) return false;
  bool whole = file_->ReadPage(hit.slot, into);
  Leave(hit);
  if (!whole) Lose();
  return whole;
}

void PageCache::PushFree(uint32_t slot) {
  domains_[slot] = free_;
  free_ = slot + 1;
}

// A live slot. Erased at once: what is not findable any more is not to be found in the file either.
void PageCache::Free(uint32_t slot) {
  if (holds_[slot] > 0) {
    holds_[slot] = 0;
    pinned_--;
  } else {
    policy_.Remove(slot);
  }
  index_.Retire(slot);
  if (!file_->EraseSlot(slot)) Lose();
  PushFree(slot);
  used_--;
}

uint32_t PageCache::Reserve() {
  if (free_ != 0) {
    uint32_t slot = free_ - 1;
    free_ = domains_[slot];
    return slot;
  }
  for (int tries = 0; tries < kMaxVictims; tries++) {
    uint32_t slot = policy_.Victim();
    if (slot == kNoSlot) return kNoSlot;
    Tag tag = index_.TagOf(slot);
    if (!index_.Take(slot)) {
      policy_.Skip(slot);
      continue;
    }
    policy_.Evicted(slot, tag.high);
    evictions_.Add();
    used_--;
    return slot;
  }
  return kNoSlot;
}

Insertion PageCache::Insert(const Tag& tag, uint32_t domain, const uint8_t* page, uint8_t value) {
  uint8_t copy[kCachePage];
  memcpy(copy, page, sizeof copy);
  // Before the key is looked at. A removal that begins later is seen when the page is published; for one that began
  // earlier, the key was forgotten before that.
  uint64_t removals = removals_.load();
  Verdict verdict = Verdict::Wrong;
  if (!tag.IsZero()) verdict = verify_.verify(verify_.context, domain, copy, reinterpret_cast<const uint8_t*>(&tag));
  if (verdict != Verdict::Right) {
    rejected_.Add();
    return verdict == Verdict::Wrong ? Insertion::Rejected : Insertion::Unverified;
  }
  // Checked here too, as a file that was cut off and made longer again would have holes where pages are looked for.
  CheckWhole();
  if (lost_.load(std::memory_order_relaxed)) return Insertion::Lost;

  StoredSlot header{};
  memcpy(header.tag, &tag, sizeof tag);
  header.domain = domain;
  header.value = std::min(value, kMaxValue);
  uint32_t slot;
  {
    std::lock_guard hold(mutex_);
    uint32_t there = index_.Find(tag);
    if (there != kNoSlot) {
      policy_.Touch(there);
      policy_.RaiseValue(there, header.value);
      return Insertion::Present;
    }
    slot = Reserve();
  }
  if (slot == kNoSlot) {
    refused_.Add();
    return Insertion::Full;
  }
  // Nobody else knows the slot: it is in no chain, no queue and not free.
  bool written = file_->WriteSlot(slot, header, copy);
  std::lock_guard hold(mutex_);
  if (!written) Lose();
  if (!written || index_.Find(tag) != kNoSlot) {
    // Another thread was faster with the same page.
    if (written && !file_->EraseSlot(slot)) Lose();
    PushFree(slot);
    return written ? Insertion::Present : Insertion::Lost;
  }
  if (removals_.load() != removals) {
    // Its domain may be among what was removed, and whoever removes it may have passed this slot already.
    if (!file_->EraseSlot(slot)) Lose();
    PushFree(slot);
    refused_.Add();
    return Insertion::Full;
  }
  domains_[slot] = domain;
  index_.Publish(slot, tag, true);
  policy_.Insert(slot, tag.high, header.value);
  used_++;
  insertions_.Add();
  return Insertion::Inserted;
}

bool PageCache::SetValue(const Tag& tag, uint8_t value) {
  std::lock_guard hold(mutex_);
  uint32_t slot = index_.Find(tag);
  if (slot == kNoSlot) return false;
  policy_.SetValue(slot, value);
  return true;
}

uint64_t PageCache::Pin(uint64_t set, const uint8_t* tags, uint64_t count) {
  std::vector<Held> found;
  for (uint64_t at = 0; at < count; at += kBatch) {
    std::lock_guard hold(mutex_);
    for (uint64_t i = at; i < std::min(count, at + kBatch); i++) {
      Tag tag = Tag::Load(tags + i * sizeof(Tag));
      uint32_t slot = tag.IsZero() ? kNoSlot : index_.Find(tag);
      if (slot != kNoSlot) found.push_back({slot, index_.Generation(slot)});
    }
  }
  // A common page has many frames: it is held once.
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  uint64_t pinned = 0;
  for (uint64_t at = 0; at < found.size(); at += kBatch) {
    std::lock_guard hold(mutex_);
    std::vector<Held>& held = sets_[set];
    for (uint64_t i = at; i < std::min<uint64_t>(found.size(), at + kBatch); i++) {
      uint32_t slot = found[i].slot;
      // Evicted or removed since it was found.
      if (!index_.IsLive(slot) || index_.Generation(slot) != found[i].generation) continue;
      if (holds_[slot] == UINT16_MAX) continue;
      if (holds_[slot]++ == 0) {
        policy_.Hold(slot);
        pinned_++;
      }
      held.push_back(found[i]);
      pinned++;
    }
  }
  return pinned;
}

uint64_t PageCache::Unpin(uint64_t set) {
  std::vector<Held> held;
  {
    std::lock_guard hold(mutex_);
    auto found = sets_.find(set);
    if (found == sets_.end()) return 0;
    held = std::move(found->second);
    sets_.erase(found);
  }
  uint64_t released = 0;
  for (uint64_t at = 0; at < held.size(); at += kBatch) {
    std::lock_guard hold(mutex_);
    for (uint64_t i = at; i < std::min<uint64_t>(held.size(), at + kBatch); i++) {
      auto [slot, generation] = held[i];
      // Removed meanwhile: the holds of what is there now are not ours.
      if (!index_.IsLive(slot) || index_.Generation(slot) != generation || holds_[slot] == 0) continue;
      released++;
      if (--holds_[slot] > 0) continue;
      policy_.Unhold(slot);
      pinned_--;
    }
  }
  return released;
}

template <typename Keep>
uint64_t PageCache::FreeAll(Keep keep) {
  uint64_t freed = 0;
  {
    std::lock_guard hold(mutex_);
    removals_.fetch_add(1);
  }
  for (uint64_t at = 0; at < slots(); at += kBatch) {
    std::lock_guard hold(mutex_);
    for (uint64_t i = at; i < std::min(slots(), at + kBatch); i++) {
      uint32_t slot = static_cast<uint32_t>(i);
      if (!index_.IsLive(slot) || keep(slot)) continue;
      Free(slot);
      freed++;
    }
  }
  return freed;
}

uint64_t PageCache::RemoveDomain(uint32_t domain) {
  return FreeAll([this, domain](uint32_t slot) { return domains_[slot] != domain; });
}

uint64_t PageCache::Clear() {
  return FreeAll([](uint32_t) { return false; });
}

CacheStats PageCache::Stats() {
  CacheStats stats{};
  stats.slots = slots();
  stats.hits = hits_.Get();
  stats.misses = misses_.Get();
  stats.insertions = insertions_.Get();
  stats.evictions = evictions_.Get();
  stats.rejected = rejected_.Get();
  stats.dropped = dropped_.Get();
  stats.refused = refused_.Get();
  stats.index_bytes = index_.bytes() + policy_.bytes() + domains_.bytes() + holds_.bytes();
  stats.lost = lost_.load(std::memory_order_relaxed);
  std::lock_guard hold(mutex_);
  stats.used = used_;
  stats.pinned = pinned_;
  return stats;
}

}  // namespace pagetide
