// A cheap proof that a page is, byte for byte, one that was digested before.
//
// A digest takes 65 blocks one after the other, each of which waits for the one before: two thirds of a hit from
// another guest. It is needed to tell *which* page this is. Whether it is still *the same one* is told by a universal
// hash (Carter and Wegman 1979) under a secret that this process draws once and gives to nobody: 64 bits over (page,
// tag, domain's key), kept beside a page that was digested, and made again of each copy.
//
// Whoever keeps one keeps this rule, and everything rests on it:
//
//   A hash that is kept was made of a page, a tag and a key of which the digest says that they belong together; both
//   were made of the same bytes, which nobody else could write in between.
//
// Then, of a copy that is wanted under a tag and a key: where its hash is a kept one, the three of them are the three
// that were digested, but for a chance of 2^-63, whatever they are, as long as they were chosen without the secret. So
// it does not matter where a kept hash is found: one that is old, another frame's, another domain's or another tag's
// only fails to match, and the digest decides. Nothing that a guest can see depends on the secret but whether its try
// succeeded: at 5 µs a try, one in half of 2^63 takes 700,000 years.
//
// The hash: NH (Black, Halevi, Krawczyk, Krovetz, Rogaway: "UMAC: fast and secure message authentication", CRYPTO 1999,
// theorem 1) on words of 64 bits, as VMAC has it: the sum modulo 2^128 of (m[2i] + k[2i]) · (m[2i+1] + k[2i+1]), the
// additions modulo 2^64. Two messages of one length have the same sum with a chance of 2^-64. Then both halves of the
// sum go into a multilinear hash of 128-bit keys, upper 64 bits of it (Lemire and Kaser: "Strongly universal string
// hashing is fast", 2014, theorem 1): 2^-64 more.
#pragma once

#include <cstdint>

#include "core/tags.h"

namespace pagetide {

// What is kept where there is none. No page has it: a hash that would be 0 is 1.
inline constexpr uint64_t kNoPageHash = 0;
inline constexpr size_t kPageHashBytes = 8;

// Of a page (4096 bytes), its tag (16 bytes) and the domain's key. kNoPageHash where no secret could be drawn: then
// there is none in this process. Allocates nothing, but for the secret at the first call.
uint64_t PageHash(const DomainKey& key, const uint8_t* page, const uint8_t* tag);

}  // namespace pagetide
