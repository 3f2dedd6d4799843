// The guest's own checksums.
//
// They need to notice accidents (a stale, lost, zero or misplaced page), not an adversary, and they must be cheap
// enough to run at every step of the workload: a 64-bit multiply-and-fold over four independent lanes, about 0.4 µs
// for 4 KiB. Two different pages collide with probability about 2^-64, far below any test's reach. Page *identity*
// between hosts never uses this hash.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace guest {

// The workload's unit. It stays 4 KiB where the memory is backed by larger pages.
constexpr size_t kUnit = 4096;

// 128-bit product folded to 64 bits: every bit of the inputs reaches every bit of the result.
inline uint64_t Fold(uint64_t a, uint64_t b) {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

constexpr uint64_t kSalt[4] = {0xa0761d6478bd642full, 0xe7037ed1a0b428dbull, 0x8ebc6af09c88c6e3ull,
                               0x589965cc75374cc3ull};

// Hash of any bytes whose length is a multiple of 8. Never 0, so that 0 can mean "never touched".
inline uint64_t HashWords(const void* data, size_t bytes) {
  const auto* at = static_cast<const unsigned char*>(data);
  uint64_t lanes[4] = {kSalt[0] ^ bytes, kSalt[1], kSalt[2], kSalt[3]};
  uint64_t words[8];
  size_t left = bytes;
  for (; left >= sizeof words; left -= sizeof words, at += sizeof words) {
    memcpy(words, at, sizeof words);
    for (int lane = 0; lane < 4; lane++) {
      lanes[lane] = Fold(words[2 * lane] ^ lanes[lane], words[2 * lane + 1] ^ kSalt[lane]) + lanes[lane];
    }
  }
  for (; left >= 8; left -= 8, at += 8) {
    memcpy(words, at, 8);
    lanes[0] = Fold(words[0] ^ lanes[0], kSalt[1] ^ left) + lanes[0];
  }
  const uint64_t sum = Fold(lanes[0] ^ kSalt[2], lanes[1] ^ kSalt[3]) ^ Fold(lanes[2] ^ kSalt[0], lanes[3] ^ kSalt[1]);
  return sum == 0 ? 1 : sum;
}

inline uint64_t HashUnit(const void* unit) {
  return HashWords(unit, kUnit);
}

// Binds a hash to the frame it belongs to, so that sums over frames notice exchanged entries too. Bijective in `hash`
// for a given frame: a changed entry always changes the sum.
inline uint64_t Bind(uint64_t frame, uint64_t hash) {
  uint64_t x = hash ^ (frame * 0x9e3779b97f4a7c15ull);
  x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93ull;
  x ^= x >> 32;
  return x * 0xd6e8feb86659fd93ull;
}

inline bool IsZeroUnit(const void* unit) {
  const auto* at = static_cast<const unsigned char*>(unit);
  uint64_t words[8];
  for (size_t i = 0; i < kUnit; i += sizeof words) {
    memcpy(words, at + i, sizeof words);
    if ((words[0] | words[1] | words[2] | words[3] | words[4] | words[5] | words[6] | words[7]) != 0) return false;
  }
  return true;
}

// splitmix64: a small generator whose whole state is one register.
inline uint64_t NextRandom(uint64_t* state) {
  uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

}  // namespace guest
