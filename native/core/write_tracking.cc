#include "core/write_tracking.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace pagetide {

namespace {

// linux/fs.h, Linux 6.7
constexpr uint64_t kWpMatching = 1, kCheckWpAsync = 2;
constexpr uint64_t kWpAllowed = 1, kWritten = 2;

constexpr uint64_t kPage = 4096;

std::string NameOf(int pid) {
  return "process " + std::to_string(pid);
}

Error Gone(int pid, const char* call) {
  return SyscallError(call, ESRCH, 0, 0, NameOf(pid) + " is gone");
}

Error Unsupported(std::string what) {
  return MakeError(ErrorKind::Unsupported, what + "; tracking writes needs Linux 6.7 or newer");
}

PagemapScanArg ScanArg(const Region& region, uint64_t from, uint64_t flags, uint64_t category, PageRegion* vec,
                       size_t vec_len) {
  PagemapScanArg arg{};
  arg.size = sizeof arg;
  arg.flags = flags;
  arg.start = region.host + from;
  arg.end = region.host + region.size;
  arg.vec = reinterpret_cast<uint64_t>(vec);
  arg.vec_len = vec_len;
  arg.category_mask = category;
  arg.return_mask = category;
  return arg;
}

}  // namespace

const uint64_t kTrackingFeatures = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_ASYNC |
                                   UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;

Result<std::shared_ptr<WriteTracker>> WriteTracker::Create(const Options& options) {
  if (options.pid <= 0) return ArgumentError("no process " + std::to_string(options.pid));
  auto layout = CheckLayout(options.uffd, options.regions, options.page_size);
  if (!layout.ok()) return layout.error;
  std::shared_ptr<WriteTracker> tracker(new WriteTracker());
  tracker->pid_ = options.pid;
  tracker->page_size_ = options.page_size;
  tracker->regions_ = std::move(layout.value);
  const Region& last = tracker->regions_.back();
  tracker->frames_ = (last.offset + last.size) / options.page_size;
  if (tracker->frames_ > UINT32_MAX) return ArgumentError("a guest has fewer than 2^32 frames");
  std::string path = "/proc/" + std::to_string(options.pid) + "/pagemap";
  tracker->pagemap_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (tracker->pagemap_ < 0) {
    if (errno == EACCES || errno == EPERM)
      return MakeError(ErrorKind::Permission,
                       "the memory of " + NameOf(options.pid) + " may not be looked at: it needs CAP_SYS_PTRACE");
    if (errno == ENOENT || errno == ESRCH) return Gone(options.pid, "open(pagemap)");
    return SyscallError("open(pagemap)", errno, 0, 0, NameOf(options.pid));
  }
  // On failure the caller keeps the descriptor: it is forgotten below, before the destructor could close it.
  tracker->uffd_ = options.uffd;
  Error error = tracker->CheckAlive();
  if (error.ok()) error = tracker->Register();
  if (error.ok()) {
    error = tracker->CheckCover();
    if (!error.ok()) tracker->UnregisterRegions(tracker->regions_.size());
  }
  if (!error.ok()) {
    tracker->uffd_ = -1;
    return error;
  }
  return tracker;
}

WriteTracker::~WriteTracker() {
  Close();
  if (pagemap_ >= 0) close(pagemap_);
}

Error WriteTracker::Register() {
  for (size_t i = 0; i < regions_.size(); i++) {
    const Region& region = regions_[i];
    uffdio_register arg{};
    arg.range = {region.host, region.size};
    arg.mode = UFFDIO_REGISTER_MODE_WP;
    if (ioctl(uffd_, UFFDIO_REGISTER, &arg) == 0) continue;
    Error error = SyscallError("UFFDIO_REGISTER", errno, region.host, region.size);
    UnregisterRegions(i);
    // The kernel says ENOMEM for a process that is gone, too.
    if (!CheckAlive().ok()) return Gone(pid_, "UFFDIO_REGISTER");
    if (error.err == EBUSY) error.detail = "another userfaultfd has this memory";
    if (error.err == EINVAL) {
      error.detail =
          "no mapping there, of another page size, or of a kind whose writes this userfaultfd can't track: it must "
          "have "
          "been made with the features for tracking (Linux 6.7)";
    }
    return error;
  }
  return {};
}

void WriteTracker::UnregisterRegions(size_t count) {
  for (size_t i = 0; i < count; i++) {
    uffdio_range range{regions_[i].host, regions_[i].size};
    ioctl(uffd_, UFFDIO_UNREGISTER, &range);
  }
}

Error WriteTracker::CheckAlive() const {
  // To PAGEMAP_SCAN a process that has ended is one in which nothing was written; a read of its pagemap says the truth.
  uint64_t entry;
  ssize_t n = pread(pagemap_, &entry, sizeof entry, static_cast<off_t>(regions_[0].host / kPage * sizeof entry));
  if (n == static_cast<ssize_t>(sizeof entry)) return {};
  if (n == 0 || errno == ESRCH) return Gone(pid_, "pread(pagemap)");
  return SyscallError("pread(pagemap)", errno, 0, 0, NameOf(pid_));
}

