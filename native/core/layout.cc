#include "core/layout.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "core/uffd_abi.h"

namespace pagetide {

namespace {

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

Error CheckPageSize(uint64_t page_size) {
  if (page_size == 4096 || page_size == (2u << 20)) return {};
  return ArgumentError("page size must be 4096 or 2097152, not " + std::to_string(page_size));
}

}  // namespace

Result<std::vector<Region>> CheckLayout(int uffd, std::vector<Region> regions, uint64_t page_size) {
  if (Error error = CheckPageSize(page_size)) return error;
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

Result<std::vector<TargetFile>> CheckFiles(std::vector<TargetFile> files, uint64_t page_size) {
  if (Error error = CheckPageSize(page_size)) return error;
  if (files.empty()) return ArgumentError("guest memory has at least one file");
  std::sort(files.begin(), files.end(), [](const TargetFile& a, const TargetFile& b) { return a.offset < b.offset; });
  uint64_t at = 0;
  for (const TargetFile& file : files) {
    if (file.size == 0 || file.size >= kAddressLimit || (file.size | file.offset) & (page_size - 1))
      return ArgumentError("a memory file is not aligned to the page size", file.offset, file.size);
    if (file.offset != at)
      return ArgumentError("memory files overlap or leave a gap at offset " + std::to_string(at), file.offset,
                           file.size);
    at += file.size;
    struct stat info {};
    if (fstat(file.fd, &info) != 0) return SyscallError("fstat", errno);
    if (!S_ISREG(info.st_mode) || static_cast<uint64_t>(info.st_size) < file.size)
      return ArgumentError("descriptor " + std::to_string(file.fd) + " is no file of that size", file.offset,
                           file.size);
    int flags = fcntl(file.fd, F_GETFL);
    if (flags < 0 || (flags & O_ACCMODE) != O_RDWR)
      return ArgumentError("descriptor " + std::to_string(file.fd) + " is not open for reading and writing");
  }
  return files;
}

}  // namespace pagetide
