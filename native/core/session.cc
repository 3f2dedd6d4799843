#include "core/session.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "core/sanitizer.h"
#include "core/uffd_abi.h"

namespace pagetide {

namespace {

// What one UFFDIO_COPY may move while a fault may be waiting behind it: 64 KiB take about 30 µs.
constexpr uint64_t kMaxRunBytes = 64 * 1024;
constexpr uint32_t kMaxRunFrames = kMaxRunBytes / 4096;
constexpr uint32_t kMaxEvents = 64;
constexpr uint64_t kAddressLimit = 1ull << 47;

bool IsUserfault(int fd) {
  char link[64], target[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, target, sizeof target - 1);
  if (n < 0) return false;
  target[n] = 0;
  return strcmp(target, "anon_inode:[userfaultfd]") == 0;
}

// Every call on a userfaultfd is EINVAL before UFFDIO_API; a wake where nobody sleeps changes nothing.
bool IsNegotiated(int fd, const Region& region) {
  uffdio_range range{region.host, region.size};
  return ioctl(fd, UFFDIO_WAKE, &range) == 0 || errno != EINVAL;
}

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

uint64_t MonotonicNanos() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000ull + static_cast<uint64_t>(now.tv_nsec);
}

Result<std::vector<Region>> CheckLayout(int uffd, std::vector<Region> regions, uint64_t page_size) {
  if (page_size != 4096 && page_size != (2u << 20)) {
    return ArgumentError("page size must be 4096 or 2097152, not " + std::to_string(page_size));
  }
  if (regions.empty()) return ArgumentError("guest memory has at least one region");
  if (!IsUserfault(uffd)) return ArgumentError("descriptor " + std::to_string(uffd) + " is no userfaultfd");
  std::sort(regions.begin(), regions.end(), [](const Region& a, const Region& b) { return a.offset < b.offset; });
  uint64_t at = 0;
  for (const Region& region : regions) {
    uint64_t mask = page_size - 1;
    if (region.size == 0 || (region.size | region.host | region.offset) & mask)
      return ArgumentError("region is not aligned to the page size", region.host, region.size);
    if (region.host == 0 || region.host >= kAddressLimit || region.size > kAddressLimit - region.host)
      return ArgumentError("region lies outside user memory", region.host, region.size);
    if (region.offset != at)
      return ArgumentError("regions overlap or leave a gap at offset " + std::to_string(at), region.host, region.size);
    at += region.size;
  }
  std::vector<const Region*> by_host;
  for (const Region& region : regions) by_host.push_back(&region);
  std::sort(by_host.begin(), by_host.end(), [](const Region* a, const Region* b) { return a->host < b->host; });
  for (size_t i = 1; i < by_host.size(); i++) {
    const Region *low = by_host[i - 1], *high = by_host[i];
    if (low->host + low->size > high->host) return ArgumentError("regions overlap in memory", high->host, high->size);
  }
  if (!IsNegotiated(uffd, regions[0]))
    return ArgumentError("descriptor " + std::to_string(uffd) + " is a userfaultfd without UFFDIO_API");
  return regions;
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
  session->page_shift_ = static_cast<uint32_t>(__builtin_ctzll(options.page_size));
  session->max_run_ = static_cast<uint32_t>(std::max<uint64_t>(1, kMaxRunBytes / options.page_size));
  session->shared_ = options.shared;
  // Removes of shared memory change no state (the content stays in the file), so nothing has to be kept apart there.
  session->gated_ = !options.shared;
  session->stop_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (session->stop_fd_ < 0) return SyscallError("eventfd", errno);
  // poll() on a blocking userfaultfd reports an error on some kernels, and a read could block the worker.
  int flags = fcntl(options.uffd, F_GETFL);
  if (flags < 0 || fcntl(options.uffd, F_SETFL, flags | O_NONBLOCK) != 0) return SyscallError("fcntl", errno);
  // Last, so that a failure leaves no file.
  uint64_t bytes = session->regions_.back().offset + session->regions_.back().size;
  auto table = PageTable::Open(options.table_path, bytes / options.page_size, options.page_size, options.recover);
  if (!table.ok()) return table.error;
  session->table_ = table.value;
  int64_t outstanding = 0;
  for (uint64_t f = 0; f < session->frames(); f++) outstanding += IsOutstanding(session->table_->Get(f)) ? 1 : 0;
  session->outstanding_ = outstanding;
  session->uffd_ = options.uffd;
  return session;
}

FaultSession::~FaultSession() {
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

void FaultSession::UnregisterRegions(size_t count) {
  for (size_t i = 0; i < count; i++) {
    uffdio_range range{regions_[i].host, regions_[i].size};
    ioctl(uffd_, UFFDIO_UNREGISTER, &range);
  }
}

Error FaultSession::Register() {
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

Outcome FaultSession::CopyRun(uint64_t frame, uint32_t run, const uint8_t* pages, const FrameState* before,
                              Installed* result) {
  const Region* region = RegionOfFrame(frame);
  uint64_t host = region->host + ((frame << page_shift_) - region->offset);
  uint32_t done = 0;
  Outcome outcome = Outcome::Done;
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
    result->installed += got;
    if (ret == 0 || got > 0) continue;  // a partial copy: the next attempt tells the true error of the next page
    if (err == EAGAIN) {
      outcome = Outcome::Again;
    } else if (err == EEXIST) {
      outcome = Outcome::Foreign;
      table_->counter(kForeign).fetch_add(1, std::memory_order_relaxed);
    } else if (err == ESRCH) {
      outcome = Outcome::Gone;
    } else {
      outcome = Outcome::Failed;
      result->err = err;
    }
    break;
  }
  for (uint32_t i = done; i < run; i++) table_->Set(frame + i, before[i]);
  table_->counter(kInstalled).fetch_add(done, std::memory_order_relaxed);
  outstanding_.fetch_sub(done, std::memory_order_acq_rel);
  result->next = frame + done;
  return outcome;
}

Installed FaultSession::Install(uint64_t frame, uint64_t count, const uint8_t* pages) {
  if (!CheckFrames(frame, count)) return Refused(frame);
  Installed result;
  uint64_t end = frame + count;
  result.next = frame;
  FrameState before[kMaxRunFrames];
  while (result.next < end && result.outcome == Outcome::Done) {
    uint64_t at = result.next;
    EnterInstall();
    uint32_t run = ClaimRun(at, end, before);
    if (run > 0) result.outcome = CopyRun(at, run, pages + ((at - frame) << page_shift_), before, &result);
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
      result.outcome = CopyRun(frame + i, 1, arena + (static_cast<uint64_t>(slots[i]) << page_shift_), before, &result);
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
  if (!CheckFrames(frame, count)) return Refused(frame);
  Installed result;
  for (result.next = frame; result.next < frame + count; result.next++) {
    EnterInstall();
    result.outcome = ZeroOne(result.next, &result);
    LeaveInstall();
    if (result.outcome != Outcome::Done) break;
  }
  return result;
}

uint64_t FaultSession::MarkZero(uint64_t frame, uint64_t count) {
  if (!CheckFrames(frame, count)) return 0;
  uint64_t changed = 0;
  for (uint64_t f = frame; f < frame + count; f++) {
    FrameState from = table_->Get(f);
    bool moved = false;
    while (NeedsContent(from) && !(moved = table_->Move(f, from, FrameState::Zero))) {
    }
    changed += moved ? 1 : 0;
  }
  outstanding_.fetch_sub(static_cast<int64_t>(changed), std::memory_order_acq_rel);
  return changed;
}

Error FaultSession::Wake(uint64_t frame, uint64_t count) {
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

void FaultSession::Reset(uint64_t frame, uint64_t count, FrameState state) {
  if (!CheckFrames(frame, count)) return;
  for (uint64_t f = frame; f < frame + count; f++) {
    bool before = IsOutstanding(table_->Get(f)), after = IsOutstanding(state);
    table_->Set(f, state);
    if (before != after) outstanding_.fetch_add(after ? 1 : -1, std::memory_order_acq_rel);
  }
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
