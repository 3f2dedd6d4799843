#include "core/session.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/sanitizer.h"

namespace pagetide {

uint64_t MonotonicNanos() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000ull + static_cast<uint64_t>(now.tv_nsec);
}

Result<std::shared_ptr<FaultSession>> FaultSession::Create(Options options) {
  auto layout = CheckLayout(options.uffd, options.regions, options.page_size);
  if (!layout.ok()) return layout.error;
  std::shared_ptr<FaultSession> session(new FaultSession());
  session->regions_ = std::move(layout.value);
  for (const Region& region : session->regions_) session->by_host_.push_back(&region);
  std::sort(session->by_host_.begin(), session->by_host_.end(),
            [](const Region* a, const Region* b) { return a->host < b->host; });
  session->page_size_ = options.page_size;
  session->shared_ = options.shared;
  // Removes of shared memory change no state (the content stays in the file), so nothing has to be kept apart there.
  session->gated_ = !options.shared;
  session->stop_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (session->stop_fd_ < 0) return SyscallError("eventfd", errno);
  // poll() on a blocking userfaultfd reports an error on some kernels, and a read could block the worker.
  int flags = fcntl(options.uffd, F_GETFL);
  if (flags < 0 || fcntl(options.uffd, F_SETFL, flags | O_NONBLOCK) != 0) return SyscallError("fcntl", errno);
  // Last, so that a failure leaves no file.
  if (Error error = session->SetUp(options.table_path, options.recover)) return error;
  session->uffd_ = options.uffd;
  return session;
}

Error FaultSession::SetUp(const std::string& table_path, bool recover) {
  page_shift_ = static_cast<uint32_t>(__builtin_ctzll(page_size_));
  max_run_ = static_cast<uint32_t>(std::max<uint64_t>(1, kMaxRunBytes / page_size_));
  uint64_t bytes = regions_.back().offset + regions_.back().size;
  auto table = PageTable::Open(table_path, bytes / page_size_, page_size_, recover);
  if (!table.ok()) return table.error;
  table_ = table.value;
  int64_t outstanding = 0;
  for (uint64_t f = 0; f < frames(); f++) outstanding += IsOutstanding(table_->Get(f)) ? 1 : 0;
  outstanding_ = outstanding;
  return {};
}

FaultSession::~FaultSession() {
  for (int file : files_) close(file);
  if (uffd_ >= 0) close(uffd_);
  if (stop_fd_ >= 0) close(stop_fd_);
}

const Region* FaultSession::RegionOfFrame(uint64_t frame) const {
  uint64_t offset = frame << page_shift_;
  size_t low = 0, high = regions_.size();
  while (high - low > 1) {
    size_t middle = (low + high) / 2;
    (regions_[middle].offset <= offset ? low : high) = middle;
  }
  return &regions_[low];
}

const Region* FaultSession::RegionOfAddress(uint64_t address) const {
  size_t low = 0, high = by_host_.size();
  while (high - low > 1) {
    size_t middle = (low + high) / 2;
    (by_host_[middle]->host <= address ? low : high) = middle;
  }
  const Region* region = by_host_[low];
  return address >= region->host && address - region->host < region->size ? region : nullptr;
}

uint64_t FaultSession::Claim(uint64_t frame, uint64_t count, FrameState as) {
  if (!CheckFrames(frame, count)) return 0;
  uint64_t claimed = 0;
  for (uint64_t f = frame; f < frame + count; f++) {
    FrameState from = FrameState::Missing;
    bool moved = table_->Move(f, from, as);
    if (as == FrameState::Wanted) {
      if (!moved && from == FrameState::InFlight) moved = table_->Move(f, from, as);
    } else if (!moved) {
      break;
    }
    claimed += moved ? 1 : 0;
  }
  return claimed;
}

uint64_t FaultSession::Release(uint64_t frame, uint64_t count, FrameState from) {
  if (!CheckFrames(frame, count) || !(from == FrameState::Wanted || from == FrameState::InFlight)) return 0;
  uint64_t released = 0;
  for (uint64_t f = frame; f < frame + count; f++) {
    FrameState expected = from;
    if (table_->Get(f) != from) continue;  // a look is far cheaper than a swap, and all frames may be asked
    released += table_->Move(f, expected, FrameState::Missing) ? 1 : 0;
  }
  return released;
}

