// Page hashes: what they tell apart, where they come from, and that whatever hash lies beside a frame, a page that is
// not the one that was asked for is never given.
#include "core/page_hash.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <set>
#include <vector>

#include "test/resident_support.h"

namespace pagetide::test {

namespace {

uint64_t HashAt(const std::vector<uint8_t>& hashes, uint64_t at) {
  uint64_t hash;
  memcpy(&hash, hashes.data() + at * kPageHashBytes, sizeof hash);
  return hash;
}

struct Tagged {
  std::vector<uint8_t> tags, hashes;
};

// As a guest that runs here is tagged.
Tagged TagAndHashFile(const DomainKey& key, const GuestFile& file, uint64_t frames) {
  Tagged tagged{std::vector<uint8_t>(frames * kTagBytes), std::vector<uint8_t>(frames * kPageHashBytes, 0xee)};
  auto scratch = Pages(0, 3);  // several reads, that do not end with a file
  auto zero = TagFile(key, file.fd(), 0, frames, tagged.tags.data(), scratch.get(), 3 * kTagPage, tagged.hashes.data());
  CHECK_OK(zero.error);
  return tagged;
}

// Whether the page comes, and then it is page `n`.
bool Comes(ResidentIndex& index, const Tag& tag, uint64_t n) {
  uint8_t page[kTagPage];
  if (!index.Copy(1, tag, page)) return false;
  CHECK(HasContent(page, n, kTagPage));
  return true;
}

}  // namespace

TEST(page_hash_tells_every_bit_apart) {
  auto key = ResidentKey(), other = ResidentKey(6);
  auto page = Pages(3, 1);
  uint8_t tag[kTagBytes];
  TagPages(*key, page.get(), 1, tag);
  uint64_t hash = PageHash(*key, page.get(), tag);
  CHECK(hash != kNoPageHash);
  CHECK_EQ(PageHash(*key, page.get(), tag), hash);
  std::set<uint64_t> seen{hash};
  auto fresh = [&](uint64_t one) { return seen.insert(one).second; };
  CHECK(fresh(PageHash(*other, page.get(), tag)));
  for (size_t bit = 0; bit < kTagPage * 8; bit++) {
    page.get()[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    CHECK(fresh(PageHash(*key, page.get(), tag)));
    page.get()[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
  }
  for (size_t bit = 0; bit < kTagBytes * 8; bit++) {
    tag[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    CHECK(fresh(PageHash(*key, page.get(), tag)));
    tag[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
  }
  // words that change places, the pairs that are multiplied too
  for (size_t other_word = 8; other_word < kTagPage; other_word += 8) {
    auto swapped = Pages(3, 1);
    memcpy(swapped.get(), page.get() + other_word, 8);
    memcpy(swapped.get() + other_word, page.get(), 8);
    CHECK(fresh(PageHash(*key, swapped.get(), tag)));
  }
  CHECK_EQ(PageHash(*key, page.get(), tag), hash);
}

TEST(page_hash_comes_with_the_tags_of_a_file) {
  constexpr uint64_t kFrames = 200;
  auto key = ResidentKey();
  GuestFile file(kFrames);
  for (uint64_t f = 0; f < kFrames; f++) {
    if (f % 7 != 3 && (f < 80 || f > 120)) file.Write(f, f);
  }
  Tagged tagged = TagAndHashFile(*key, file, kFrames);
  std::vector<uint8_t> alone(kFrames * kTagBytes);
  auto scratch = Pages(0, 1);
  CHECK_OK(TagFile(*key, file.fd(), 0, kFrames, alone.data(), scratch.get(), kTagPage).error);
  CHECK(alone == tagged.tags);
  for (uint64_t f = 0; f < kFrames; f++) {
    uint64_t hash = HashAt(tagged.hashes, f);
    if (f % 7 == 3 || (f >= 80 && f <= 120)) {
      CHECK_EQ(hash, kNoPageHash);
    } else {
      CHECK_EQ(hash, PageHash(*key, Pages(f, 1).get(), tagged.tags.data() + f * kTagBytes));
    }
  }
}

TEST(page_hash_spares_no_page_that_changed) {
  constexpr uint64_t kFrames = 8;
  auto key = ResidentKey();
  auto index = OpenResident(1024);
  GuestFile file(kFrames);
  for (uint64_t f = 0; f < kFrames; f++) file.Write(f, f);
  Tagged tagged = TagAndHashFile(*key, file, kFrames);
  uint32_t number = AddFile(*index, file, kFrames, key);
  CHECK_OK(index->Set(number, 0, kFrames, tagged.tags.data(), tagged.hashes.data()));
  auto tag = [&](uint64_t f) { return Tag::Load(tagged.tags.data() + f * kTagBytes); };
  for (uint64_t f = 0; f < kFrames; f++) CHECK(Comes(*index, tag(f), f));
  // one bit, at either end
  for (off_t at : {static_cast<off_t>(kTagPage), static_cast<off_t>(3 * kTagPage - 1)}) {
    uint8_t byte;
    CHECK(pread(file.fd(), &byte, 1, at) == 1);
    byte ^= 1;
    CHECK(pwrite(file.fd(), &byte, 1, at) == 1);
  }
  CHECK(!Comes(*index, tag(1), 1));
  CHECK(!Comes(*index, tag(2), 2));
  CHECK_EQ(index->Stats().stale, 2u);
  CHECK_EQ(index->Stats().listed, kFrames - 2);
  // another page of the same guest in its place, whose own hash is known too
  file.Write(4, 5);
  CHECK(!Comes(*index, tag(4), 4));
  // and listed under the tag that it has now, with the hash of what was there before
  CHECK_OK(index->Set(number, 4, 1, tagged.tags.data() + 5 * kTagBytes, tagged.hashes.data() + 4 * kPageHashBytes));
  file.Write(5, 0);
  CHECK(Comes(*index, tag(5), 5));
}

// The digest decides where the hash is another's, is made up, or is not there; and what it found right is remembered.
TEST(page_hash_that_does_not_match_changes_nothing) {
  constexpr uint64_t kFrames = 4;
  auto key = ResidentKey(), other = ResidentKey(6);
  auto index = OpenResident(4096);
  GuestFile file(kFrames), sibling(kFrames);
  for (uint64_t f = 0; f < kFrames; f++) file.Write(f, f), sibling.Write(f, f);
  Tagged tagged = TagAndHashFile(*key, file, kFrames), theirs = TagAndHashFile(*other, sibling, kFrames);
  auto tag = [&](uint64_t f) { return Tag::Load(tagged.tags.data() + f * kTagBytes); };
  uint32_t number = AddFile(*index, file, kFrames, key);
  std::vector<uint8_t> wrong(kFrames * kPageHashBytes);
  for (uint64_t round = 0; round < 4; round++) {
    for (uint64_t f = 0; f < kFrames; f++) {
      uint64_t hash = round == 0   ? HashAt(tagged.hashes, (f + 1) % kFrames)
                      : round == 1 ? 0x0123456789abcdefull
                      : round == 2 ? kNoPageHash
                                   : HashAt(theirs.hashes, f);
      memcpy(wrong.data() + f * kPageHashBytes, &hash, sizeof hash);
    }
    CHECK_OK(index->Set(number, 0, kFrames, tagged.tags.data(), wrong.data()));
    for (int twice = 0; twice < 2; twice++) {
      for (uint64_t f = 0; f < kFrames; f++) CHECK(Comes(*index, tag(f), f));
    }
  }
  CHECK_EQ(index->Stats().stale, 0u);
  // a page of another domain is not given under a tag of its own, whatever is known of it
  uint32_t two = AddFile(*index, sibling, kFrames, key);
  CHECK_OK(index->Set(two, 0, kFrames, theirs.tags.data(), theirs.hashes.data()));
  for (uint64_t f = 0; f < kFrames; f++) CHECK(!Comes(*index, Tag::Load(theirs.tags.data() + f * kTagBytes), f));
}

TEST(page_hash_goes_with_its_guest) {
  auto key = ResidentKey();
  auto index = OpenResident(1024);  // room for one file at a time: the next one gets the same slots
  for (uint64_t n : {0ull, 100ull, 200ull}) {
    GuestFile file(4);
    for (uint64_t f = 0; f < 4; f++) file.Write(f, n + f);
    Tagged tagged = TagAndHashFile(*key, file, 4);
    uint32_t number = AddFile(*index, file, 4, key);
    CHECK_OK(index->Set(number, 0, 4, tagged.tags.data(), n == 200 ? nullptr : tagged.hashes.data()));
    for (uint64_t f = 0; f < 4; f++) CHECK(Comes(*index, Tag::Load(tagged.tags.data() + f * kTagBytes), n + f));
    index->Remove(number);
  }
}

}  // namespace pagetide::test
