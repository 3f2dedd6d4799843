// Memory files of made-up guests, a key, and the tags of their pages.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <vector>

#include "core/resident_index.h"
#include "core/tags.h"
#include "test/guest.h"

namespace pagetide::test {

inline std::shared_ptr<DomainKey> ResidentKey(uint8_t seed = 5) {
  uint8_t bytes[kDomainKeyBytes];
  memset(bytes, seed, sizeof bytes);
  auto key = DomainKey::Open(bytes, sizeof bytes);
  CHECK_OK(key.error);
  return key.value;
}

// The tag of page number `n`, as `Fill` makes it.
inline Tag ResidentTag(const DomainKey& key, uint64_t n) {
  auto page = Pages(n, 1);
  uint8_t tag[kTagBytes];
  TagPages(key, page.get(), 1, tag);
  return Tag::Load(tag);
}

inline std::vector<uint8_t> Flat(const std::vector<Tag>& tags) {
  std::vector<uint8_t> flat(tags.size() * sizeof(Tag));
  if (!tags.empty()) memcpy(flat.data(), tags.data(), flat.size());
  return flat;
}

// A memory file; page `n` is written where a frame is told to hold it, all else is holes.
class GuestFile {
 public:
  explicit GuestFile(uint64_t frames) : fd_(memfd_create("guest", MFD_CLOEXEC)) {
    CHECK(fd_ >= 0);
    CHECK(ftruncate(fd_, static_cast<off_t>(frames * kTagPage)) == 0);
  }
  ~GuestFile() { close(fd_); }
  GuestFile(const GuestFile&) = delete;
  GuestFile& operator=(const GuestFile&) = delete;

  int fd() const { return fd_; }
  void Write(uint64_t frame, uint64_t n) {
    auto page = Pages(n, 1);
    CHECK(pwrite(fd_, page.get(), kTagPage, static_cast<off_t>(frame * kTagPage)) == kTagPage);
  }

 private:
  int fd_;
};

inline std::shared_ptr<ResidentIndex> OpenResident(uint64_t frames) {
  auto index = ResidentIndex::Open(frames);
  CHECK_OK(index.error);
  return index.value;
}

inline uint32_t AddFile(ResidentIndex& index, const GuestFile& file, uint64_t frames,
                        const std::shared_ptr<DomainKey>& key, uint32_t domain = 1) {
  auto number = index.Add(file.fd(), frames, domain, key);
  CHECK_OK(number.error);
  return number.value;
}

inline void List(ResidentIndex& index, uint32_t file, uint64_t frame, const Tag& tag) {
  auto flat = Flat({tag});
  CHECK_OK(index.Set(file, frame, 1, flat.data()));
}

}  // namespace pagetide::test
