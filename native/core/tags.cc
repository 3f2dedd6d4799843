#include "core/tags.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/memory.h"
#include "core/page_hash.h"

namespace pagetide {

namespace {

// The message is 32 + 4096 bytes: a first block of the key and the page's first half block, 63 blocks that lie in the
// page as they are, and a last one of the page's last half block and the padding.
constexpr size_t kHalf = kShaBlock / 2;
constexpr size_t kInner = (kTagPage - kShaBlock) / kShaBlock;
constexpr uint64_t kMessageBits = (kDomainKeyBytes + kTagPage) * 8;
constexpr size_t kReadBytes = 256 * 1024;

static_assert(kDomainKeyBytes == kHalf && kInner == 63);

// The blocks of a message that are not in the page itself. Wiped at the end: `first` has the key in it.
struct Ends {
  uint8_t first[kShaBlock];
  uint8_t last[kShaBlock];

  explicit Ends(const DomainKey& key) {
    memcpy(first, key.bytes(), kHalf);
    memset(last, 0, sizeof last);
    last[kHalf] = 0x80;
    for (size_t i = 0; i < 8; i++) last[kShaBlock - 1 - i] = static_cast<uint8_t>(kMessageBits >> (8 * i));
  }
  ~Ends() { explicit_bzero(first, sizeof first); }

