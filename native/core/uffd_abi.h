// The kernel interface of userfaultfd and PAGEMAP_SCAN, with what older distributions' headers lack.
// Source: include/uapi/linux/userfaultfd.h and fs.h of Linux 6.7; numbers are checked at compile time.
#pragma once

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include <cstdint>

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1ull << 12)
#endif
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1ull << 13)
#endif
#ifndef UFFD_FEATURE_POISON
#define UFFD_FEATURE_POISON (1ull << 14)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1ull << 15)
#endif
#ifndef UFFD_FEATURE_MOVE
#define UFFD_FEATURE_MOVE (1ull << 16)
#endif
// /dev/userfaultfd, Linux 6.1
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

namespace pagetide {

struct PageRegion {
  uint64_t start;
  uint64_t end;
  uint64_t categories;
};

struct PagemapScanArg {
  uint64_t size;
  uint64_t flags;
  uint64_t start;
  uint64_t end;
  uint64_t walk_end;
  uint64_t vec;
  uint64_t vec_len;
  uint64_t max_pages;
  uint64_t category_inverted;
  uint64_t category_mask;
  uint64_t category_anyof_mask;
  uint64_t return_mask;
};

inline constexpr unsigned long kPagemapScan = _IOWR('f', 16, PagemapScanArg);

static_assert(sizeof(uffd_msg) == 32, "uffd_msg");
static_assert(sizeof(PageRegion) == 24 && sizeof(PagemapScanArg) == 96, "PAGEMAP_SCAN layout");
static_assert(UFFDIO_API == 0xc018aa3f, "UFFDIO_API");
static_assert(UFFDIO_REGISTER == 0xc020aa00, "UFFDIO_REGISTER");
static_assert(UFFDIO_UNREGISTER == 0x8010aa01, "UFFDIO_UNREGISTER");
static_assert(UFFDIO_WAKE == 0x8010aa02, "UFFDIO_WAKE");
static_assert(UFFDIO_COPY == 0xc028aa03, "UFFDIO_COPY");
static_assert(UFFDIO_ZEROPAGE == 0xc020aa04, "UFFDIO_ZEROPAGE");
static_assert(USERFAULTFD_IOC_NEW == 0xaa00, "USERFAULTFD_IOC_NEW");
static_assert(kPagemapScan == 0xc0606610, "PAGEMAP_SCAN");

}  // namespace pagetide
