#include "core/cache_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <vector>

namespace pagetide {

namespace {

constexpr char kMagic[8] = {'P', 'T', 'C', 'A', 'C', 'H', 'E', '\n'};
constexpr uint64_t kHeaderBytes = 4096;
alignas(64) const uint8_t kZeroPage[kCachePage] = {};

struct StoredHeader {
  char magic[8];
  uint32_t version;
  uint32_t page_size;
  uint64_t slots;
  uint64_t finished;  // 0 while the file is being made
  uint64_t check;
};

// FNV-1a, 64 bits: against accidents, not against people. A page itself is checked by its tag.
uint64_t Checksum(const void* data, size_t length, uint64_t seed) {
  uint64_t hash = 0xcbf29ce484222325ull ^ seed;
  for (size_t i = 0; i < length; i++) hash = (hash ^ static_cast<const uint8_t*>(data)[i]) * 0x100000001b3ull;
  return hash;
}

uint64_t PagesAt(uint64_t slots) {
  return kHeaderBytes + (slots * sizeof(StoredSlot) + kCachePage - 1) / kCachePage * kCachePage;
}

// All of it, or how much there was; -1 with errno.
ssize_t ReadAll(int fd, void* into, size_t length, uint64_t at) {
  size_t got = 0;
  while (got < length) {
    ssize_t n = pread(fd, static_cast<uint8_t*>(into) + got, length - got, static_cast<off_t>(at + got));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return -1;
    if (n == 0) break;
    got += static_cast<size_t>(n);
  }
  return static_cast<ssize_t>(got);
}

Error Refuse(const std::string& path, const std::string& why) {
  return MakeError(ErrorKind::CacheFile, path + " " + why);
}

// Opens and locks. Somebody who failed to make the file may unlink it while we wait for its lock, so the name is looked
// at again.
Result<int> OpenLocked(const std::string& path) {
  for (int attempt = 0; attempt < 16; attempt++) {
    int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return SyscallError("open", errno, 0, 0, path);
    struct stat ours {
    }, named{};
    Error error;
    if (fstat(fd, &ours) != 0) {
      error = SyscallError("fstat", errno, 0, 0, path);
    } else if (!S_ISREG(ours.st_mode)) {
      error = Refuse(path, "is no regular file");
    } else if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
      error = errno == EWOULDBLOCK ? MakeError(ErrorKind::CacheInUse, path + " is in use by another agent")
                                   : SyscallError("flock", errno, 0, 0, path);
    } else if (stat(path.c_str(), &named) == 0 && named.st_ino == ours.st_ino && named.st_dev == ours.st_dev) {
      return fd;
    }
    close(fd);
    if (error) return error;
  }
  return MakeError(ErrorKind::CacheInUse, path + " is being made and removed by somebody else");
}

}  // namespace

void StoredSlot::Seal(uint64_t slot) {
  zero = 0;
  check = Checksum(this, offsetof(StoredSlot, check), slot + 1) | 1;
}

bool StoredSlot::IsSealed(uint64_t slot) const {
  return check == (Checksum(this, offsetof(StoredSlot, check), slot + 1) | 1);
}

bool StoredSlot::IsUntouched() const {
  return memcmp(this, kZeroPage, sizeof *this) == 0;
}

uint64_t CacheFile::BytesOf(uint64_t slots) {
  return slots == 0 || slots > kMaxCacheSlots ? 0 : PagesAt(slots) + slots * kCachePage;
}

uint64_t CacheFile::SlotsIn(uint64_t bytes) {
  if (bytes <= kHeaderBytes) return 0;
  uint64_t slots = std::min((bytes - kHeaderBytes) / (kCachePage + sizeof(StoredSlot)), kMaxCacheSlots);
  while (slots > 0 && BytesOf(slots) > bytes) slots--;  // the table is rounded up: at most two steps
  return slots;
}

