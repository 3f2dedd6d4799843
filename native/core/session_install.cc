// Putting pages into guest memory: runs of frames are claimed, then copied (or written), then present.
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "core/session.h"
#include "core/uffd_abi.h"

namespace pagetide {

namespace {

// One huge page of zeros, for pages that UFFDIO_ZEROPAGE cannot make (hugetlbfs has no shared zero page).
const uint8_t* HugeZero() {
  static const uint8_t* zero = [] {
    void* p = mmap(nullptr, 2 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? nullptr : static_cast<const uint8_t*>(p);
  }();
  return zero;
}

// Frames outside the session, or no room for a page: nothing was tried.
Installed Refused(uint64_t frame) {
  Installed result;
  result.outcome = Outcome::Failed;
  result.next = frame;
  result.err = EINVAL;
  return result;
}

}  // namespace

uint32_t FaultSession::ClaimRun(uint64_t frame, uint64_t limit, FrameState* before) {
  const Region* region = RegionOfFrame(frame);
  uint64_t end = std::min({limit, frame + max_run_, (region->offset + region->size) >> page_shift_});
  uint32_t run = 0;
  for (uint64_t f = frame; f < end; f++, run++) {
    FrameState from = table_->Get(f);
    bool moved = false;
    while (NeedsContent(from) && !(moved = table_->Move(f, from, FrameState::Installing))) {
    }
    if (!moved) break;
    before[run] = from;
  }
  return run;
}

Outcome FaultSession::PutRun(uint64_t frame, uint32_t run, const uint8_t* pages, const FrameState* before,
                             Origin origin, Installed* result) {
  uint32_t done = 0;
  Outcome outcome =
      files_.empty() ? CopyRun(frame, run, pages, &done, result) : WriteRun(frame, run, pages, origin, &done, result);
  result->installed += done;
  for (uint32_t i = done; i < run; i++) table_->Set(frame + i, before[i]);
  table_->counter(kInstalled).fetch_add(done, std::memory_order_relaxed);
  outstanding_.fetch_sub(done, std::memory_order_acq_rel);
  result->next = frame + done;
  return outcome;
}

Outcome FaultSession::CopyRun(uint64_t frame, uint32_t run, const uint8_t* pages, uint32_t* copied_frames,
                              Installed* result) {
  const Region* region = RegionOfFrame(frame);
  uint64_t host = region->host + ((frame << page_shift_) - region->offset);
  uint32_t& done = *copied_frames;
  while (done < run) {
    uffdio_copy arg{};
    arg.dst = host + (static_cast<uint64_t>(done) << page_shift_);
    arg.src = reinterpret_cast<uint64_t>(pages) + (static_cast<uint64_t>(done) << page_shift_);
    arg.len = static_cast<uint64_t>(run - done) << page_shift_;
    int ret = ioctl(uffd_, UFFDIO_COPY, &arg);
    int err = ret == 0 ? 0 : errno;
    int64_t copied = static_cast<int64_t>(arg.copy);
    uint32_t got = copied > 0 ? static_cast<uint32_t>(copied >> page_shift_) : 0;
    for (uint32_t i = 0; i < got; i++) table_->Set(frame + done + i, FrameState::Present);
    done += got;
    if (ret == 0 || got > 0) continue;  // a partial copy: the next attempt tells the true error of the next page
    if (err == EAGAIN) return Outcome::Again;
    if (err == ESRCH) return Outcome::Gone;
    if (err == EEXIST) {
      table_->counter(kForeign).fetch_add(1, std::memory_order_relaxed);
      return Outcome::Foreign;
    }
    result->err = err;
    return Outcome::Failed;
  }
  return Outcome::Done;
}

Installed FaultSession::Install(uint64_t frame, uint64_t count, const uint8_t* pages, Origin origin) {
  if (!CheckFrames(frame, count)) return Refused(frame);
  Installed result;
  uint64_t end = frame + count;
  result.next = frame;
  FrameState before[kMaxRunFrames];
  while (result.next < end && result.outcome == Outcome::Done) {
    uint64_t at = result.next;
    EnterInstall();
    uint32_t run = ClaimRun(at, end, before);
    if (run > 0) result.outcome = PutRun(at, run, pages + ((at - frame) << page_shift_), before, origin, &result);
    LeaveInstall();
    if (run == 0) {
      result.skipped++;
      result.next = at + 1;
    }
  }
  table_->counter(kSkipped).fetch_add(result.skipped, std::memory_order_relaxed);
  return result;
}

Installed FaultSession::InstallFromFile(uint64_t frame, uint64_t count, int fd, uint64_t offset, uint8_t* scratch,
                                        size_t scratch_size) {
  if (!CheckFrames(frame, count) || scratch_size < page_size_) return Refused(frame);
  Installed result;
  uint64_t end = frame + count;
  result.next = frame;
  uint64_t batch = std::min<uint64_t>(scratch_size >> page_shift_, max_run_);
  while (result.next < end && result.outcome == Outcome::Done) {
    uint64_t at = result.next;
    if (!NeedsContent(table_->Get(at))) {
      result.skipped++;
      table_->counter(kSkipped).fetch_add(1, std::memory_order_relaxed);
      result.next = at + 1;
      continue;
    }
    uint64_t want = std::min(batch, end - at) << page_shift_;
    uint64_t got = 0;
    while (got < want) {
      ssize_t n =
          pread(fd, scratch + got, want - got, static_cast<off_t>(offset + ((at - frame) << page_shift_) + got));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) {
        result.outcome = Outcome::Failed;
        result.err = errno;
        return result;
      }
      if (n == 0) break;
      got += static_cast<uint64_t>(n);
    }
    uint64_t whole = got >> page_shift_;
    if (whole == 0) {
      result.outcome = Outcome::Short;  // the file ends here: nothing is padded
      return result;
    }
    Installed part = Install(at, whole, scratch);
    result.installed += part.installed;
    result.skipped += part.skipped;
    result.next = part.next;
    result.outcome = part.outcome;
    result.err = part.err;
  }
  return result;
}

Installed FaultSession::InstallFromSlots(uint64_t frame, uint64_t count, const uint8_t* arena, uint64_t slots_in_arena,
                                         const uint32_t* slots) {
  if (!CheckFrames(frame, count)) return Refused(frame);
  Installed result;
  result.next = frame;
  FrameState before[kMaxRunFrames];
  for (uint64_t i = 0; i < count && result.outcome == Outcome::Done; i++) {
    if (slots[i] >= slots_in_arena) {
      result.outcome = Outcome::Short;
      break;
    }
    EnterInstall();
    uint32_t run = ClaimRun(frame + i, frame + i + 1, before);
    if (run > 0) {
      const uint8_t* page = arena + (static_cast<uint64_t>(slots[i]) << page_shift_);
      result.outcome = PutRun(frame + i, 1, page, before, Origin::Source, &result);
    } else {
      result.skipped++;
      result.next = frame + i + 1;
    }
    LeaveInstall();
  }
  table_->counter(kSkipped).fetch_add(result.skipped, std::memory_order_relaxed);
  return result;
}

// Inside the gate. Never replaces a page: UFFDIO_ZEROPAGE and UFFDIO_COPY answer EEXIST where one is.
Outcome FaultSession::ZeroOne(uint64_t frame, Installed* result) {
  FrameState before = table_->Get(frame);
  bool claimed = false;
  while ((before == FrameState::Zero || before == FrameState::Removed) &&
         !(claimed = table_->Move(frame, before, FrameState::InstallingZero))) {
  }
  if (!claimed && before != FrameState::Present) {
    result->skipped++;
    return Outcome::Done;
  }
  const Region* region = RegionOfFrame(frame);
  uint64_t host = region->host + ((frame << page_shift_) - region->offset);
  int ret, err;
  int64_t moved;
  if (page_size_ == 4096) {
    uffdio_zeropage arg{};
    arg.range = {host, page_size_};
    ret = ioctl(uffd_, UFFDIO_ZEROPAGE, &arg);
    err = errno;
    moved = arg.zeropage;
  } else {
    uffdio_copy arg{};
    arg.dst = host;
    arg.src = reinterpret_cast<uint64_t>(HugeZero());
    arg.len = page_size_;
    ret = ioctl(uffd_, UFFDIO_COPY, &arg);
    err = errno;
    moved = static_cast<int64_t>(arg.copy);
  }
  if (ret == 0 || moved > 0) {
    if (claimed) table_->Set(frame, FrameState::Present);
    table_->counter(kZeroInstalled).fetch_add(1, std::memory_order_relaxed);
    result->installed++;
    return Outcome::Done;
  }
  if (claimed) table_->Set(frame, before);
  if (err == EEXIST) {
    if (before == FrameState::Zero) {
      table_->counter(kForeign).fetch_add(1, std::memory_order_relaxed);
      return Outcome::Foreign;
    }
    // Present: the fault was late. Removed: the guest's madvise has not dropped the page yet; it faults again after.
    if (Error error = Wake(frame, 1)) {
      result->err = error.err;
      return Outcome::Failed;
    }
    result->skipped++;
    return Outcome::Done;
  }
  if (err == EAGAIN) return Outcome::Again;
  if (err == ESRCH) return Outcome::Gone;
  result->err = err;
  return Outcome::Failed;
}

Installed FaultSession::InstallZero(uint64_t frame, uint64_t count) {
  if (!CheckFrames(frame, count) || uffd_ < 0) return Refused(frame);
  Installed result;
  for (result.next = frame; result.next < frame + count; result.next++) {
    EnterInstall();
    result.outcome = ZeroOne(result.next, &result);
    LeaveInstall();
    if (result.outcome != Outcome::Done) break;
  }
  return result;
}

}  // namespace pagetide