Error WriteTracker::CheckCover() {
  // A pid that names another process than the userfaultfd's has other memory there, or none: to a scan the latter would
  // be memory that is never written.
  for (const Region& region : regions_) {
    for (uint64_t at = 0; at < region.size;) {
      PagemapScanArg arg = ScanArg(region, at, kCheckWpAsync, kWpAllowed, vec_, kVec);
      long n = ioctl(pagemap_, kPagemapScan, &arg);
      if (n < 0 && errno == ENOTTY) return Unsupported("this kernel has no PAGEMAP_SCAN");
      if (n < 0 && errno == EPERM)
        return ArgumentError(
            "the userfaultfd lacks the features for tracking, or belongs to another process than " + NameOf(pid_),
            region.host, region.size);
      if (n < 0) return SyscallError("PAGEMAP_SCAN", errno, region.host + at, region.size - at, NameOf(pid_));
      for (long i = 0; i < n && vec_[i].start == region.host + at; i++) at = vec_[i].end - region.host;
      if (region.host + at < arg.walk_end || arg.walk_end <= arg.start) {
        if (Error error = CheckAlive()) return error;
        return ArgumentError("memory of " + NameOf(pid_) + " that is not tracked", region.host + at,
                             arg.walk_end - region.host - at);
      }
    }
  }
  return {};
}

Error WriteTracker::Scan(uint32_t* runs, size_t capacity, Scanned* scanned) {
  *scanned = {};
  if (capacity == 0) return ArgumentError("no room for runs");
  if (busy_.exchange(true, std::memory_order_acquire))
    return MakeError(ErrorKind::Internal, "another thread scans with this tracker");
  Error error;
  if (uffd_ < 0) {
    error = MakeError(ErrorKind::Internal, "the tracker is closed");
  } else {
    if (failed_.ok()) failed_ = ScanInto(runs, capacity, scanned);
    error = failed_;
  }
  busy_.store(false, std::memory_order_release);
  if (!error.ok()) *scanned = {};
  return error;
}

Error WriteTracker::Walk(const Region& region, PagemapScanArg* arg, long* ranges) {
  *ranges = ioctl(pagemap_, kPagemapScan, arg);
  if (*ranges >= 0) return {};
  int err = errno;
  if (!CheckAlive().ok()) return Gone(pid_, "PAGEMAP_SCAN");
  std::string detail = NameOf(pid_) + "; what was written is not known any more";
  if (err == EPERM) detail += ": the memory was mapped anew, or registered by somebody else";
  return SyscallError("PAGEMAP_SCAN", err, region.host, region.size, detail);
}

Error WriteTracker::ScanInto(uint32_t* runs, size_t capacity, Scanned* scanned) {
  size_t used = 0;
  while (region_ < regions_.size()) {
    const Region& region = regions_[region_];
    if (used == capacity) {
      scanned->complete = false;
      break;
    }
    // Never more ranges than there is room for: what the kernel reports, it has protected again. Every range becomes at
    // most one pair.
    size_t room = first_pass_ ? kVec : std::min(kVec, capacity - used);
    PagemapScanArg arg = ScanArg(region, at_, kWpMatching | kCheckWpAsync, kWritten, vec_, room);
    long ranges = 0;
    if (Error error = Walk(region, &arg, &ranges)) return error;
    if (first_pass_) {
      // One run for the whole region, whatever the kernel says: an earlier tracker on this userfaultfd may have left
      // pages protected. It is given out once all of it is armed, so that later writes belong to the next pass.
      if (arg.walk_end >= arg.end) {
        runs[2 * used] = static_cast<uint32_t>(region.offset / page_size_);
        runs[2 * used + 1] = static_cast<uint32_t>(region.size / page_size_);
        used++;
      }
    } else {
      for (long i = 0; i < ranges; i++) {
        // Outwards to whole frames, where the kernel's pages are smaller than ours.
        uint64_t start = (vec_[i].start - region.host) / page_size_;
        uint64_t end = (vec_[i].end - region.host + page_size_ - 1) / page_size_;
        auto first = static_cast<uint32_t>(region.offset / page_size_ + start);
        auto count = static_cast<uint32_t>(end - start);
        uint32_t* before = used > 0 ? runs + 2 * (used - 1) : nullptr;
        uint64_t before_end = before != nullptr ? static_cast<uint64_t>(before[0]) + before[1] : 0;
        // Only forwards: what was written again behind the last range is a run of its own.
        if (before != nullptr && first >= before[0] && first <= before_end) {
          before[1] = static_cast<uint32_t>(std::max<uint64_t>(before_end, uint64_t{first} + count) - before[0]);
        } else {
          runs[2 * used] = first;
          runs[2 * used + 1] = count;
          used++;
        }
      }
    }
    if (arg.walk_end <= arg.start) return MakeError(ErrorKind::Internal, "PAGEMAP_SCAN makes no progress");
    at_ = arg.walk_end - region.host;
    if (at_ >= region.size) {
      region_++;
      at_ = 0;
    }
  }
  // Asked last: a scan of a process that ended under it reported too little.
  if (Error error = CheckAlive()) return error;
  if (scanned->complete) {
    first_pass_ = false;
    region_ = 0;
    at_ = 0;
  }
  scanned->runs = static_cast<uint32_t>(used);
  return {};
}

Error WriteTracker::Close() {
  if (uffd_ < 0) return {};
  if (busy_.exchange(true, std::memory_order_acquire))
    return MakeError(ErrorKind::Internal, "another thread scans with this tracker");
  Error first;
  for (const Region& region : regions_) {
    uffdio_range range{region.host, region.size};
    if (ioctl(uffd_, UFFDIO_UNREGISTER, &range) == 0) continue;
    // Nobody sleeps in a fault of asynchronous protection, so nobody is woken. A process that is gone has nothing
    // registered.
    int err = errno;
    if (!CheckAlive().ok()) break;
    if (first.ok()) first = SyscallError("UFFDIO_UNREGISTER", err, region.host, region.size);
  }
  close(uffd_);
  uffd_ = -1;
  busy_.store(false, std::memory_order_release);
  return first;
}

}  // namespace pagetide
