// Deltas: a page as the blocks in which it differs from an older version of it.
//
// Whoever has the older version makes a digest of each of its blocks; whoever has the page compares those with the
// digests of its own, and gives the blocks that differ. Neither has to know what the other one has beforehand.
//
//   digests   16 bits a block, little-endian; 64 bytes a page
//   deltas    ┌ u32 │ u32 │ … │ blocks ┐       little-endian; a word a page, bit i set: block i follows
//                               └ of all pages, in order, back to back
//
// A digest of 16 bits is no proof: two blocks that differ have the same one with a chance of 2^-16, and the page that
// is made is then not the one that was meant. So whoever makes one **compares it with its tag** before it is used; what
// a short digest costs is that one page in some thousands comes again as a whole. Nor is the seed a secret: it is
// drawn for each request, so that blocks that collide once don't do so again.
//
// The hash: NH as in page_hash.h over the 16 words of a block, its sum mixed by a multilinear hash; the keys are made
// of the seed by SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).
#pragma once

#include <cstddef>
#include <cstdint>

namespace pagetide {

inline constexpr size_t kDeltaPage = 4096;
// Of what was measured (docs/benchmarks.md) the size that costs least, digests and blocks together.
inline constexpr size_t kDeltaBlock = 128;
inline constexpr size_t kPageBlocks = kDeltaPage / kDeltaBlock;
inline constexpr size_t kPageDigestBytes = kPageBlocks * 2;
inline constexpr size_t kBlockMapBytes = kPageBlocks / 8;

// The keys of one seed. Cheap to make: once a batch.
class BlockHash {
 public:
  explicit BlockHash(uint64_t seed);
  uint16_t Digest(const uint8_t* block) const;

 private:
  static constexpr size_t kWords = kDeltaBlock / 8;
  uint64_t words_[kWords];
  unsigned __int128 low_, high_, sum_;
};

// None of these allocates.

// Digests of `count` pages into `digests`, kPageDigestBytes each.
void DigestBlocks(const BlockHash& hash, const uint8_t* pages, uint64_t count, uint8_t* digests);

// The deltas of `count` pages against the versions whose digests are given, made with the same seed. `into` has room
// for count * (kBlockMapBytes + kDeltaPage) bytes; returns how many are used.
uint64_t EncodeDeltas(const BlockHash& hash, const uint8_t* pages, uint64_t count, const uint8_t* digests,
                      uint8_t* into);

// Makes pages of their older versions, in place. False where `deltas` are not `size` bytes of `count` pages: the pages
// are then as they were.
bool ApplyDeltas(uint8_t* pages, uint64_t count, const uint8_t* deltas, uint64_t size);

}  // namespace pagetide