Result<std::unique_ptr<CacheFile>> CacheFile::Open(const std::string& path, uint64_t slots, bool replace) {
  if (slots == 0 || slots > kMaxCacheSlots) return ArgumentError("a cache has 1 to 2^31 slots");
  auto locked = OpenLocked(path);
  if (!locked.ok()) return locked.error;
  std::unique_ptr<CacheFile> file(new CacheFile());
  file->fd_ = locked.value;
  file->slots_ = slots;
  file->pages_at_ = PagesAt(slots);
  file->length_ = BytesOf(slots);
  struct stat info {};
  if (fstat(file->fd_, &info) != 0) return SyscallError("fstat", errno, 0, 0, path);
  // Pages of guests: the agent's own, whatever a copy of the file was given.
  if ((info.st_mode & 0077) != 0 && fchmod(file->fd_, 0600) != 0) return SyscallError("fchmod", errno, 0, 0, path);
  file->fresh_ = info.st_size == 0;
  if (!file->fresh_) {
    bool unfinished = false, ours = false;
    Error error = file->Check(path, static_cast<uint64_t>(info.st_size), &unfinished, &ours);
    if (error && !unfinished && !(replace && ours)) return error;
    file->fresh_ = static_cast<bool>(error);
  }
  if (file->fresh_) {
    if (Error error = file->Create(path)) {
      unlink(path.c_str());
      return error;
    }
  } else if (static_cast<uint64_t>(info.st_blocks) * 512 < file->length_) {
    // A copy that left out zero pages: what it lacks must not be lacking later.
    int err;
    do {
      err = posix_fallocate(file->fd_, 0, static_cast<off_t>(file->length_));
    } while (err == EINTR);
    if (err != 0) return SyscallError("fallocate", err, 0, file->length_, path);
  }
  if (Error error = file->Map(path)) {
    if (file->fresh_) unlink(path.c_str());
    return error;
  }
  return file;
}

// Whether what is there fits. `ours`: it is a cache file, whatever its shape. `unfinished`: its making was cut short.
Error CacheFile::Check(const std::string& path, uint64_t length, bool* unfinished, bool* ours) const {
  StoredHeader header{};
  ssize_t got = ReadAll(fd_, &header, sizeof header, 0);
  if (got < 0) return SyscallError("pread", errno, 0, sizeof header, path);
  if (static_cast<size_t>(got) < sizeof header || memcmp(header.magic, kMagic, sizeof kMagic) != 0)
    return Refuse(path, "is no cache file");
  *ours = true;
  *unfinished = header.finished == 0;
  if (*unfinished) return Refuse(path, "was never finished");
  if (header.version != kCacheVersion)
    return Refuse(path, "is a cache of version " + std::to_string(header.version) + ", this is version " +
                            std::to_string(kCacheVersion));
  if (header.check != Checksum(&header, offsetof(StoredHeader, check), 0))
    return Refuse(path, "is a cache whose header is damaged");
  if (header.page_size != kCachePage)
    return Refuse(path, "is a cache of pages of " + std::to_string(header.page_size) + " bytes");
  if (header.slots != slots_)
    return Refuse(path, "is a cache of " + std::to_string(header.slots) + " pages, not " + std::to_string(slots_));
  if (length != length_)
    return Refuse(path, "was cut off: it has " + std::to_string(length) + " of " + std::to_string(length_) + " bytes");
  return {};
}

// Empties the file and allocates all of it, between a header that says so and one that says that it is done: a making
// that was cut short is known for what it is, and nobody's other file is ever taken for one.
Error CacheFile::Create(const std::string& path) {
  StoredHeader header{};
  memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kCacheVersion;
  header.page_size = kCachePage;
  header.slots = slots_;
  if (ftruncate(fd_, 0) != 0) return SyscallError("ftruncate", errno, 0, 0, path);
  for (uint64_t finished : {0, 1}) {
    header.finished = finished;
    header.check = Checksum(&header, offsetof(StoredHeader, check), 0);
    ssize_t n = pwrite(fd_, &header, sizeof header, 0);
    if (n != sizeof header) return SyscallError("pwrite", n < 0 ? errno : ENOSPC, 0, sizeof header, path);
    if (finished == 1) break;
    // Asked first: taking all that is left and giving it back would starve others meanwhile. A tmpfs without a limit
    // says that it has no blocks at all.
    struct statvfs space {};
    if (fstatvfs(fd_, &space) == 0 && space.f_frsize > 0 && space.f_blocks > 0 &&
        length_ / space.f_frsize > space.f_bavail)
      return SyscallError("fallocate", ENOSPC, 0, length_, path);
    int err;
    do {
      err = posix_fallocate(fd_, 0, static_cast<off_t>(length_));
    } while (err == EINTR);
    if (err != 0) return SyscallError("fallocate", err, 0, length_, path);
  }
  return {};
}

