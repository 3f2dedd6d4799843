#include "core/page_hash.h"

#include <sys/mman.h>
#include <sys/random.h>

#include <cerrno>
#include <cstring>

namespace pagetide {

namespace {

using Wide = unsigned __int128;

constexpr size_t kPageWords = kTagPage / 8;
constexpr size_t kRestWords = (kTagBytes + kDomainKeyBytes) / 8;
static_assert(kPageWords % 2 == 0 && kRestWords % 2 == 0);

struct Secret {
  uint64_t words[kPageWords + kRestWords];
  Wide high, low, sum;
};

// Kept to the end, out of core dumps and, where the limits allow, of swap.
const Secret* DrawSecret() {
  constexpr size_t kBytes = (sizeof(Secret) + 4095) / 4096 * 4096;
  void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  madvise(memory, kBytes, MADV_DONTDUMP);
  if (mlock(memory, kBytes) != 0) errno = 0;
  uint8_t* bytes = static_cast<uint8_t*>(memory);
  for (size_t at = 0; at < sizeof(Secret);) {
    ssize_t n = getrandom(bytes + at, sizeof(Secret) - at, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      munmap(memory, kBytes);
      return nullptr;
    }
    at += static_cast<size_t>(n);
  }
  return static_cast<const Secret*>(memory);
}

uint64_t Word(const uint8_t* bytes) {
  uint64_t word;
  memcpy(&word, bytes, sizeof word);
  return word;
}

inline Wide Sum(const uint8_t* message, const uint64_t* secret, size_t words, Wide sum) {
  for (size_t i = 0; i < words; i += 2)
    sum += static_cast<Wide>(Word(message + 8 * i) + secret[i]) * (Word(message + 8 * i + 8) + secret[i + 1]);
  return sum;
}

}  // namespace

uint64_t PageHash(const DomainKey& key, const uint8_t* page, const uint8_t* tag) {
  static const Secret* const secret = DrawSecret();
  if (secret == nullptr) return kNoPageHash;
  const uint64_t* words = secret->words;
  Wide sum = Sum(page, words, kPageWords, 0);
  sum = Sum(tag, words + kPageWords, kTagBytes / 8, sum);
  sum = Sum(key.bytes(), words + kPageWords + kTagBytes / 8, kDomainKeyBytes / 8, sum);
  Wide mixed = secret->sum + secret->low * static_cast<uint64_t>(sum) + secret->high * static_cast<uint64_t>(sum >> 64);
  uint64_t hash = static_cast<uint64_t>(mixed >> 64);
  return hash == kNoPageHash ? 1 : hash;
}

}  // namespace pagetide