uint64_t FaultSession::NextMissing(uint64_t frame) const {
  if (frame >= frames()) return frames();
  // Missing is 0: memchr runs at memory speed. A byte that changes meanwhile costs a failed claim, nothing else.
  static_assert(static_cast<int>(FrameState::Missing) == 0);
  RacyReads racy;
  const void* hit = memchr(table_->bytes() + frame, 0, frames() - frame);
  return hit == nullptr ? frames() : static_cast<uint64_t>(static_cast<const uint8_t*>(hit) - table_->bytes());
}

uint64_t FaultSession::MarkZero(uint64_t frame, uint64_t count) {
  if (!CheckFrames(frame, count)) return 0;
  uint64_t changed = 0;
  for (uint64_t f = frame; f < frame + count; f++) {
    if (!files_.empty()) {
      changed += ZeroInFile(f) ? 1 : 0;
      continue;
    }
    FrameState from = table_->Get(f);
    bool moved = false;
    while (NeedsContent(from) && !(moved = table_->Move(f, from, FrameState::Zero))) {
    }
    changed += moved ? 1 : 0;
  }
  outstanding_.fetch_sub(static_cast<int64_t>(changed), std::memory_order_acq_rel);
  return changed;
}

void FaultSession::Reset(uint64_t frame, uint64_t count, FrameState state) {
  if (!CheckFrames(frame, count)) return;
  for (uint64_t f = frame; f < frame + count; f++) {
    bool before = IsOutstanding(table_->Get(f)), after = IsOutstanding(state);
    table_->Set(f, state);
    if (before != after) outstanding_.fetch_add(after ? 1 : -1, std::memory_order_acq_rel);
  }
}

Error FaultSession::Adopt(const FaultSession& from) {
  if (from.frames() != frames() || from.page_size() != page_size_)
    return ArgumentError("the other session is of other memory");
  int64_t outstanding = 0;
  for (uint64_t f = 0; f < frames(); f++) {
    FrameState state = from.table_->Get(f);
    if (state != FrameState::Present && state != FrameState::Zero) state = FrameState::Missing;
    table_->Set(f, state);
    outstanding += IsOutstanding(state) ? 1 : 0;
  }
  outstanding_.store(outstanding, std::memory_order_release);
  return {};
}

uint64_t FaultSession::Reconcile(const uint32_t* present, size_t pairs) {
  uint64_t foreign = 0;
  size_t pair = 0;
  for (uint64_t f = 0; f < frames(); f++) {
    while (pair < pairs && f >= static_cast<uint64_t>(present[2 * pair]) + present[2 * pair + 1]) pair++;
    bool here = pair < pairs && f >= present[2 * pair];
    FrameState state = table_->Get(f);
    switch (state) {
      case FrameState::Missing:
      case FrameState::Wanted:
      case FrameState::InFlight:
        foreign += here ? 1 : 0;
        Reset(f, 1, FrameState::Missing);
        break;
      case FrameState::Installing:
        // The copy either happened before the crash or it didn't: both are whole. If it happened and the guest then
        // dropped the page, its old content comes back, which a guest that gave a page up may not rely on either way;
        // taking it for removed could make a zero page of one that never came, which is the worse mistake.
        Reset(f, 1, here ? FrameState::Present : FrameState::Missing);
        break;
      case FrameState::InstallingZero:
        Reset(f, 1, here ? FrameState::Present : FrameState::Removed);
        break;
      case FrameState::Present:
        if (!here) Reset(f, 1, FrameState::Removed);
        break;
      case FrameState::Zero:
        foreign += here ? 1 : 0;
        break;
      case FrameState::Removed:
        break;
    }
  }
  table_->counter(kForeign).fetch_add(foreign, std::memory_order_relaxed);
  return foreign;
}

SessionCounts FaultSession::Counts() const {
  uint64_t states[kFrameStates] = {};
  for (uint64_t f = 0; f < frames(); f++) states[static_cast<uint8_t>(table_->Get(f)) % kFrameStates]++;
  SessionCounts counts{};
  counts.total = frames();
  counts.outstanding = states[0] + states[1] + states[2] + states[3];
  counts.wanted = states[1];
  counts.present = states[4];
  counts.removed = states[5];
  counts.zero = states[6] + states[7];
  counts.installed = table_->counter(kInstalled).load(std::memory_order_relaxed);
  counts.zero_installed = table_->counter(kZeroInstalled).load(std::memory_order_relaxed);
  counts.skipped = table_->counter(kSkipped).load(std::memory_order_relaxed);
  counts.faults = table_->counter(kFaults).load(std::memory_order_relaxed);
  counts.removes = table_->counter(kRemoves).load(std::memory_order_relaxed);
  counts.foreign = table_->counter(kForeign).load(std::memory_order_relaxed);
  return counts;
}

}  // namespace pagetide