Error CacheFile::Map(const std::string& path) {
  void* base = mmap(nullptr, length_, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
  if (base == MAP_FAILED) return SyscallError("mmap", errno, 0, length_, path);
  base_ = static_cast<uint8_t*>(base);
  madvise(base_, length_, MADV_DONTDUMP);  // pages of guests have no business in a core dump of the agent
  // Rewrites a byte of the header with what it is: whether this process may write to itself that way is known now.
  const void* from[] = {kMagic};
  uint64_t at[] = {0}, length[] = {1};
  if (!Store(from, at, length, 1)) {
    return errno == EFAULT ? Refuse(path, "was cut off while it was opened")
                           : SyscallError("process_vm_writev", errno, 0, 0, "needed to write to the cache");
  }
  return {};
}

CacheFile::~CacheFile() {
  if (base_ != nullptr) munmap(base_, length_);
  if (fd_ >= 0) close(fd_);
}

Error CacheFile::ReadHeaders(const std::function<void(uint64_t, const StoredSlot&)>& each) const {
  constexpr uint64_t kBatch = 2048;
  std::vector<StoredSlot> headers(std::min(kBatch, slots_));
  for (uint64_t slot = 0; slot < slots_;) {
    uint64_t count = std::min<uint64_t>(headers.size(), slots_ - slot);
    uint64_t at = kHeaderBytes + slot * sizeof(StoredSlot);
    ssize_t got = ReadAll(fd_, headers.data(), count * sizeof(StoredSlot), at);
    if (got < 0) return SyscallError("pread", errno, at, count * sizeof(StoredSlot), "slot headers");
    if (static_cast<uint64_t>(got) < count * sizeof(StoredSlot))
      return MakeError(ErrorKind::CacheFile, "the cache file was cut off while it was read");
    for (uint64_t i = 0; i < count; i++) each(slot + i, headers[i]);
    slot += count;
  }
  return {};
}

bool CacheFile::ReadPage(uint64_t slot, uint8_t* into) const {
  return ReadAll(fd_, into, kCachePage, pages_at_ + slot * kCachePage) == static_cast<ssize_t>(kCachePage);
}

// One call for all pieces: the kernel copies them one after the other, and stops where one fails.
bool CacheFile::Store(const void* const* from, const uint64_t* at, const uint64_t* length, int pieces) {
  iovec local[3], remote[3];
  uint64_t total = 0;
  for (int i = 0; i < pieces; i++) {
    local[i] = {const_cast<void*>(from[i]), length[i]};
    remote[i] = {base_ + at[i], length[i]};
    total += length[i];
  }
  ssize_t n = process_vm_writev(getpid(), local, static_cast<unsigned long>(pieces), remote,
                                static_cast<unsigned long>(pieces), 0);
  if (n >= 0 && static_cast<uint64_t>(n) < total) errno = EFAULT;
  return n >= 0 && static_cast<uint64_t>(n) == total;
}

bool CacheFile::WriteSlot(uint64_t slot, StoredSlot header, const uint8_t* page) {
  uint64_t header_at = kHeaderBytes + slot * sizeof(StoredSlot);
  StoredSlot writing = header;
  writing.state = StoredState::Writing;
  writing.Seal(slot);
  header.state = StoredState::Used;
  header.Seal(slot);
  const void* from[] = {&writing, page, &header};
  uint64_t at[] = {header_at, pages_at_ + slot * kCachePage, header_at};
  uint64_t length[] = {sizeof writing, kCachePage, sizeof header};
  return Store(from, at, length, 3);
}

bool CacheFile::EraseSlot(uint64_t slot) {
  const void* from[] = {kZeroPage, kZeroPage};
  uint64_t at[] = {pages_at_ + slot * kCachePage, kHeaderBytes + slot * sizeof(StoredSlot)};
  uint64_t length[] = {kCachePage, sizeof(StoredSlot)};
  return Store(from, at, length, 2);
}

bool CacheFile::IsWhole() const {
  // The same number that fstat gives, without all else that it collects: a third of its time. The position that this
  // moves is nobody's: whatever is read or written names its own.
  off_t end = lseek(fd_, 0, SEEK_END);
  return end >= 0 && static_cast<uint64_t>(end) == length_;
}

}  // namespace pagetide
