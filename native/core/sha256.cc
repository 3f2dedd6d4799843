#include "core/sha256.h"

#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace pagetide {

namespace {

// FIPS 180-4, 4.2.2
alignas(64) constexpr uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

uint32_t Rotate(uint32_t x, int n) {
  return x >> n | x << (32 - n);
}

uint32_t BigEndian(const uint8_t* p) {
  return static_cast<uint32_t>(p[0]) << 24 | static_cast<uint32_t>(p[1]) << 16 | static_cast<uint32_t>(p[2]) << 8 |
         p[3];
}

void PortableBlocks(ShaState& state, const uint8_t* data, size_t blocks) {
  uint32_t w[64];
  for (; blocks > 0; blocks--, data += kShaBlock) {
    for (int i = 0; i < 16; i++) w[i] = BigEndian(data + 4 * i);
    for (int i = 16; i < 64; i++) {
      uint32_t s0 = Rotate(w[i - 15], 7) ^ Rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
      uint32_t s1 = Rotate(w[i - 2], 17) ^ Rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    uint32_t a = state.words[0], b = state.words[1], c = state.words[2], d = state.words[3];
    uint32_t e = state.words[4], f = state.words[5], g = state.words[6], h = state.words[7];
    for (int i = 0; i < 64; i++) {
      uint32_t t1 = h + (Rotate(e, 6) ^ Rotate(e, 11) ^ Rotate(e, 25)) + ((e & f) ^ (~e & g)) + kRound[i] + w[i];
      uint32_t t2 = (Rotate(a, 2) ^ Rotate(a, 13) ^ Rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    state.words[0] += a, state.words[1] += b, state.words[2] += c, state.words[3] += d;
    state.words[4] += e, state.words[5] += f, state.words[6] += g, state.words[7] += h;
  }
}

#if defined(__x86_64__)

#define PAGETIDE_SHA __attribute__((target("sha,sse4.1,ssse3")))

// What sha256rnds2 works on: the state as (a b e f) and (c d g h), and the four newest quads of the message schedule.
struct Lane {
  __m128i abef, cdgh, was_abef, was_cdgh, m[4];
};

PAGETIDE_SHA inline __attribute__((always_inline)) void Enter(Lane& lane, const ShaState& state) {
  __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(&state.words[0]));   // d c b a
  __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(&state.words[4]));  // h g f e
  low = _mm_shuffle_epi32(low, 0xb1);                                                 // c d a b
  high = _mm_shuffle_epi32(high, 0x1b);                                               // e f g h
  lane.abef = _mm_alignr_epi8(low, high, 8);
  lane.cdgh = _mm_blend_epi16(high, low, 0xf0);
}

PAGETIDE_SHA inline __attribute__((always_inline)) void Leave(const Lane& lane, ShaState& state) {
  __m128i low = _mm_shuffle_epi32(lane.abef, 0x1b);   // f e b a
  __m128i high = _mm_shuffle_epi32(lane.cdgh, 0xb1);  // d c h g
  _mm_storeu_si128(reinterpret_cast<__m128i*>(&state.words[0]), _mm_blend_epi16(low, high, 0xf0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(&state.words[4]), _mm_alignr_epi8(high, low, 8));
}

PAGETIDE_SHA inline __attribute__((always_inline)) void Load(Lane& lane, const uint8_t* block) {
  const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bll, 0x0405060700010203ll);
  for (int i = 0; i < 4; i++)
    lane.m[i] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 16 * i)), swap);
  lane.was_abef = lane.abef;
  lane.was_cdgh = lane.cdgh;
}

// Rounds 4·Q to 4·Q+3, and the part of the message schedule that can be worked out beside them.
template <int Q>
PAGETIDE_SHA inline __attribute__((always_inline)) void Quad(Lane& lane) {
  __m128i* m = lane.m;
  __m128i k = _mm_add_epi32(m[Q & 3], _mm_load_si128(reinterpret_cast<const __m128i*>(&kRound[4 * Q])));
  lane.cdgh = _mm_sha256rnds2_epu32(lane.cdgh, lane.abef, k);
  if constexpr (Q >= 3 && Q < 15) {
    __m128i& next = m[(Q + 1) & 3];
    next = _mm_add_epi32(next, _mm_alignr_epi8(m[Q & 3], m[(Q - 1) & 3], 4));
    next = _mm_sha256msg2_epu32(next, m[Q & 3]);
  }
  lane.abef = _mm_sha256rnds2_epu32(lane.abef, lane.cdgh, _mm_shuffle_epi32(k, 0x0e));
  if constexpr (Q >= 1 && Q < 13) m[(Q - 1) & 3] = _mm_sha256msg1_epu32(m[(Q - 1) & 3], m[Q & 3]);
}

