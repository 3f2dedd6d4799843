// Tags: the names of pages. tag = first 16 bytes of SHA-256(domain key ‖ page), of pages of 4096 bytes; a page of zeros
// has the tag of 16 zero bytes, whatever the key. A digest that begins with 16 zero bytes itself (chance 2^-128) gets 1
// as its last byte, so that the zero tag says "zero" and nothing else.
//
// Pages that change while they are read get the tag of something in between. Whoever tags running memory tracks its
// writes first and reads then: such a page is reported as changed, and tagged again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/error.h"
#include "core/sha256.h"

namespace pagetide {

// Of the scheme above; goes wherever tags are stored or sent.
inline constexpr uint32_t kTagVersion = 1;
inline constexpr size_t kTagBytes = 16;
inline constexpr size_t kTagPage = 4096;
inline constexpr size_t kDomainKeyBytes = 32;
// What one TagFile may read: a batch stays short, so that a worker can be told to stop between two.
inline constexpr uint64_t kMaxTagFramesOfFile = (2 << 20) / kTagPage;

// A domain's secret, in a page of its own that is kept out of core dumps and, where the limits allow, of swap. Wiped
// when the last holder lets go of it.
class DomainKey {
 public:
  // `size` must be kDomainKeyBytes. The caller wipes its own copy.
  static Result<std::shared_ptr<DomainKey>> Open(const uint8_t* bytes, size_t size);
  ~DomainKey();
  DomainKey(const DomainKey&) = delete;
  DomainKey& operator=(const DomainKey&) = delete;
  const uint8_t* bytes() const { return bytes_; }

 private:
  DomainKey() = default;
  uint8_t* bytes_ = nullptr;
};

// Tags `count` pages at `pages` into `tags` (16 bytes each). Returns how many are zero. Allocates nothing.
uint64_t TagPages(const DomainKey& key, const uint8_t* pages, uint64_t count, uint8_t* tags,
                  const Sha256Engine& engine = Sha256());

// Whether the page has this tag. A zero page has the zero tag only. Allocates nothing.
bool VerifyPage(const DomainKey& key, const uint8_t* page, const uint8_t* tag, const Sha256Engine& engine = Sha256());

// Tags `count` frames (at most kMaxTagFramesOfFile) of the file from `offset`, a multiple of 4096, into `tags`. Returns
// how many are zero. Holes are zero pages; long ones are not read. What is read is read with pread, which on shared
// memory never creates a page; a mapping would, and a guest on userfaultfd would then read zeros without a fault.
// `hashes`, where given, gets the PageHash of each page (8 bytes each; page_hash.h), kNoPageHash for zero pages.
// `scratch` holds a page at least, which nobody else writes; more, up to 256 KiB, means fewer calls. Moves the file
// position, which nothing here relies on. A file that ends inside the range is an error (EIO) with the range that
// lacks; `tags` are then worth nothing. Allocates nothing unless it fails.
Result<uint64_t> TagFile(const DomainKey& key, int fd, uint64_t offset, uint64_t count, uint8_t* tags, uint8_t* scratch,
                         size_t scratch_size, uint8_t* hashes = nullptr);

}  // namespace pagetide