  void Take(const uint8_t* page) {
    memcpy(first + kHalf, page, kHalf);
    memcpy(last, page + kTagPage - kHalf, kHalf);
  }
};

void Finish(const ShaState& state, uint8_t* tag) {
  ShaBytes(state, tag, kTagBytes);
  if (IsZero(tag, kTagBytes)) tag[kTagBytes - 1] = 1;
}

void TagOne(const Sha256Engine& engine, Ends& ends, const uint8_t* page, uint8_t* tag) {
  ends.Take(page);
  ShaState state = kShaInitial;
  engine.blocks(state, ends.first, 1);
  engine.blocks(state, page + kHalf, kInner);
  engine.blocks(state, ends.last, 1);
  Finish(state, tag);
}

void TagTwo(const Sha256Engine& engine, Ends& ends_a, const uint8_t* a, uint8_t* tag_a, Ends& ends_b, const uint8_t* b,
            uint8_t* tag_b) {
  ends_a.Take(a);
  ends_b.Take(b);
  ShaState state_a = kShaInitial, state_b = kShaInitial;
  engine.two(state_a, ends_a.first, state_b, ends_b.first, 1);
  engine.two(state_a, a + kHalf, state_b, b + kHalf, kInner);
  engine.two(state_a, ends_a.last, state_b, ends_b.last, 1);
  Finish(state_a, tag_a);
  Finish(state_b, tag_b);
}

// The tag that is hashed is one that nobody else can write: `tags` may be shared.
uint64_t TagAndHash(const DomainKey& key, const uint8_t* pages, uint64_t count, uint8_t* tags, uint8_t* hashes) {
  constexpr uint64_t kSome = 64;
  uint8_t own[kSome * kTagBytes];
  uint64_t zero = 0;
  for (uint64_t i = 0; i < count; i += kSome) {
    uint64_t some = std::min(kSome, count - i);
    zero += TagPages(key, pages + i * kTagPage, some, own);
    memcpy(tags + i * kTagBytes, own, some * kTagBytes);
    for (uint64_t j = 0; j < some; j++) {
      bool is_zero = IsZero(own + j * kTagBytes, kTagBytes);
      uint64_t hash = is_zero ? kNoPageHash : PageHash(key, pages + (i + j) * kTagPage, own + j * kTagBytes);
      memcpy(hashes + (i + j) * kPageHashBytes, &hash, sizeof hash);
    }
  }
  return zero;
}

Error Short(uint64_t offset, uint64_t length) {
  return SyscallError("pread", EIO, offset, length, "the file ends inside the range");
}

}  // namespace

Result<std::shared_ptr<DomainKey>> DomainKey::Open(const uint8_t* bytes, size_t size) {
  if (size != kDomainKeyBytes)
    return ArgumentError("a domain key has " + std::to_string(kDomainKeyBytes) + " bytes, not " + std::to_string(size));
  void* page = mmap(nullptr, kTagPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return SyscallError("mmap", errno, 0, kTagPage, "for a domain key");
  madvise(page, kTagPage, MADV_DONTDUMP);
  // RLIMIT_MEMLOCK may forbid it: then the key is as safe from swap as the rest of the process
  if (mlock(page, kTagPage) != 0) errno = 0;
  memcpy(page, bytes, size);
  std::shared_ptr<DomainKey> key(new DomainKey());
  key->bytes_ = static_cast<uint8_t*>(page);
  return key;
}

DomainKey::~DomainKey() {
  if (bytes_ == nullptr) return;
  explicit_bzero(bytes_, kTagPage);
  munmap(bytes_, kTagPage);
}

uint64_t TagPages(const DomainKey& key, const uint8_t* pages, uint64_t count, uint8_t* tags,
                  const Sha256Engine& engine) {
  Ends ends(key), other(key);
  uint64_t zero = 0;
  constexpr uint64_t kNone = ~0ull;
  uint64_t waiting = kNone;  // a page that waits for a second one, so that the two are digested together
  for (uint64_t i = 0; i < count; i++) {
    const uint8_t* page = pages + i * kTagPage;
    uint8_t* tag = tags + i * kTagBytes;
    if (IsZero(page, kTagPage)) {
      memset(tag, 0, kTagBytes);
      zero++;
    } else if (engine.two == nullptr) {
      TagOne(engine, ends, page, tag);
    } else if (waiting == kNone) {
      waiting = i;
    } else {
      TagTwo(engine, ends, pages + waiting * kTagPage, tags + waiting * kTagBytes, other, page, tag);
      waiting = kNone;
    }
  }
  if (waiting != kNone) TagOne(engine, ends, pages + waiting * kTagPage, tags + waiting * kTagBytes);
  return zero;
}

bool VerifyPage(const DomainKey& key, const uint8_t* page, const uint8_t* tag, const Sha256Engine& engine) {
  bool zero = IsZero(page, kTagPage);
  if (zero || IsZero(tag, kTagBytes)) return zero && IsZero(tag, kTagBytes);
  Ends ends(key);
  uint8_t real[kTagBytes];
  TagOne(engine, ends, page, real);
  return memcmp(real, tag, kTagBytes) == 0;
}

Result<uint64_t> TagFile(const DomainKey& key, int fd, uint64_t offset, uint64_t count, uint8_t* tags, uint8_t* scratch,
                         size_t scratch_size, uint8_t* hashes) {
  if (count == 0 || count > kMaxTagFramesOfFile)
    return ArgumentError("1 to " + std::to_string(kMaxTagFramesOfFile) + " frames of a file can be tagged at once");
  if (offset % kTagPage != 0) return ArgumentError("offset is not page aligned", offset, count * kTagPage);
  if (offset > INT64_MAX - count * kTagPage)  // off_t
    return ArgumentError("range lies outside any file", offset, count * kTagPage);
  if (scratch_size < kTagPage) return ArgumentError("the scratch buffer holds no page");
  size_t most = std::min(scratch_size, kReadBytes) / kTagPage * kTagPage;
  uint64_t end = offset + count * kTagPage, at = offset, zero = 0;
  auto holes = [&](uint64_t to) {
    memset(tags + (at - offset) / kTagPage * kTagBytes, 0, (to - at) / kTagPage * kTagBytes);
    if (hashes != nullptr)
      memset(hashes + (at - offset) / kTagPage * kPageHashBytes, 0, (to - at) / kTagPage * kPageHashBytes);
    zero += (to - at) / kTagPage;
    at = to;
  };
  while (at < end) {
    off_t data = lseek(fd, static_cast<off_t>(at), SEEK_DATA);
    if (data < 0 && errno != ENXIO) return SyscallError("lseek(SEEK_DATA)", errno, at, end - at);
    // ENXIO: nothing but a hole up to the end of the file
    uint64_t first = data < 0 ? end : std::min(end, static_cast<uint64_t>(data) / kTagPage * kTagPage);
    // a page that is partly data was read with the data before it
    if (first > at) holes(first);
    if (at == end) break;
    // Where this data ends isn't asked: SEEK_HOLE looks at every page up to the next hole, however far that is. Holes
    // that are read give zeros, and create no page.
    size_t length = std::min<uint64_t>(most, end - at), got = 0;
    while (got < length) {
      ssize_t n = pread(fd, scratch + got, length - got, static_cast<off_t>(at + got));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return SyscallError("pread", errno, at + got, length - got);
      if (n == 0) return Short(at + got, length - got);
      got += static_cast<size_t>(n);
    }
    uint64_t frame = (at - offset) / kTagPage;
    if (hashes == nullptr) {
      zero += TagPages(key, scratch, length / kTagPage, tags + frame * kTagBytes);
    } else {
      zero += TagAndHash(key, scratch, length / kTagPage, tags + frame * kTagBytes, hashes + frame * kPageHashBytes);
    }
    at += length;
  }
  // What lies behind the end of a file looks like a hole. Looked at last: a file that has shrunk meanwhile shows too.
  struct stat info {};
  if (fstat(fd, &info) != 0) return SyscallError("fstat", errno, offset, count * kTagPage);
  uint64_t size = static_cast<uint64_t>(info.st_size);
  if (size < end) return Short(std::max(size, offset), end - std::max(size, offset));
  return zero;
}

}  // namespace pagetide
