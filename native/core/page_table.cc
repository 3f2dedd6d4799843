#include "core/page_table.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace pagetide {

namespace {

constexpr char kMagic[8] = {'P', 'T', 'F', 'R', 'A', 'M', 'E', 'S'};
constexpr uint32_t kVersion = 1;
constexpr size_t kHeader = 4096;
constexpr size_t kCountersAt = 64;

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t reserved;
  uint64_t frames;
  uint64_t page_size;
};

static_assert(sizeof(Header) <= kCountersAt);

}  // namespace

Result<std::shared_ptr<PageTable>> PageTable::Open(const std::string& path, uint64_t frames, uint64_t page_size,
                                                   bool recover) {
  if (frames == 0 || frames > (1ull << 32)) return ArgumentError("a page table holds 1 to 2^32 frames");
  size_t size = kHeader + frames;
  int fd = -1;
  if (path.empty()) {
    if (recover) return ArgumentError("an anonymous page table cannot be recovered");
    fd = memfd_create("pagetide-frames", MFD_CLOEXEC);
    if (fd < 0) return SyscallError("memfd_create", errno);
  } else {
    fd = open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | (recover ? 0 : O_CREAT | O_EXCL), 0600);
    if (fd < 0) return SyscallError("open", errno, 0, 0, path);
  }
  auto fail = [&](Error error) -> Result<std::shared_ptr<PageTable>> {
    close(fd);
    if (!recover && !path.empty()) unlink(path.c_str());
    return error;
  };
  if (recover) {
    struct stat info {};
    if (fstat(fd, &info) != 0) return fail(SyscallError("fstat", errno, 0, 0, path));
    if (static_cast<uint64_t>(info.st_size) != size) return fail(ArgumentError("page table of another size: " + path));
  } else {
    // fallocate, not ftruncate: space that is missing must show here, not as SIGBUS at a later store
    int err;
    do {
      err = posix_fallocate(fd, 0, static_cast<off_t>(size));
    } while (err == EINTR);
    if (err != 0) return fail(SyscallError("fallocate", err, 0, size, path));
  }
  void* base = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (base == MAP_FAILED) return fail(SyscallError("mmap", errno, 0, size, path));
  Header want{};
  memcpy(want.magic, kMagic, sizeof kMagic);
  want.version = kVersion;
  want.frames = frames;
  want.page_size = page_size;
  if (recover) {
    if (memcmp(base, &want, sizeof want) != 0) {
      munmap(base, size);
      return fail(ArgumentError("page table of another version or shape: " + path));
    }
    const uint8_t* states = static_cast<const uint8_t*>(base) + kHeader;
    for (uint64_t frame = 0; frame < frames; frame++) {
      if (states[frame] < kFrameStates) continue;
      Error damaged = ArgumentError("page table is damaged: frame " + std::to_string(frame) + " has state " +
                                    std::to_string(states[frame]) + ": " + path);
      munmap(base, size);
      return fail(std::move(damaged));
    }
  } else {
    memcpy(base, &want, sizeof want);
  }
  close(fd);
  std::shared_ptr<PageTable> table(new PageTable());
  table->base_ = static_cast<uint8_t*>(base);
  table->bytes_ = table->base_ + kHeader;
  table->counters_ = reinterpret_cast<uint64_t*>(table->base_ + kCountersAt);
  table->mapped_ = size;
  table->frames_ = frames;
  return table;
}

PageTable::~PageTable() {
  if (base_ != nullptr) munmap(base_, mapped_);
}

}  // namespace pagetide
