// Creating userfaultfds, in every way that a host may permit, and finding out what the kernel offers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/error.h"

namespace pagetide {

struct Userfault {
  int fd = -1;
  bool user_mode_only = false;  // faults inside system calls are not handled: not fit for a KVM guest
  uint64_t features = 0;        // what the kernel granted
};

// Creates a userfaultfd of this process, O_CLOEXEC|O_NONBLOCK, and performs UFFDIO_API with exactly `features`.
// Order: the system call (root, CAP_SYS_PTRACE, or vm.unprivileged_userfaultfd=1); /dev/userfaultfd (whoever may open
// it, Linux 6.1); the system call with UFFD_USER_MODE_ONLY (anyone, Linux 5.11) when `allow_user_mode_only`.
// Fails with Permission, naming what each way answered, or Unsupported (no userfaultfd, or a feature is missing).
Result<Userfault> CreateUserfault(uint64_t features, bool allow_user_mode_only);

// UFFDIO_API on a fresh userfaultfd; a second call on the same one is EINVAL, so ask for all that will be needed.
Error NegotiateApi(int fd, uint64_t features);

struct Way {
  const char* name;  // "syscall", "device", "user-mode-only"
  int err;           // 0: works
};

struct UserfaultProbe {
  std::vector<Way> ways;
  bool any = false;
  uint64_t features = 0;  // all that the kernel offers
  bool pagemap_scan = false;
  bool shmem = false;
  bool hugetlbfs = false;
};

UserfaultProbe ProbeUserfault();

}  // namespace pagetide
