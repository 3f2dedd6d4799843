// The cache's file: what it refuses, what it leaves behind, what it survives.
#include "core/cache_file.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

#include "test/cache_support.h"

namespace pagetide::test {

namespace {

std::string Path() {
  return Folder() + "/cache";
}

// Where the slot headers and pages of a cache of `slots` begin.
uint64_t HeaderAt(uint64_t slot) {
  return 4096 + slot * sizeof(StoredSlot);
}
uint64_t PageAt(uint64_t slots, uint64_t slot) {
  return CacheFile::BytesOf(slots) - (slots - slot) * kCachePage;
}

struct Opened {
  Opened() : fd(open(Path().c_str(), O_RDWR | O_CLOEXEC)) { CHECK(fd >= 0); }
  ~Opened() { close(fd); }
  void Write(const void* data, size_t length, uint64_t at) {
    CHECK(pwrite(fd, data, length, static_cast<off_t>(at)) == static_cast<ssize_t>(length));
  }
  void Read(void* data, size_t length, uint64_t at) {
    CHECK(pread(fd, data, length, static_cast<off_t>(at)) == static_cast<ssize_t>(length));
  }
  int fd;
};

uint64_t SizeOfFile() {
  struct stat info {};
  CHECK(stat(Path().c_str(), &info) == 0);
  return static_cast<uint64_t>(info.st_size);
}

// In which slot page `n` lies.
uint64_t SlotOf(uint64_t slots, uint64_t n) {
  Opened file;
  Page page(n);
  uint8_t bytes[kCachePage];
  for (uint64_t slot = 0; slot < slots; slot++) {
    file.Read(bytes, kCachePage, PageAt(slots, slot));
    if (memcmp(bytes, page.bytes, kCachePage) == 0) return slot;
  }
  CHECK(false);
  return 0;
}

}  // namespace

TEST(cache_file_slots_and_bytes_agree) {
  CHECK_EQ(CacheFile::BytesOf(1), 3 * 4096u);
  CHECK_EQ(CacheFile::BytesOf(0), 0u);
  CHECK_EQ(CacheFile::SlotsIn(3 * 4096 - 1), 0u);
  Random random(Seed());
  for (int i = 0; i < 1000; i++) {
    uint64_t bytes = random.Below(1ull << (14 + random.Below(28)));
    uint64_t slots = CacheFile::SlotsIn(bytes);
    CHECK(slots == 0 || CacheFile::BytesOf(slots) <= bytes);
    CHECK(CacheFile::BytesOf(slots + 1) > bytes);
  }
}

TEST(cache_file_is_allocated_private_and_locked) {
  auto cache = OpenCache(100);
  struct stat info {};
  CHECK(stat(Path().c_str(), &info) == 0);
  CHECK_EQ(info.st_mode & 0777, 0600u);
  CHECK_EQ(static_cast<uint64_t>(info.st_size), CacheFile::BytesOf(100));
  CHECK(info.st_blocks * 512 >= info.st_size);
  auto second = PageCache::Open(CacheOptions(100));
  CHECK_EQ(second.error.kind, ErrorKind::CacheInUse);
  CHECK_CONTAINS(second.error.Message(), "in use");
  // whoever may not open it changes nothing, with `replace` either
  PageCache::Options replace = CacheOptions(50);
  replace.replace = true;
  CHECK_EQ(PageCache::Open(replace).error.kind, ErrorKind::CacheInUse);
  CHECK_EQ(Put(*cache, 1), Insertion::Inserted);
  CHECK(Get(*cache, 1));
  cache.reset();
  CHECK_OK(PageCache::Open(CacheOptions(100)).error);
}

TEST(cache_file_of_another_shape_is_refused_or_replaced) {
  auto refused = [](const std::string& why) {
    uint64_t before = SizeOfFile();
    auto cache = PageCache::Open(CacheOptions(64));
    CHECK_EQ(cache.error.kind, ErrorKind::CacheFile);
    CHECK_CONTAINS(cache.error.Message(), why);
    CHECK_EQ(SizeOfFile(), before);
  };
  auto replaced = [] {
    PageCache::Options options = CacheOptions(64);
    options.replace = true;
    auto cache = PageCache::Open(options);
    CHECK_OK(cache.error);
    CHECK_EQ(cache.value->Stats().used, 0u);
    CHECK_EQ(Put(*cache.value, 1), Insertion::Inserted);
  };
  Put(*OpenCache(65), 1);
  refused("65 pages, not 64");
  replaced();
  CHECK(truncate(Path().c_str(), static_cast<off_t>(CacheFile::BytesOf(64)) - 1) == 0);
  refused("cut off");
  replaced();
  struct {
    uint32_t word;
    off_t at;
    const char* why;
  } damages[] = {{2, 8, "version 2"}, {8192, 12, "damaged"}, {63, 16, "damaged"}, {7, 32, "damaged"}};
  for (auto& damage : damages) {
    Opened().Write(&damage.word, 4, static_cast<uint64_t>(damage.at));
    refused(damage.why);
    replaced();
  }
  // a file of somebody's is never replaced
  for (const char* text : {"PTCACHA\n and more", "x"}) {
    unlink(Path().c_str());
    int fd = open(Path().c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    CHECK(write(fd, text, strlen(text)) > 0);
    close(fd);
    refused("no cache file");
    PageCache::Options options = CacheOptions(64);
    options.replace = true;
    CHECK_EQ(PageCache::Open(options).error.kind, ErrorKind::CacheFile);
    CHECK_EQ(SizeOfFile(), strlen(text));
  }
  unlink(Path().c_str());
  CHECK(mkfifo(Path().c_str(), 0600) == 0);
  refused("no regular file");
  PageCache::Options none = CacheOptions(0);
  CHECK_EQ(PageCache::Open(none).error.kind, ErrorKind::Argument);
}

TEST(cache_file_whose_making_was_cut_short_is_made_again) {
  Put(*OpenCache(8), 1);
  uint64_t unfinished = 0;
  Opened().Write(&unfinished, 8, 24);
  CHECK(truncate(Path().c_str(), 12345) == 0);
  auto cache = OpenCache(8);
  CHECK_EQ(cache->Stats().used, 0u);
  CHECK_EQ(SizeOfFile(), CacheFile::BytesOf(8));
}

TEST(cache_file_without_space_leaves_nothing) {
  if (!IsRoot()) Skip("needs root, to mount a small tmpfs");
  if (unshare(CLONE_NEWNS) != 0 || mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0)
    Skip("no mount namespace to be had");
  CHECK(mount("tmpfs", Folder().c_str(), "tmpfs", 0, "size=128k") == 0);
  auto cache = PageCache::Open(CacheOptions(64));
  CHECK_EQ(cache.error.err, ENOSPC);
  CHECK_CONTAINS(cache.error.Message(), "fallocate: ENOSPC");
  CHECK(access(Path().c_str(), F_OK) != 0);
  CHECK_EQ(Put(*OpenCache(16), 1), Insertion::Inserted);
  umount2(Folder().c_str(), MNT_DETACH);
}

TEST(cache_file_pages_are_used_again_and_wrong_ones_never) {
  constexpr uint64_t kSlots = 32;
  {
    auto cache = OpenCache(kSlots);
    for (uint64_t n = 0; n < 20; n++) CHECK_EQ(Put(*cache, n, static_cast<uint32_t>(n % 2)), Insertion::Inserted);
  }
  uint8_t byte = 0xee;
  uint64_t rotten = SlotOf(kSlots, 3), foreign = SlotOf(kSlots, 4), half = SlotOf(kSlots, 5), moved = SlotOf(kSlots, 6);
  {
    Opened file;
    file.Write(&byte, 1, PageAt(kSlots, rotten) + 4095);
    Page other(99);  // a whole page, but another
    file.Write(other.bytes, kCachePage, PageAt(kSlots, foreign));
    StoredSlot header;
    file.Read(&header, sizeof header, HeaderAt(half));
    CHECK(header.IsSealed(half));
    header.state = StoredState::Writing;
    header.Seal(half);
    file.Write(&header, sizeof header, HeaderAt(half));
    // a header that belongs elsewhere
    file.Read(&header, sizeof header, HeaderAt(moved));
    file.Write(&header, sizeof header, HeaderAt(kSlots - 1 == moved ? 0 : moved));
    file.Write(&byte, 1, HeaderAt(moved) + 7);
  }
  auto cache = OpenCache(kSlots);
  CacheStats stats = cache->Stats();
  CHECK_EQ(stats.used, 18u);
  CHECK_EQ(stats.dropped, 2u);
  CHECK(cache->Has(Page(3).tag(1)));
  for (uint64_t n = 0; n < 20; n++) CHECK_EQ(Get(*cache, n, static_cast<uint32_t>(n % 2)), n < 3 || n > 6);
  CHECK(!cache->Has(Page(3).tag(1)));
  stats = cache->Stats();
  CHECK_EQ(stats.used, 16u);
  CHECK_EQ(stats.dropped, 4u);
  CHECK_EQ(stats.hits, 16u);
  CHECK_EQ(stats.misses, 4u);
  // what was dropped is erased, and its slot is of use again
  uint8_t page[kCachePage];
  for (uint64_t slot : {rotten, foreign, half, moved}) {
    Opened().Read(page, kCachePage, PageAt(kSlots, slot));
    CHECK(IsAllZero(page, kCachePage));
  }
  for (uint64_t n = 3; n < 7; n++) CHECK_EQ(Put(*cache, n), Insertion::Inserted);
  for (uint64_t n = 30; n < 42; n++) CHECK_EQ(Put(*cache, n), Insertion::Inserted);
  CHECK_EQ(cache->Stats().evictions, 0u);
}

TEST(cache_file_pages_of_a_domain_without_key_wait) {
  Put(*OpenCache(8), 1, 7);
  uint32_t unknown = 7;
  PageCache::Options options = CacheOptions(8);
  options.verify.context = &unknown;
  auto cache = PageCache::Open(options);
  CHECK_OK(cache.error);
  CHECK(!Get(*cache.value, 1, 7));
  CHECK_EQ(Put(*cache.value, 2, 7), Insertion::Unverified);
  unknown = 0;
  CHECK(Get(*cache.value, 1, 7));
  CHECK_EQ(cache.value->Stats().dropped, 0u);
}

TEST(cache_file_cut_off_while_in_use_is_a_miss_not_a_signal) {
  constexpr uint64_t kSlots = 64;
  for (int way = 0; way < 5; way++) {
    unlink(Path().c_str());
    auto cache = OpenCache(kSlots);
    for (uint64_t n = 0; n < 40; n++) Put(*cache, n);
    Memory memory(Kind::Private, 4);
    auto session = Serve(memory);
    Page page(0);
    Tag tag = page.tag();
    uint8_t tags[4 * sizeof(Tag)];
    for (int i = 0; i < 4; i++) memcpy(tags + i * sizeof(Tag), &tag, sizeof tag);
    CHECK_EQ(session->InstallFromCache(0, 1, tags, *cache).outcome, Outcome::Done);
    // also in the middle of the very page that is wanted: the rest of it would read as zeros
    off_t inside = static_cast<off_t>(PageAt(kSlots, SlotOf(kSlots, 0)) + 100);
    CHECK(truncate(Path().c_str(), way == 3 ? 0 : way == 4 ? inside : 5000) == 0);
    if (way == 0) CHECK(!Get(*cache, 1));
    if (way == 1) CHECK_EQ(Put(*cache, 50), Insertion::Lost);
    if (way == 2) CHECK_EQ(cache->RemoveDomain(0), 40u);
    Installed result = session->InstallFromCache(1, 2, tags, *cache);
    CHECK_EQ(result.outcome, Outcome::Absent);
    CHECK_EQ(result.next, 1u);
    CHECK_EQ(result.err, 0);
    CHECK_EQ(session->table()->Get(1), FrameState::Missing);
    // made longer again it would be full of zeros: it stays lost
    CHECK(truncate(Path().c_str(), static_cast<off_t>(CacheFile::BytesOf(kSlots))) == 0);
    CHECK_EQ(session->InstallFromCache(1, 1, tags, *cache).outcome, Outcome::Absent);
    CHECK_EQ(Put(*cache, 51), Insertion::Lost);
    CHECK(!Get(*cache, 2));
    CHECK(cache->Stats().lost);
    CHECK_OK(session->Unregister(true));
  }
}

// The kernel copies the pieces of a store in order, and a page is verified before its first use: a kill at any moment
// leaves right pages only.
TEST_SECONDS(cache_file_after_kill_holds_right_pages_only, 60) {
  Random random(Seed());
  uint64_t found = 0;
  for (int round = 0; round < 20; round++) {
    int ready[2];
    CHECK(pipe2(ready, O_CLOEXEC) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
      auto cache = OpenCache(16);
      for (uint64_t n = 0;; n++) {
        Put(*cache, random.Below(64));
        if (n == 32 && write(ready[1], "x", 1) != 1) _exit(1);
      }
    }
    close(ready[1]);
    char byte;
    CHECK(read(ready[0], &byte, 1) == 1);
    close(ready[0]);
    uint64_t until = NowNs() + random.Below(3'000'000);
    while (NowNs() < until) {
    }
    kill(child, SIGKILL);
    CHECK(waitpid(child, nullptr, 0) == child);
    auto cache = OpenCache(16);
    for (uint64_t n = 0; n < 64; n++) found += Get(*cache, n) ? 1 : 0;
    CHECK(cache->Stats().dropped <= 1);
  }
  CHECK(found > 20 * 8);
}

// A second a GiB is asked for; this is a sixteenth, under whatever load there is.
TEST_SECONDS(cache_file_opens_without_reading_pages, 60) {
  constexpr uint64_t kSlots = 16384;
  {
    auto cache = OpenCache(kSlots);
    for (uint64_t n = 0; n < kSlots; n++) CHECK_EQ(Put(*cache, n), Insertion::Inserted);
  }
  uint64_t start = NowNs();
  auto cache = OpenCache(kSlots);
  uint64_t took = NowNs() - start;
  CHECK_EQ(cache->Stats().used, kSlots);
  CHECK(Get(*cache, kSlots / 2));
  printf("        %llu pages in %.1f ms\n", static_cast<unsigned long long>(kSlots), static_cast<double>(took) / 1e6);
  CHECK(took < 1'000'000'000);
}

}  // namespace pagetide::test
