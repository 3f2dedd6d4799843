// The userfaultfd of a session: registering, waiting for faults and removes, waking, letting go.
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "core/session.h"
#include "core/uffd_abi.h"

namespace pagetide {

namespace {

constexpr uint32_t kMaxEvents = 64;

Error NoUserfault() {
  return ArgumentError("the session writes to files: it has no userfaultfd");
}

}  // namespace

void FaultSession::UnregisterRegions(size_t count) {
  for (size_t i = 0; i < count; i++) {
    uffdio_range range{regions_[i].host, regions_[i].size};
    ioctl(uffd_, UFFDIO_UNREGISTER, &range);
  }
}

Error FaultSession::Register() {
  if (uffd_ < 0) return NoUserfault();
  constexpr uint64_t kNeeded = 1ull << _UFFDIO_COPY | 1ull << _UFFDIO_WAKE;
  for (size_t i = 0; i < regions_.size(); i++) {
    const Region& region = regions_[i];
    uffdio_register arg{};
    arg.range = {region.host, region.size};
    arg.mode = UFFDIO_REGISTER_MODE_MISSING;
    if (ioctl(uffd_, UFFDIO_REGISTER, &arg) != 0) {
      Error error = SyscallError("UFFDIO_REGISTER", errno, region.host, region.size);
      // The kernel says ENOMEM for a process that is gone, too.
      if (error.err == ENOMEM && Probe() == ESRCH) error.err = ESRCH;
      if (error.err == EBUSY) error.detail = "another userfaultfd has this memory";
      if (error.err == EINVAL) error.detail = "no mapping there, or of a kind that the kernel cannot serve";
      if (error.err == ESRCH) error.detail = "the guest's process is gone";
      UnregisterRegions(i);
      return error;
    }
    Error error;
    if ((arg.ioctls & kNeeded) != kNeeded) {
      error = SyscallError("UFFDIO_REGISTER", EOPNOTSUPP, region.host, region.size, "no UFFDIO_COPY for this memory");
    } else if (bool huge = (arg.ioctls & 1ull << _UFFDIO_ZEROPAGE) == 0; huge != (page_size_ != 4096)) {
      // The kernel offers ZEROPAGE for everything but hugetlb. With frames of another size than the kernel's pages,
      // copies fail, or a remove of a part of a frame could not be told from one of the whole.
      error = ArgumentError("the session's page size " + std::to_string(page_size_) + " is not that of the memory, " +
                                (huge ? "which is of huge pages" : "which is of 4096 bytes"),
                            region.host, region.size);
    }
    if (!error.ok()) {
      UnregisterRegions(i + 1);
      return error;
    }
  }
  return {};
}

int FaultSession::Probe() const {
  // Address 0 is never mapped here: the copy fails with EFAULT at the latest, after the kernel has looked at the
  // process and at pending events.
  uffdio_copy arg{};
  arg.dst = regions_[0].host;
  arg.src = 0;
  arg.len = page_size_;
  return ioctl(uffd_, UFFDIO_COPY, &arg) == 0 ? 0 : errno;
}

Error FaultSession::Unregister(bool force) {
  if (uffd_ < 0) return NoUserfault();
  int64_t left = outstanding_.load();
  if (left > 0 && !force) {
    // Missing frames would read as zero from now on: the one thing that must never happen by mistake.
    return ArgumentError(std::to_string(left) + " frames still lack their content; unregistering would make them zero");
  }
  Error first;
  for (const Region& region : regions_) {
    uffdio_range range{region.host, region.size};
    if (ioctl(uffd_, UFFDIO_UNREGISTER, &range) == 0) {
      // UNREGISTER itself wakes who waits, but before it shuts out faults that run under the lock of their mapping
      // alone (Linux 6.7 on): a thread that queues itself in between would sleep for ever. Nobody can begin to wait
      // now.
      ioctl(uffd_, UFFDIO_WAKE, &range);
      continue;
    }
    int err = errno;
    if (Probe() == ESRCH) return {};  // for which UFFDIO_UNREGISTER says ENOMEM
    if (first.ok()) first = SyscallError("UFFDIO_UNREGISTER", err, region.host, region.size);
  }
  if (!first.ok()) return first;
  // A thread of the guest that was in madvise() waits until its event has been read, registered or not, as long as any
  // copy of the descriptor is open: one is, in the guest's own process. No event can begin any more: the kernel counts
  // an event as under way while it holds the lock that UNREGISTER needed.
  while (Probe() == EAGAIN) {
    Waited waited;
    uint32_t frames[kMaxEvents];
    // EAGAIN: another thread reads, or the guest has yet to queue its event or to take note of the reading
    if (ReadEvents(frames, kMaxEvents, &waited) != 0) sched_yield();
  }
  return {};
}

void FaultSession::Stop() {
  stopped_.store(true, std::memory_order_release);
  uint64_t one = 1;
  // never drained: every later wait sees it too
  [[maybe_unused]] ssize_t n = write(stop_fd_, &one, sizeof one);
}

Error FaultSession::Wait(uint32_t* frames, uint32_t capacity, int timeout_ms, int spin_us, int loop_fd, Waited* waited,
                         int socket_fd) {
  *waited = {};
  if (uffd_ < 0) return NoUserfault();
  if (capacity == 0) return ArgumentError("no room for faults");
  if (waiting_.exchange(true)) return MakeError(ErrorKind::Internal, "two threads wait on one session");
  struct Leave {
    std::atomic<bool>& flag;
    ~Leave() { flag.store(false); }
  } leave{waiting_};

  // poll ignores negative descriptors
  pollfd fds[4] = {{uffd_, POLLIN, 0}, {stop_fd_, POLLIN, 0}, {loop_fd, POLLIN, 0}, {socket_fd, POLLIN, 0}};
  nfds_t count = socket_fd < 0 ? 3 : 4;
  waited->entered_ns = MonotonicNanos();
  uint64_t spin_until = timeout_ms == 0 ? 0 : waited->entered_ns + static_cast<uint64_t>(spin_us) * 1000;
  int ready = poll(fds, count, 0);
  while (ready == 0 && MonotonicNanos() < spin_until) ready = poll(fds, count, 0);
  if (ready == 0 && timeout_ms != 0) ready = poll(fds, count, timeout_ms);
  if (ready < 0) {
    if (errno == EINTR) return {};
    return SyscallError("poll", errno);
  }
  if (fds[1].revents != 0) waited->flags |= kWaitStop;
  if (fds[2].revents != 0) waited->flags |= kWaitLoop;
  if (fds[3].revents != 0) waited->flags |= kWaitSocket;
  if (fds[0].revents & (POLLERR | POLLHUP | POLLNVAL)) waited->flags |= kWaitHangup;
  if (!(fds[0].revents & POLLIN)) {
    waited->read_ns = MonotonicNanos();
    return {};
  }

  int err = ReadEvents(frames, capacity, waited);
  waited->read_ns = MonotonicNanos();
  if (err != 0 && err != EAGAIN && err != EINTR) return SyscallError("read(userfaultfd)", err);
  return {};
}

int FaultSession::ReadEvents(uint32_t* frames, uint32_t capacity, Waited* waited) {
  // The gate admits one reader. Two can meet only when a session is unregistered while a thread waits; the other then
  // reads what there is.
  if (reading_.exchange(true, std::memory_order_acquire)) return EAGAIN;
  uffd_msg events[kMaxEvents];
  uint32_t room = std::min(capacity, kMaxEvents);
  if (gated_) gate_.EnterRead();
  ssize_t n = read(uffd_, events, room * sizeof(uffd_msg));
  int err = errno;
  uint32_t count = n > 0 ? static_cast<uint32_t>(n) / sizeof(uffd_msg) : 0;
  // Removes first: a fault of this batch may have been caused by one of them.
  for (uint32_t i = 0; i < count; i++) {
    if (events[i].event == UFFD_EVENT_REMOVE || events[i].event == UFFD_EVENT_UNMAP)
      ApplyRemove(events[i].arg.remove.start, events[i].arg.remove.end, waited);
  }
  if (gated_) gate_.LeaveRead();
  reading_.store(false, std::memory_order_release);
  if (n < 0) return err;
  for (uint32_t i = 0; i < count; i++) {
    if (events[i].event != UFFD_EVENT_PAGEFAULT) continue;
    uint64_t address = events[i].arg.pagefault.address;
    const Region* region = RegionOfAddress(address);
    if (region == nullptr) continue;  // not ours: the VMM registered more than it told
    frames[waited->faults++] = static_cast<uint32_t>((region->offset + (address - region->host)) >> page_shift_);
  }
  table_->counter(kFaults).fetch_add(waited->faults, std::memory_order_relaxed);
  return 0;
}

// Private memory: from now on these frames are zero, whatever they were. No frame is being installed (the gate).
// Shared memory: MADV_DONTNEED sends this event and leaves the content in the file, so a frame that is present stays
// present and one that is missing still gets its content. If the pages were punched, a fault on a present frame tells.
void FaultSession::ApplyRemove(uint64_t start, uint64_t end, Waited* waited) {
  table_->counter(kRemoves).fetch_add(1, std::memory_order_relaxed);
  waited->flags |= kWaitRemoved;
  if (shared_) return;
  for (const Region& region : regions_) {
    uint64_t from = std::max(start, region.host), to = std::min(end, region.host + region.size);
    if (from >= to) continue;
    // A page that is only partly inside keeps its content: MADV_DONTNEED works on whole pages.
    uint64_t first = (region.offset + (from - region.host) + page_size_ - 1) >> page_shift_;
    uint64_t last = (region.offset + (to - region.host)) >> page_shift_;
    for (uint64_t frame = first; frame < last; frame++) {
      FrameState before = table_->Get(frame);
      while (!table_->Move(frame, before, FrameState::Removed)) {
      }
      if (IsOutstanding(before)) outstanding_.fetch_sub(1, std::memory_order_acq_rel);
      waited->removes++;
    }
  }
}

Error FaultSession::Wake(uint64_t frame, uint64_t count) {
  if (uffd_ < 0) return NoUserfault();
  if (!CheckFrames(frame, count)) return ArgumentError("frames outside the session", frame, count);
  while (count > 0) {
    const Region* region = RegionOfFrame(frame);
    uint64_t here = std::min(count, ((region->offset + region->size) >> page_shift_) - frame);
    uffdio_range range{region->host + ((frame << page_shift_) - region->offset), here << page_shift_};
    if (ioctl(uffd_, UFFDIO_WAKE, &range) != 0 && errno != ESRCH)
      return SyscallError("UFFDIO_WAKE", errno, range.start, range.len);
    frame += here;
    count -= here;
  }
  return {};
}

}  // namespace pagetide
