// Tags: the digest against published vectors and against itself, the zero page, and files with holes.
#include "core/tags.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include "test/guest.h"

namespace pagetide::test {

namespace {

std::vector<const Sha256Engine*> Engines() {
  std::vector<const Sha256Engine*> engines = {&PortableSha256()};
  if (InstructionSha256() != nullptr) engines.push_back(InstructionSha256());
  return engines;
}

std::string Hex(const uint8_t* bytes, size_t size) {
  std::string text;
  for (size_t i = 0; i < size; i++) {
    char pair[3];
    snprintf(pair, sizeof pair, "%02x", bytes[i]);
    text += pair;
  }
  return text;
}

std::string Digest(const Sha256Engine& engine, const std::string& message) {
  uint8_t digest[kShaDigest];
  ShaMessage(engine, reinterpret_cast<const uint8_t*>(message.data()), message.size(), digest);
  return Hex(digest, sizeof digest);
}

std::shared_ptr<DomainKey> Key(uint8_t seed = 7) {
  uint8_t bytes[kDomainKeyBytes];
  for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = static_cast<uint8_t>(seed + 11 * i);
  auto key = DomainKey::Open(bytes, sizeof bytes);
  CHECK_OK(key.error);
  return key.value;
}

// By the definition alone: the message in one piece, padded by ShaMessage.
std::string Expected(const DomainKey& key, const uint8_t* page) {
  if (IsAllZero(page, kTagPage)) return std::string(2 * kTagBytes, '0');
  std::string message(reinterpret_cast<const char*>(key.bytes()), kDomainKeyBytes);
  message.append(reinterpret_cast<const char*>(page), kTagPage);
  return Digest(PortableSha256(), message).substr(0, 2 * kTagBytes);
}

// A sparse file on the test's folder: frames with content where `data` says so.
int SparseFile(const std::vector<bool>& data) {
  int fd = open((Folder() + "/ram").c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  CHECK(fd >= 0);
  CHECK(ftruncate(fd, static_cast<off_t>(data.size() * kTagPage)) == 0);
  for (size_t i = 0; i < data.size(); i++) {
    if (!data[i]) continue;
    auto page = Pages(i, 1);
    CHECK(pwrite(fd, page.get(), kTagPage, static_cast<off_t>(i * kTagPage)) == kTagPage);
  }
  return fd;
}

}  // namespace

TEST(tags_sha256_vectors) {
  // FIPS 180-4's examples (NIST, SHA256.pdf and SHA2_Additional.pdf)
  const struct {
    std::string message;
    const char* digest;
  } vectors[] = {
      {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
      {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
      {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
       "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
      {std::string("\xbd"), "68325720aabd7c82f30f554b313d0570c95accbb7dc4b5aae11204c08ffe732b"},
      {std::string(55, '\0'), "02779466cdec163811d078815c633f21901413081449002f24aa3e80f0b88ef7"},
      {std::string(56, '\0'), "d4817aa5497628e7c77e6b606107042bbba3130888c5f47a375e6179be789fbb"},
      {std::string(64, '\0'), "f5a5fd42d16a20302798ef6ed309979b43003d2320d9f0e8ea9831a92759fb4b"},
      {std::string(1000, 'A'), "c2e686823489ced2017f6059b8b239318b6364f6dcd835d0a519105a1eadd6e4"},
      {std::string(1000000, 'a'), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"},
  };
  for (const Sha256Engine* engine : Engines())
    for (const auto& vector : vectors) CHECK_EQ(Digest(*engine, vector.message), std::string(vector.digest));
}

TEST(tags_two_messages_at_once_are_two_messages) {
  const Sha256Engine* engine = InstructionSha256();
  if (engine == nullptr) Skip("this CPU has no SHA instructions");
  Random random(Seed());
  for (size_t blocks : {1, 2, 3, 63, 64}) {
    std::vector<uint8_t> a(blocks * kShaBlock + 1), b(blocks * kShaBlock + 3);  // the second begins unaligned
    for (auto* bytes : {&a, &b})
      for (uint8_t& byte : *bytes) byte = static_cast<uint8_t>(random.Next());
    ShaState one = kShaInitial, two = kShaInitial, expected_one = kShaInitial, expected_two = kShaInitial;
    engine->two(one, a.data(), two, b.data() + 3, blocks);
    PortableSha256().blocks(expected_one, a.data(), blocks);
    PortableSha256().blocks(expected_two, b.data() + 3, blocks);
    CHECK(memcmp(&one, &expected_one, sizeof one) == 0);
    CHECK(memcmp(&two, &expected_two, sizeof two) == 0);
  }
}

TEST(tags_of_pages_are_what_the_scheme_says) {
  auto key = Key();
  Random random(Seed());
  for (int round = 0; round < 40; round++) {
    uint64_t count = random.Below(12);
    auto pages = Pages(random.Next(), count + 1);
    for (uint64_t i = 0; i < count; i++) {
      if (random.Below(3) == 0) memset(pages.get() + i * kTagPage, 0, kTagPage);
      // nearly zero: one byte anywhere, the ends above all
      if (random.Below(4) == 0) {
        uint64_t at[] = {0, 15, 16, kTagPage - 1, random.Below(kTagPage)};
        memset(pages.get() + i * kTagPage, 0, kTagPage);
        pages.get()[i * kTagPage + at[random.Below(5)]] = 1;
      }
    }
    for (const Sha256Engine* engine : Engines()) {
      std::vector<uint8_t> tags(count * kTagBytes + 1, 0xee);
      uint64_t zero = TagPages(*key, pages.get(), count, tags.data(), *engine), expected_zero = 0;
      for (uint64_t i = 0; i < count; i++) {
        const uint8_t *page = pages.get() + i * kTagPage, *tag = tags.data() + i * kTagBytes;
        expected_zero += IsAllZero(page, kTagPage) ? 1 : 0;
        CHECK_EQ(Hex(tag, kTagBytes), Expected(*key, page));
        CHECK(VerifyPage(*key, page, tag, *engine));
        uint8_t other[kTagBytes];
        memcpy(other, tag, kTagBytes);
        other[random.Below(kTagBytes)] ^= static_cast<uint8_t>(1 + random.Below(255));
        CHECK(!VerifyPage(*key, page, other, *engine));
      }
      CHECK_EQ(zero, expected_zero);
      CHECK_EQ(tags[count * kTagBytes], 0xee);  // nothing behind the last tag
    }
  }
}

TEST(tags_depend_on_the_domain) {
  auto mine = Key(1), other = Key(2);
  auto page = Pages(3, 1);
  uint8_t a[kTagBytes], b[kTagBytes];
  TagPages(*mine, page.get(), 1, a);
  TagPages(*other, page.get(), 1, b);
  CHECK(memcmp(a, b, kTagBytes) != 0);
  CHECK(!VerifyPage(*other, page.get(), a));
}

TEST(tags_keep_the_zero_tag_for_zero_pages) {
  auto key = Key();
  auto page = Pages(1, 1);
  const uint8_t zero[kTagBytes] = {};
  uint8_t tag[kTagBytes], one[kTagBytes] = {};
  one[kTagBytes - 1] = 1;
  // a digest that begins with zeros, which no page is known to have
  Sha256Engine none = {"none", [](ShaState& state, const uint8_t*, size_t) { state = {}; }, nullptr};
  CHECK_EQ(TagPages(*key, page.get(), 1, tag, none), 0u);
  CHECK(memcmp(tag, one, kTagBytes) == 0);
  CHECK(VerifyPage(*key, page.get(), one, none));
  CHECK(!VerifyPage(*key, page.get(), zero, none));
  // and a zero page has no other tag than its own, not even its digest
  std::vector<uint8_t> zeros(kTagPage);
  std::string message(reinterpret_cast<const char*>(key->bytes()), kDomainKeyBytes);
  message.append(kTagPage, '\0');
  uint8_t digest[kShaDigest];
  ShaMessage(Sha256(), reinterpret_cast<const uint8_t*>(message.data()), message.size(), digest);
  CHECK(!VerifyPage(*key, zeros.data(), digest));
  CHECK(VerifyPage(*key, zeros.data(), zero));
}

TEST(tags_refuse_keys_of_another_size) {
  uint8_t bytes[64] = {};
  for (size_t size : {0, 16, 31, 33, 64}) {
    auto key = DomainKey::Open(bytes, size);
    CHECK_EQ(key.error.kind, ErrorKind::Argument);
    CHECK_CONTAINS(key.error.Message(), "32 bytes");
  }
}

TEST(tags_of_a_file_skip_holes_and_create_no_page) {
  auto key = Key();
  Random random(Seed());
  for (int round = 0; round < 20; round++) {
    std::vector<bool> data(1 + random.Below(300));
    bool on = random.Below(2) == 0;
    for (size_t i = 0; i < data.size(); i++) {
      if (random.Below(5) == 0) on = !on;
      data[i] = on;
    }
    int fd = SparseFile(data);
    struct stat before {
    }, after{};
    CHECK(fstat(fd, &before) == 0);
    std::vector<uint8_t> scratch(kTagPage * (1 + random.Below(80)) + random.Below(100));
    uint64_t first = random.Below(data.size()), count = 1 + random.Below(data.size() - first);
    std::vector<uint8_t> tags(count * kTagBytes, 0xee);
    auto zero = TagFile(*key, fd, first * kTagPage, count, tags.data(), scratch.data(), scratch.size());
    CHECK_OK(zero.error);
    uint64_t holes = 0;
    for (uint64_t i = 0; i < count; i++) {
      std::vector<uint8_t> page(kTagPage);
      if (data[first + i]) Fill(page.data(), first + i, kTagPage);
      holes += data[first + i] ? 0 : 1;
      CHECK_EQ(Hex(tags.data() + i * kTagBytes, kTagBytes), Expected(*key, page.data()));
    }
    CHECK_EQ(zero.value, holes);
    CHECK(fstat(fd, &after) == 0);
    CHECK_EQ(after.st_blocks, before.st_blocks);
    close(fd);
  }
}

TEST(tags_of_a_file_count_written_zeros_too) {
  auto key = Key();
  int fd = SparseFile({true, false, true});
  std::vector<uint8_t> zeros(kTagPage), scratch(kTagPage), tags(3 * kTagBytes);
  CHECK(pwrite(fd, zeros.data(), kTagPage, 0) == kTagPage);
  auto zero = TagFile(*key, fd, 0, 3, tags.data(), scratch.data(), scratch.size());
  CHECK_OK(zero.error);
  CHECK_EQ(zero.value, 2u);
  close(fd);
}

TEST(tags_of_a_file_that_is_too_short) {
  auto key = Key();
  std::vector<uint8_t> scratch(64 * kTagPage), tags(16 * kTagBytes);
  auto tag = [&](int fd, uint64_t frame, uint64_t count) {
    return TagFile(*key, fd, frame * kTagPage, count, tags.data(), scratch.data(), scratch.size()).error;
  };
  int fd = SparseFile({true, true, true, true});
  Error error = tag(fd, 2, 3);
  CHECK_EQ(error.err, EIO);
  CHECK_EQ(error.start, 4 * kTagPage);
  CHECK_EQ(error.length, kTagPage);
  CHECK_CONTAINS(error.Message(), "the file ends inside the range");
  // half a page at the end, and a hole behind which nothing comes
  CHECK(ftruncate(fd, 3 * kTagPage + 100) == 0);
  error = tag(fd, 0, 4);
  CHECK_EQ(error.start, 3 * kTagPage + 100);
  CHECK_EQ(error.length, kTagPage - 100);
  CHECK_OK(tag(fd, 0, 3));
  CHECK_EQ(tag(fd, 8, 2).start, 8 * kTagPage);
  close(fd);
  fd = SparseFile({true, false, false, false});
  CHECK_OK(tag(fd, 0, 4));
  CHECK_EQ(tag(fd, 1, 4).start, 4 * kTagPage);
  close(fd);
}

TEST(tags_of_a_file_refuse_bad_arguments) {
  auto key = Key();
  int fd = SparseFile({true});
  std::vector<uint8_t> scratch(kTagPage), tags(kTagBytes, 0xee);
  auto refused = [&](uint64_t offset, uint64_t count, size_t size, const char* what) {
    auto zero = TagFile(*key, fd, offset, count, tags.data(), scratch.data(), size);
    CHECK_EQ(zero.error.kind, ErrorKind::Argument);
    CHECK_CONTAINS(zero.error.Message(), what);
  };
  refused(0, 0, kTagPage, "1 to 512 frames");
  refused(0, kMaxTagFramesOfFile + 1, kTagPage, "1 to 512 frames");
  refused(512, 1, kTagPage, "page aligned");
  refused(~0ull / kTagPage * kTagPage, 1, kTagPage, "outside any file");
  refused(0, 1, kTagPage - 1, "scratch");
  CHECK_EQ(tags[0], 0xee);
  auto zero = TagFile(*key, -1, 0, 1, tags.data(), scratch.data(), scratch.size());
  CHECK_EQ(zero.error.err, EBADF);
  close(fd);
}

}  // namespace pagetide::test
