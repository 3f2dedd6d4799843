#include "core/resident_index.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/page_hash.h"

namespace pagetide {

namespace {

// Frames that one lookup reads, at most: each costs what a hit costs.
constexpr int kMaxCopies = 3;
// Entries that one lookup looks at: all but a few are of the page that is wanted.
constexpr int kMaxSteps = 64;
constexpr int kMaxTries = 4;
// Frames that are listed while the mutex is held once.
constexpr uint64_t kFramesALock = 512;
constexpr uint32_t kPartFrames = ResidentTags::kSlotsAtOnce;

}  // namespace

Result<std::shared_ptr<ResidentIndex>> ResidentIndex::Open(uint64_t frames) {
  if (frames < 1 || frames > ResidentTags::kMaxSlots)
    return ArgumentError("a resident index has room for 1 to 2^30 frames, not " + std::to_string(frames));
  uint64_t parts = (frames + kPartFrames - 1) / kPartFrames;
  std::shared_ptr<ResidentIndex> index(new ResidentIndex());
  if (Error error = index->tags_.Make(static_cast<uint32_t>(parts * kPartFrames))) return error;
  if (Error error = index->hashes_.Make(parts * kPartFrames)) return error;
  if (Error error = index->files_.Make(kMaxFiles)) return error;
  if (Error error = index->parts_.Make(parts)) return error;
  return index;
}

// Nobody uses it any more: whoever looks up holds it.
ResidentIndex::~ResidentIndex() {
  for (auto& [number, held] : held_) close(files_[held.at].fd);
}

Result<uint32_t> ResidentIndex::Add(int fd, uint64_t frames, uint32_t domain, std::shared_ptr<DomainKey> key) {
  if (frames < 1 || frames > ResidentTags::kMaxSlots || key == nullptr)
    return ArgumentError("a file of " + std::to_string(frames) + " frames cannot be listed");
  uint64_t parts = (frames + kPartFrames - 1) / kPartFrames;
  std::lock_guard hold(mutex_);
  bool file_free = !free_files_.empty() || fresh_file_ < kMaxFiles;
  if (!file_free || free_parts_.size() + (parts_.length() - fresh_part_) < parts)
    return SyscallError("resident index", ENOSPC, 0, 0, "no room for " + std::to_string(frames) + " frames");
  int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (own < 0) return SyscallError("fcntl(F_DUPFD_CLOEXEC)", errno);
  Held held{0, std::move(key), {}};
  if (free_files_.empty()) {
    held.at = fresh_file_++;
  } else {
    held.at = free_files_.back();
    free_files_.pop_back();
  }
  File& file = files_[held.at];
  file.fd = own;
  file.domain = domain;
  file.frames = static_cast<uint32_t>(frames);
  file.key = held.key.get();
  // Before its slots can be found; acquired by whoever enters.
  std::atomic_ref<uint32_t>(file.word).store(kLive, std::memory_order_release);
  for (uint64_t i = 0; i < parts; i++) {
    uint32_t part;
    if (free_parts_.empty()) {
      part = fresh_part_++;
    } else {
      part = free_parts_.back();
      free_parts_.pop_back();
    }
    std::atomic_ref<uint32_t>(parts_[part].first).store(static_cast<uint32_t>(i * kPartFrames));
    std::atomic_ref<uint32_t>(parts_[part].file).store(held.at + 1, std::memory_order_release);
    held.parts.push_back(part);
  }
  frames_ += frames;
  held_[++last_] = std::move(held);
  return last_;
}

Error ResidentIndex::Set(uint32_t number, uint64_t first, uint64_t count, const uint8_t* tags, const uint8_t* hashes) {
  uint64_t end = first + count;
  uint64_t at = first;
  do {
    std::lock_guard hold(mutex_);
    auto found = held_.find(number);
    if (found == held_.end()) return {};
    const Held& held = found->second;
    uint64_t frames = files_[held.at].frames;
    if (first > frames || count > frames - first) return ArgumentError("frames outside the file", first, count);
    uint64_t until = std::min(end, at + kFramesALock);
    for (; at < until; at++) {
      uint32_t slot = held.parts[at / kPartFrames] * kPartFrames + static_cast<uint32_t>(at % kPartFrames);
      if (hashes != nullptr) {
        uint64_t hash;
        memcpy(&hash, hashes + (at - first) * kPageHashBytes, sizeof hash);
        if (hash != kNoPageHash) HashOf(slot).store(hash, std::memory_order_relaxed);
      }
      tags_.Set(slot, Tag::Load(tags + (at - first) * sizeof(Tag)));
    }
  } while (at < end);
  return {};
}

void ResidentIndex::RemoveHeld(const Held& held) {
  File& file = files_[held.at];
  std::atomic_ref<uint32_t> word(file.word);
  word.fetch_and(~kLive, std::memory_order_acq_rel);
  for (uint32_t part : held.parts) {
    for (uint32_t i = 0; i < kPartFrames; i++) tags_.Drop(part * kPartFrames + i);
  }
  // None of them waits for the mutex while it is inside.
  while (word.load(std::memory_order_acquire) != 0) sched_yield();
  close(file.fd);
  file.key = nullptr;
  for (uint32_t part : held.parts) {
    std::atomic_ref<uint32_t>(parts_[part].file).store(0, std::memory_order_release);
    tags_.Discard(part * kPartFrames, kPartFrames);
    madvise(&hashes_[part * kPartFrames], kPartFrames * kPageHashBytes, MADV_DONTNEED);
    free_parts_.push_back(part);
  }
  free_files_.push_back(held.at);
  frames_ -= file.frames;
}

void ResidentIndex::Remove(uint32_t number) {
  std::lock_guard hold(mutex_);
  auto found = held_.find(number);
  if (found == held_.end()) return;
  RemoveHeld(found->second);
  held_.erase(found);
}

void ResidentIndex::Clear() {
  std::lock_guard hold(mutex_);
  for (auto& [number, held] : held_) RemoveHeld(held);
  held_.clear();
}

uint64_t ResidentIndex::RemoveDomain(uint32_t domain) {
  std::lock_guard hold(mutex_);
  return std::erase_if(held_, [&](const auto& item) {
    if (files_[item.second.at].domain != domain) return false;
    RemoveHeld(item.second);
    return true;
  });
}

bool ResidentIndex::IsRight(uint32_t slot, const DomainKey& key, const uint8_t* page, const Tag& tag) {
  uint8_t wanted[sizeof(Tag)];
  memcpy(wanted, &tag, sizeof wanted);
  uint64_t kept = HashOf(slot).load(std::memory_order_relaxed);
  if (kept != kNoPageHash && PageHash(key, page, wanted) == kept) return true;
  if (!VerifyPage(key, page, wanted)) return false;
  HashOf(slot).store(PageHash(key, page, wanted), std::memory_order_relaxed);
  return true;
}

ResidentIndex::Found ResidentIndex::CopyFrame(uint32_t slot, uint32_t domain, const Tag& tag, uint8_t* page) {
  const Part& part = parts_[slot / kPartFrames];
  std::atomic_ref<uint32_t> owner(const_cast<uint32_t&>(part.file));
  uint32_t named = owner.load(std::memory_order_acquire);
  if (named == 0) return Found::Elsewhere;
  File& file = files_[named - 1];
  std::atomic_ref<uint32_t> word(file.word);
  uint32_t now = word.load(std::memory_order_relaxed);
  do {
    if ((now & kLive) == 0) return Found::Elsewhere;
  } while (!word.compare_exchange_weak(now, now + 1, std::memory_order_acquire, std::memory_order_relaxed));
  // Inside: what belongs to this file now stays so. The file may be another than the one that was named above.
  Found found = Found::Elsewhere;
  if (owner.load(std::memory_order_acquire) == named && file.domain == domain) {
    uint32_t first = std::atomic_ref<uint32_t>(const_cast<uint32_t&>(part.first)).load(std::memory_order_relaxed);
    uint64_t frame = first + slot % kPartFrames;
    found = Found::Wrong;
    __builtin_prefetch(&hashes_[slot]);
    ssize_t got = pread(file.fd, page, kTagPage, static_cast<off_t>(frame * kTagPage));
    if (got == static_cast<ssize_t>(kTagPage) && IsRight(slot, *file.key, page, tag)) found = Found::Right;
  }
  word.fetch_sub(1, std::memory_order_release);
  return found;
}

bool ResidentIndex::Copy(uint32_t domain, const Tag& tag, uint8_t* page) {
  uint32_t stale[kMaxCopies];
  int copies = 0;
  bool right = false;
  for (int tries = 0; tries < kMaxTries && !right && copies < kMaxCopies && !tag.IsZero(); tries++) {
    uint64_t changes = tags_.Changes();
    uint32_t slot = tags_.First(tag);
    for (int step = 0; step < kMaxSteps && slot != kNoSlot && !right && copies < kMaxCopies; step++) {
      uint32_t next = tags_.Next(slot);
      if (tags_.Holds(slot, tag)) {
        Found found = CopyFrame(slot, domain, tag, page);
        right = found == Found::Right;
        if (found == Found::Wrong) stale[copies++] = slot;
      }
      slot = next;
    }
    if ((changes & 1) == 0 && tags_.Changes() == changes) break;
  }
  if (copies > 0) DropStale(stale, copies, tag);
  (right ? hits_ : misses_).Add();
  return right;
}

void ResidentIndex::DropStale(const uint32_t* slots, int count, const Tag& tag) {
  for (int i = 0; i < count; i++) stale_.Add();
  std::unique_lock hold(mutex_, std::try_to_lock);
  if (!hold.owns_lock()) return;  // whoever looks next drops it
  for (int i = 0; i < count; i++) {
    if (tags_.Holds(slots[i], tag)) tags_.Drop(slots[i]);
  }
}

ResidentStats ResidentIndex::Stats() {
  std::lock_guard hold(mutex_);
  uint64_t slots = (static_cast<uint64_t>(fresh_part_) - free_parts_.size()) * kPartFrames;
  return {.files = held_.size(),
          .frames = frames_,
          .listed = tags_.listed(),
          .different = tags_.different(),
          .hits = hits_.Get(),
          .misses = misses_.Get(),
          .stale = stale_.Get(),
          .index_bytes = slots * (ResidentTags::kEntryBytes + kPageHashBytes) + tags_.head_bytes()};
}

}  // namespace pagetide
