#include "guest/memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace guest {

std::string SystemError(const std::string& what) {
  return what + ": " + strerror(errno);
}

namespace {
// Wide enough that a run of frames that crosses a region's end by mistake faults, and that huge pages stay aligned.
constexpr uint64_t kGap = 16u << 20;
constexpr uint64_t kAlign = 2u << 20;
}  // namespace

bool Memory::Open(const Options& options, std::string* error) {
  size_ = options.memory_size;
  page_size_ = options.page_size;
  if (!options.is_private) {
    path_ = options.memory_file;
    const int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW | (options.existing_memory ? 0 : O_CREAT | O_EXCL);
    fd_ = open(path_.c_str(), flags, 0600);
    if (fd_ < 0) {
      *error = SystemError("memory file " + path_);
      return false;
    }
    made_ = !options.existing_memory;
    struct stat info = {};
    if (made_ ? ftruncate(fd_, static_cast<off_t>(size_)) != 0 : fstat(fd_, &info) != 0) {
      *error = SystemError("memory file " + path_);
      return false;
    }
    if (!made_ && static_cast<uint64_t>(info.st_size) != size_) {
      *error = "memory file " + path_ + " has another size than --memory-size";
      return false;
    }
  }

  const uint64_t frames_per_region = (frames() + options.regions - 1) / options.regions;
  units_per_region_ = frames_per_region * (page_size_ / kUnit);
  const uint64_t region_size = frames_per_region * page_size_;
  // One reservation that is never touched keeps the gaps free, whatever else this process maps.
  const uint64_t stride = (region_size + kGap + kAlign - 1) & ~(kAlign - 1);
  void* reserved =
      mmap(nullptr, stride * options.regions + kAlign, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) {
    *error = SystemError("reserving address space");
    return false;
  }
  uint64_t base = (reinterpret_cast<uint64_t>(reserved) + kAlign - 1) & ~(kAlign - 1);
  for (uint64_t offset = 0; offset < size_; offset += region_size, base += stride) {
    const uint64_t size = std::min(region_size, size_ - offset);
    const int flags = (fd_ < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED) | MAP_FIXED |
                      (page_size_ == kUnit ? 0 : MAP_HUGETLB | (21 << MAP_HUGE_SHIFT));
    void* at =
        mmap(reinterpret_cast<void*>(base), size, PROT_READ | PROT_WRITE, flags, fd_, static_cast<off_t>(offset));
    if (at == MAP_FAILED) {
      *error = SystemError(page_size_ == kUnit ? "mapping memory" : "mapping huge pages");
      return false;
    }
    // A transparent huge page would make 511 frames present, as zeros, that nobody has installed.
    if (page_size_ == kUnit) madvise(at, size, MADV_NOHUGEPAGE);
    regions_.push_back({static_cast<uint8_t*>(at), size, offset});
  }
  return true;
}

void Memory::Discard() {
  if (made_) unlink(path_.c_str());
  made_ = false;
}

bool Memory::Give(uint64_t frame, uint64_t count, Remove how, std::string* error) {
  if (how == Remove::kPunch && is_private()) {
    *error = "only shared memory can be punched";
    return false;
  }
  if (how == Remove::kRemove && is_private()) {
    *error = "MADV_REMOVE works on shared memory only";
    return false;
  }
  const uint64_t end = (frame + count) * page_size_;
  for (uint64_t offset = frame * page_size_; offset < end;) {
    const auto& region =
        *std::find_if(regions_.begin(), regions_.end(), [&](const Region& r) { return offset < r.offset + r.size; });
    const uint64_t size = std::min(end, region.offset + region.size) - offset;
    uint8_t* at = region.address + (offset - region.offset);
    int failed = 0;
    if (how == Remove::kPunch) {
      failed = fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                         static_cast<off_t>(size));
    } else {
      // Waits until the pager has read the remove event, where the userfaultfd asked for those.
      failed = madvise(at, size, how == Remove::kRemove ? MADV_REMOVE : MADV_DONTNEED);
    }
    if (failed != 0) {
      *error = SystemError("giving frames up");
      return false;
    }
    offset += size;
  }
  return true;
}

}  // namespace guest
