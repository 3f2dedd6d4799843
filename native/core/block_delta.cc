#include "core/block_delta.h"

#include <cstring>
#include <initializer_list>

namespace pagetide {

static_assert(kPageBlocks == 32, "a word has a bit a block");
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "what is sent is little-endian");

namespace {

using Wide = unsigned __int128;

uint64_t SplitMix(uint64_t* state) {
  uint64_t z = (*state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

uint64_t Word(const uint8_t* bytes) {
  uint64_t word;
  memcpy(&word, bytes, sizeof word);
  return word;
}

}  // namespace

BlockHash::BlockHash(uint64_t seed) {
  for (uint64_t& word : words_) word = SplitMix(&seed);
  for (Wide* wide : {&low_, &high_, &sum_}) {
    *wide = SplitMix(&seed);
    *wide = *wide << 64 | SplitMix(&seed);
  }
}

uint16_t BlockHash::Digest(const uint8_t* block) const {
  Wide sum = 0;
  for (size_t i = 0; i < kWords; i += 2)
    sum += static_cast<Wide>(Word(block + 8 * i) + words_[i]) * (Word(block + 8 * i + 8) + words_[i + 1]);
  return static_cast<uint16_t>((sum_ + low_ * static_cast<uint64_t>(sum) + high_ * static_cast<uint64_t>(sum >> 64)) >>
                               112);
}

void DigestBlocks(const BlockHash& hash, const uint8_t* pages, uint64_t count, uint8_t* digests) {
  for (uint64_t i = 0; i < count * kPageBlocks; i++) {
    uint16_t digest = hash.Digest(pages + i * kDeltaBlock);
    memcpy(digests + i * 2, &digest, 2);
  }
}

uint64_t EncodeDeltas(const BlockHash& hash, const uint8_t* pages, uint64_t count, const uint8_t* digests,
                      uint8_t* into) {
  uint8_t* out = into + count * kBlockMapBytes;
  for (uint64_t page = 0; page < count; page++) {
    uint32_t map = 0;
    for (size_t b = 0; b < kPageBlocks; b++) {
      const uint8_t* block = pages + page * kDeltaPage + b * kDeltaBlock;
      uint16_t digest = hash.Digest(block);
      if (memcmp(&digest, digests + page * kPageDigestBytes + b * 2, 2) == 0) continue;
      map |= 1u << b;
      memcpy(out, block, kDeltaBlock);
      out += kDeltaBlock;
    }
    memcpy(into + page * kBlockMapBytes, &map, kBlockMapBytes);
  }
  return static_cast<uint64_t>(out - into);
}

bool ApplyDeltas(uint8_t* pages, uint64_t count, const uint8_t* deltas, uint64_t size) {
  if (size / kBlockMapBytes < count) return false;
  uint64_t blocks = 0;
  for (uint64_t page = 0; page < count; page++) {
    uint32_t map;
    memcpy(&map, deltas + page * kBlockMapBytes, kBlockMapBytes);
    blocks += static_cast<uint64_t>(__builtin_popcount(map));
  }
  if (size != count * kBlockMapBytes + blocks * kDeltaBlock) return false;
  const uint8_t* block = deltas + count * kBlockMapBytes;
  for (uint64_t page = 0; page < count; page++) {
    uint32_t map;
    memcpy(&map, deltas + page * kBlockMapBytes, kBlockMapBytes);
    for (; map != 0; map &= map - 1, block += kDeltaBlock)
      memcpy(pages + page * kDeltaPage + static_cast<size_t>(__builtin_ctz(map)) * kDeltaBlock, block, kDeltaBlock);
  }
  return true;
}

}  // namespace pagetide
