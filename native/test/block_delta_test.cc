// Deltas: what comes of any change, what digests tell apart, and what is no delta.
#include "core/block_delta.h"

#include <cstring>
#include <random>
#include <vector>

#include "test/guest.h"

namespace pagetide::test {

namespace {

using Bytes = std::vector<uint8_t>;

Bytes RandomBytes(std::mt19937_64& random, size_t size) {
  Bytes bytes(size);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

Bytes Deltas(uint64_t seed, const Bytes& base, const Bytes& now) {
  uint64_t count = now.size() / kDeltaPage;
  BlockHash hash(seed);
  Bytes digests(count * kPageDigestBytes), deltas(count * (kBlockMapBytes + kDeltaPage));
  DigestBlocks(hash, base.data(), count, digests.data());
  deltas.resize(EncodeDeltas(hash, now.data(), count, digests.data(), deltas.data()));
  return deltas;
}

}  // namespace

TEST(block_delta_makes_the_page_of_any_change) {
  std::mt19937_64 random(1);
  for (int run = 0; run < 200; run++) {
    uint64_t count = 1 + random() % 9;
    Bytes base = RandomBytes(random, count * kDeltaPage), now = base;
    std::vector<bool> touched(count * kPageBlocks);
    for (uint64_t writes = random() % 40; writes > 0; writes--) {
      size_t at = random() % now.size();
      now[at] ^= static_cast<uint8_t>(1 + random() % 255);
      touched[at / kDeltaBlock] = true;
    }
    Bytes deltas = Deltas(random(), base, now);
    uint64_t blocks = 0;
    for (size_t b = 0; b < touched.size(); b++)
      blocks += memcmp(base.data() + b * kDeltaBlock, now.data() + b * kDeltaBlock, kDeltaBlock) != 0;
    // 16 bits: of these few thousand blocks none is to collide with this seed
    CHECK_EQ(deltas.size(), count * kBlockMapBytes + blocks * kDeltaBlock);
    CHECK(ApplyDeltas(base.data(), count, deltas.data(), deltas.size()));
    CHECK(base == now);
  }
}

TEST(block_delta_of_another_base_is_that_of_its_digests) {
  // Blocks that were not sent are the base's own: whoever compares the page with its tag sees it.
  std::mt19937_64 random(2);
  Bytes base = RandomBytes(random, kDeltaPage), now = base, other = base;
  now[0] ^= 1;
  other[kDeltaPage - 1] ^= 1;
  Bytes deltas = Deltas(3, base, now);
  CHECK(ApplyDeltas(other.data(), 1, deltas.data(), deltas.size()));
  CHECK(other != now);
  CHECK_EQ(other[0], now[0]);
}

TEST(block_delta_refuses_what_is_none) {
  std::mt19937_64 random(4);
  Bytes base = RandomBytes(random, 3 * kDeltaPage), now = RandomBytes(random, 3 * kDeltaPage);
  Bytes deltas = Deltas(5, base, now), before = base;
  for (size_t size = 0; size < deltas.size(); size += size < 20 ? 1 : 61)
    CHECK(!ApplyDeltas(base.data(), 3, deltas.data(), size));
  CHECK(!ApplyDeltas(base.data(), 3, deltas.data(), deltas.size() + 1));
  CHECK(!ApplyDeltas(base.data(), 2, deltas.data(), deltas.size()));
  CHECK(!ApplyDeltas(base.data(), UINT64_MAX / 2, deltas.data(), deltas.size()));
  deltas[1] ^= 1;  // a block more, or one less
  CHECK(!ApplyDeltas(base.data(), 3, deltas.data(), deltas.size()));
  CHECK(base == before);
  // Whatever it is, if it fits its own lists it writes inside the pages.
  for (int run = 0; run < 2000; run++) {
    Bytes any = RandomBytes(random, random() % 600);
    ApplyDeltas(base.data(), 1 + random() % 3, any.data(), any.size());
  }
}

TEST(block_delta_digests_differ_with_the_bits_and_the_seed) {
  std::mt19937_64 random(6);
  BlockHash hash(7), again(7), other(8);
  Bytes block = RandomBytes(random, kDeltaBlock);
  CHECK_EQ(hash.Digest(block.data()), again.Digest(block.data()));
  int same = 0, differs = 0;
  uint16_t of = hash.Digest(block.data());
  for (size_t bit = 0; bit < kDeltaBlock * 8; bit++) {
    block[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    same += hash.Digest(block.data()) == of;
    block[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
  }
  CHECK(same <= 2);
  // Counters, as guests have them: those that collide under one seed don't under another.
  int first = 0, both = 0;
  for (uint64_t n = 0; n < 200000; n++) {
    memcpy(block.data() + 40, &n, sizeof n);
    uint64_t next = n + 1;
    uint16_t a = hash.Digest(block.data()), b = other.Digest(block.data());
    memcpy(block.data() + 40, &next, sizeof next);
    bool here = hash.Digest(block.data()) == a;
    first += here;
    both += here && other.Digest(block.data()) == b;
    differs += a != b;
  }
  CHECK(first <= 20);  // about 3 of 200,000
  CHECK_EQ(both, 0);
  CHECK(differs > 199000);
}

}  // namespace pagetide::test
