#include "core/userfault.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "core/uffd_abi.h"

namespace pagetide {

namespace {

int BySyscall(int flags) {
  return static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | flags));
}

int ByDevice() {
  int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  if (device < 0) return -1;
  int fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
  int err = errno;
  close(device);
  errno = err;
  return fd;
}

using Create = int (*)();

struct Candidate {
  const char* name;
  Create create;
};

constexpr Candidate kCandidates[] = {
    {"syscall", [] { return BySyscall(0); }},
    {"device", [] { return ByDevice(); }},
    {"user-mode-only", [] { return BySyscall(UFFD_USER_MODE_ONLY); }},
};

}  // namespace

Error NegotiateApi(int fd, uint64_t features) {
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = features;
  if (ioctl(fd, UFFDIO_API, &api) == 0) return {};
  int err = errno;
  if (err == EINVAL) {
    char text[64];
    snprintf(text, sizeof text, "features 0x%llx", static_cast<unsigned long long>(features));
    return SyscallError("UFFDIO_API", err, 0, 0,
                        std::string("the kernel lacks one of ") + text + ", or the API was negotiated before");
  }
  return SyscallError("UFFDIO_API", err);
}

Result<Userfault> CreateUserfault(uint64_t features, bool allow_user_mode_only) {
  std::string tried;
  bool exists = false;
  for (const Candidate& candidate : kCandidates) {
    bool user_mode = strcmp(candidate.name, "user-mode-only") == 0;
    if (user_mode && !allow_user_mode_only) continue;
    int fd = candidate.create();
    if (fd >= 0) {
      if (Error error = NegotiateApi(fd, features)) {
        close(fd);
        if (error.err != EINVAL) return error;
        // On a fresh descriptor that can only mean a feature; another one tells which.
        int other = candidate.create();
        uffdio_api offered{};
        offered.api = UFFD_API;
        bool told = other >= 0 && ioctl(other, UFFDIO_API, &offered) == 0;
        if (other >= 0) close(other);
        char text[96];
        snprintf(text, sizeof text, "the kernel lacks userfaultfd features 0x%llx",
                 static_cast<unsigned long long>(told ? features & ~offered.features : features));
        return MakeError(ErrorKind::Unsupported, text);
      }
      return Userfault{fd, user_mode, features};
    }
    exists = exists || errno != ENOSYS;
    tried += (tried.empty() ? "" : ", ") + std::string(candidate.name) + ": " + ErrnoName(errno);
  }
  return MakeError(exists ? ErrorKind::Permission : ErrorKind::Unsupported, "no userfaultfd to be had (" + tried + ")");
}

UserfaultProbe ProbeUserfault() {
  UserfaultProbe probe;
  for (const Candidate& candidate : kCandidates) {
    int fd = candidate.create();
    probe.ways.push_back({candidate.name, fd < 0 ? errno : 0});
    if (fd < 0) continue;
    if (!probe.any) {
      // A fresh descriptor asked for nothing answers with everything that it has.
      uffdio_api api{};
      api.api = UFFD_API;
      if (ioctl(fd, UFFDIO_API, &api) == 0) {
        probe.any = true;
        probe.features = api.features;
      }
    }
    close(fd);
  }
  probe.shmem = (probe.features & UFFD_FEATURE_MISSING_SHMEM) != 0;
  probe.hugetlbfs = (probe.features & UFFD_FEATURE_MISSING_HUGETLBFS) != 0;

  int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (pagemap >= 0) {
    // An empty range: the ioctl exists or it doesn't (ENOTTY).
    PagemapScanArg arg{};
    arg.size = sizeof arg;
    arg.return_mask = 1;
    probe.pagemap_scan = ioctl(pagemap, kPagemapScan, &arg) == 0;
    close(pagemap);
  }
  return probe;
}

}  // namespace pagetide