PAGETIDE_SHA inline __attribute__((always_inline)) void AddUp(Lane& lane) {
  lane.abef = _mm_add_epi32(lane.abef, lane.was_abef);
  lane.cdgh = _mm_add_epi32(lane.cdgh, lane.was_cdgh);
}

PAGETIDE_SHA void InstructionBlocks(ShaState& state, const uint8_t* data, size_t blocks) {
  Lane lane;
  Enter(lane, state);
  for (; blocks > 0; blocks--, data += kShaBlock) {
    Load(lane, data);
    Quad<0>(lane), Quad<1>(lane), Quad<2>(lane), Quad<3>(lane), Quad<4>(lane), Quad<5>(lane);
    Quad<6>(lane), Quad<7>(lane), Quad<8>(lane), Quad<9>(lane), Quad<10>(lane), Quad<11>(lane);
    Quad<12>(lane), Quad<13>(lane), Quad<14>(lane), Quad<15>(lane);
    AddUp(lane);
  }
  Leave(lane, state);
}

template <int Q>
PAGETIDE_SHA inline __attribute__((always_inline)) void Quads(Lane& a, Lane& b) {
  Quad<Q>(a);
  Quad<Q>(b);
}

PAGETIDE_SHA void InstructionTwoBlocks(ShaState& a, const uint8_t* data_a, ShaState& b, const uint8_t* data_b,
                                       size_t blocks) {
  Lane x, y;
  Enter(x, a);
  Enter(y, b);
  for (; blocks > 0; blocks--, data_a += kShaBlock, data_b += kShaBlock) {
    Load(x, data_a);
    Load(y, data_b);
    Quads<0>(x, y), Quads<1>(x, y), Quads<2>(x, y), Quads<3>(x, y), Quads<4>(x, y), Quads<5>(x, y);
    Quads<6>(x, y), Quads<7>(x, y), Quads<8>(x, y), Quads<9>(x, y), Quads<10>(x, y), Quads<11>(x, y);
    Quads<12>(x, y), Quads<13>(x, y), Quads<14>(x, y), Quads<15>(x, y);
    AddUp(x);
    AddUp(y);
  }
  Leave(x, a);
  Leave(y, b);
}

// CPUID, for __builtin_cpu_supports("sha") is newer than the compilers that we build with: leaf 1 ECX bit 9 SSSE3 and
// bit 19 SSE4.1, leaf 7 EBX bit 29 SHA.
bool CpuHasSha() {
  unsigned a, b, c, d;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c >> 9 & 1) == 0 || (c >> 19 & 1) == 0) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b >> 29 & 1) != 0;
}

constexpr Sha256Engine kInstructions = {"sha-ni", InstructionBlocks, InstructionTwoBlocks};

#endif

constexpr Sha256Engine kPortable = {"portable", PortableBlocks, nullptr};

}  // namespace

// FIPS 180-4, 5.3.3
const ShaState kShaInitial = {
    {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19}};

const Sha256Engine& PortableSha256() {
  return kPortable;
}

const Sha256Engine* InstructionSha256() {
#if defined(__x86_64__)
  static const bool has = CpuHasSha();
  return has ? &kInstructions : nullptr;
#else
  return nullptr;
#endif
}

const Sha256Engine& Sha256() {
  const Sha256Engine* engine = InstructionSha256();
  return engine != nullptr ? *engine : kPortable;
}

void ShaBytes(const ShaState& state, uint8_t* out, size_t size) {
  for (size_t i = 0; i < size; i++) out[i] = static_cast<uint8_t>(state.words[i / 4] >> (24 - i % 4 * 8));
}

void ShaMessage(const Sha256Engine& engine, const uint8_t* data, size_t size, uint8_t out[kShaDigest]) {
  ShaState state = kShaInitial;
  engine.blocks(state, data, size / kShaBlock);
  uint8_t tail[2 * kShaBlock] = {};
  size_t rest = size % kShaBlock;
  if (rest > 0) memcpy(tail, data + size - rest, rest);
  tail[rest] = 0x80;
  size_t length = rest + 9 <= kShaBlock ? kShaBlock : 2 * kShaBlock;
  uint64_t bits = static_cast<uint64_t>(size) * 8;
  for (size_t i = 0; i < 8; i++) tail[length - 1 - i] = static_cast<uint8_t>(bits >> (8 * i));
  engine.blocks(state, tail, length / kShaBlock);
  ShaBytes(state, out, kShaDigest);
}

}  // namespace pagetide
