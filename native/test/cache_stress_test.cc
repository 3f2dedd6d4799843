// Threads that look up, install, insert, evict, hold and remove at once, in a cache that is far too small: every page
// that anybody gets must be the one that was asked for.
#include <sys/mman.h>

#include <thread>
#include <vector>

#include "test/cache_support.h"

namespace pagetide::test {

namespace {

constexpr uint64_t kPages = 96;
constexpr uint64_t kSlots = 24;
constexpr uint32_t kDomains = 3;

// Made once: a page's tag takes longer than a lookup.
struct Book {
  Book() {
    for (uint64_t n = 0; n < kPages; n++) {
      pages.push_back(std::make_unique<Page>(n));
      Tag tag = pages[n]->tag(Domain(n));
      memcpy(tags + n * sizeof tag, &tag, sizeof tag);
    }
  }
  static uint32_t Domain(uint64_t n) { return static_cast<uint32_t>(n % kDomains); }
  Tag tag(uint64_t n) const { return Tag::Load(tags + n * sizeof(Tag)); }
  std::vector<std::unique_ptr<Page>> pages;
  uint8_t tags[kPages * sizeof(Tag)];
};

struct Shared {
  Book book;
  std::shared_ptr<PageCache> cache;
  std::atomic<bool> over{false};
  std::atomic<uint64_t> got{0};
};

// Popular pages more often, so that there are hits.
uint64_t AnyPage(Random& random) {
  return random.Below(2) == 0 ? random.Below(12) : random.Below(kPages);
}

void Inserter(Shared& s, uint64_t seed) {
  Random random(seed);
  while (!s.over) {
    uint64_t n = AnyPage(random);
    Insertion result =
        s.cache->Insert(s.book.tag(n), Book::Domain(n), s.book.pages[n]->bytes, static_cast<uint8_t>(random.Below(3)));
    CHECK(result == Insertion::Inserted || result == Insertion::Present || result == Insertion::Full);
  }
}

void Reader(Shared& s, uint64_t seed) {
  Random random(seed);
  uint8_t into[kCachePage];
  while (!s.over) {
    uint64_t n = AnyPage(random);
    if (!s.cache->Read(s.book.tag(n), into)) continue;
    CHECK(memcmp(into, s.book.pages[n]->bytes, kCachePage) == 0);
    s.got++;
  }
}

// A guest a turn, filled from the cache where it can be, compared in full.
void Installer(Shared& s, uint64_t seed) {
  Random random(seed);
  while (!s.over) {
    Memory memory(Kind::Private, kPages);
    auto session = Serve(memory);
    for (int turn = 0; turn < 40; turn++) {
      uint64_t frame = random.Below(kPages);
      Installed result = session->InstallFromCache(frame, 1 + random.Below(kPages - frame), s.book.tags, *s.cache);
      CHECK(result.outcome == Outcome::Done || result.outcome == Outcome::Absent);
      s.got += result.installed;
    }
    CHECK_OK(session->Unregister(true));
    for (uint64_t f = 0; f < kPages; f++) {
      bool present = session->table()->Get(f) == FrameState::Present;
      CHECK(present ? memcmp(memory.at(f), s.book.pages[f]->bytes, kCachePage) == 0
                    : IsAllZero(memory.at(f), kCachePage));
    }
  }
}

void Holder(Shared& s, uint64_t seed) {
  Random random(seed);
  while (!s.over) {
    uint64_t first = random.Below(kPages - 8);
    s.cache->Pin(seed, s.book.tags + first * sizeof(Tag), 1 + random.Below(8));
    if (random.Below(2) == 0) s.cache->Unpin(seed);
    if (random.Below(20) == 0) s.cache->RemoveDomain(static_cast<uint32_t>(random.Below(kDomains)));
    if (random.Below(200) == 0) s.cache->Clear();
    CacheStats stats = s.cache->Stats();
    CHECK(stats.used <= kSlots && stats.pinned <= stats.used);
    s.cache->SetValue(s.book.tag(random.Below(kPages)), 2);
    std::this_thread::yield();
  }
  s.cache->Unpin(seed);
}

void Round(uint64_t seed, uint64_t nanoseconds) {
  Shared s;
  s.cache = OpenCache(kSlots);  // of the round before: unverified pages meet all of this too
  std::vector<std::thread> threads;
  uint64_t n = seed * 31;
  for (auto* work : {Inserter, Inserter, Reader, Installer, Installer, Holder})
    threads.emplace_back([&s, work, n = ++n] { work(s, n); });
  uint64_t end = NowNs() + nanoseconds;
  while (NowNs() < end) std::this_thread::yield();
  s.over = true;
  for (std::thread& thread : threads) thread.join();
  CacheStats stats = s.cache->Stats();
  CHECK_EQ(stats.pinned, 0u);
  CHECK_EQ(stats.rejected + stats.dropped, 0u);
  CHECK(stats.hits > 0 && stats.insertions > 0 && s.got > 0);
  // No slot was lost: as many new pages fit as there are slots.
  uint64_t used = stats.used;
  s.cache->Clear();
  for (uint64_t page = 0; page < kSlots; page++) CHECK_EQ(Put(*s.cache, 1000 + page), Insertion::Inserted);
  CHECK_EQ(s.cache->Stats().evictions, stats.evictions);
  CHECK(used <= kSlots);
  s.cache->Clear();
  for (uint64_t page = 0; page < kSlots; page++)
    s.cache->Insert(s.book.tag(page), Book::Domain(page), s.book.pages[page]->bytes, 0);
}

}  // namespace

TEST_SECONDS(cache_stress_of_everything, 60) {
  int rounds = 0;
  for (uint64_t end = NowNs() + 4'000'000'000; NowNs() < end || rounds < 2; rounds++)
    Round(Seed() + static_cast<uint64_t>(rounds), 500'000'000);
  printf("        %d rounds\n", rounds);
}

// Two pages that take turns in one slot, as fast as can be, under a reader that always wants the same one.
TEST_SECONDS(cache_stress_one_slot, 60) {
  auto cache = OpenCache(1);
  Page one(1), two(2);
  Tag first = one.tag(), second = two.tag();
  std::atomic<bool> over{false};
  std::atomic<uint64_t> hits{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; i++)
    threads.emplace_back([&] {
      uint8_t into[kCachePage];
      while (!over) {
        if (!cache->Read(first, into)) continue;
        CHECK(memcmp(into, one.bytes, kCachePage) == 0);
        hits++;
      }
    });
  uint64_t end = NowNs() + 2'000'000'000;
  while (NowNs() < end || hits < 10) {
    cache->Insert(first, 0, one.bytes, 0);
    cache->Insert(second, 0, two.bytes, 0);
  }
  over = true;
  for (std::thread& thread : threads) thread.join();
  CHECK(cache->Stats().evictions > 10);
}

}  // namespace pagetide::test
