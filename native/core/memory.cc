#include "core/memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>

namespace pagetide {

Result<std::vector<Extent>> DataExtents(int fd, uint64_t offset, uint64_t length) {
  std::vector<Extent> extents;
  constexpr uint64_t kMax = INT64_MAX;  // off_t
  if (offset > kMax || length > kMax - offset) return ArgumentError("range lies outside any file", offset, length);
  uint64_t end = offset + length;
  while (offset < end) {
    off_t data = lseek(fd, static_cast<off_t>(offset), SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;  // only holes from here on
    if (data < 0) return SyscallError("lseek(SEEK_DATA)", errno, offset, end - offset);
    if (static_cast<uint64_t>(data) >= end) break;
    off_t hole = lseek(fd, data, SEEK_HOLE);
    if (hole < 0)
      return SyscallError("lseek(SEEK_HOLE)", errno, static_cast<uint64_t>(data), end - static_cast<uint64_t>(data));
    uint64_t stop = std::min(static_cast<uint64_t>(hole), end);
    extents.push_back({static_cast<uint64_t>(data), stop - static_cast<uint64_t>(data)});
    offset = stop;
  }
  return extents;
}

Result<std::vector<Extent>> PresentExtents(int pid, uint64_t address, uint64_t size) {
  constexpr uint64_t kPage = 4096;
  constexpr uint64_t kAddressLimit = 1ull << 47;
  if ((address | size) % kPage != 0) return ArgumentError("range is not page aligned", address, size);
  if (address >= kAddressLimit || size > kAddressLimit - address)
    return ArgumentError("range lies outside user memory", address, size);
  std::string name = "process " + std::to_string(pid);
  int fd = open(("/proc/" + std::to_string(pid) + "/pagemap").c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0 && (errno == EACCES || errno == EPERM))
    return MakeError(ErrorKind::Permission, "the memory of " + name + " may not be looked at: it needs CAP_SYS_PTRACE");
  if (fd < 0) return SyscallError("open(pagemap)", errno == ENOENT ? ESRCH : errno, address, size, name);
  std::vector<Extent> extents;
  uint64_t entries[512];
  for (uint64_t at = 0; at < size;) {
    uint64_t pages = std::min<uint64_t>(512, (size - at) / kPage);
    ssize_t n = pread(fd, entries, pages * 8, static_cast<off_t>((address + at) / kPage * 8));
    if (n <= 0) {
      Error error = SyscallError("pread(pagemap)", n < 0 ? errno : ESRCH, address + at, size - at, name);
      close(fd);
      return error;
    }
    for (uint64_t i = 0; i < static_cast<uint64_t>(n) / 8; i++, at += kPage) {
      // bit 63: present, bit 62: swapped (Documentation/admin-guide/mm/pagemap.rst)
      if ((entries[i] >> 62) == 0) continue;
      if (!extents.empty() && extents.back().offset + extents.back().length == at) {
        extents.back().length += kPage;
      } else {
        extents.push_back({at, kPage});
      }
    }
  }
  close(fd);
  return extents;
}

bool IsZero(const uint8_t* data, size_t length) {
  // The first words decide nearly always; then the buffer is compared with itself, shifted, at memcmp's speed.
  size_t head = std::min<size_t>(length, 16);
  for (size_t i = 0; i < head; i++) {
    if (data[i] != 0) return false;
  }
  return length <= 16 || memcmp(data, data + 16, length - 16) == 0;
}

Result<std::shared_ptr<Arena>> Arena::Open(const std::string& path, uint64_t slot_size, uint64_t slots) {
  if (slot_size == 0 || slot_size % 4096 != 0) return ArgumentError("slot size must be a multiple of 4096");
  if (slots == 0 || slots > (1ull << 32)) return ArgumentError("an arena has 1 to 2^32 slots");
  if (slot_size > INT64_MAX / slots) return ArgumentError("an arena of that size fits no file");
  int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return SyscallError("open", errno, 0, 0, path);
  uint64_t size = slot_size * slots;
  struct stat info {};
  if (fstat(fd, &info) != 0) {
    Error error = SyscallError("fstat", errno, 0, 0, path);
    close(fd);
    return error;
  }
  bool fresh = info.st_size == 0;
  if (!fresh && static_cast<uint64_t>(info.st_size) != size) {
    close(fd);
    return ArgumentError("arena of another size: " + path);
  }
  int err;
  do {
    err = posix_fallocate(fd, 0, static_cast<off_t>(size));
  } while (err == EINTR);
  void* data = err == 0 ? mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
  if (data == MAP_FAILED) {
    Error error = err != 0 ? SyscallError("fallocate", err, 0, size, path) : SyscallError("mmap", errno, 0, size, path);
    close(fd);
    if (fresh) unlink(path.c_str());
    return error;
  }
  close(fd);
  std::shared_ptr<Arena> arena(new Arena());
  arena->data_ = static_cast<uint8_t*>(data);
  arena->size_ = size;
  arena->slots_ = slots;
  arena->slot_size_ = slot_size;
  return arena;
}

Arena::~Arena() {
  if (data_ != nullptr) munmap(data_, size_);
}

}  // namespace pagetide
