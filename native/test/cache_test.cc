// The shared-page cache: its operations against a model, pins, domains, its memory, and installing from it.
#include <fcntl.h>
#include <unistd.h>

#include <map>
#include <set>
#include <utility>
#include <vector>

#include "core/page_cache.h"
#include "test/cache_support.h"

namespace pagetide::test {

namespace {

std::vector<uint8_t> Tags(const std::vector<uint64_t>& pages, uint32_t domain = 0) {
  std::vector<uint8_t> tags(pages.size() * sizeof(Tag));
  for (size_t i = 0; i < pages.size(); i++) {
    Tag tag = Page(pages[i]).tag(domain);
    memcpy(tags.data() + i * sizeof tag, &tag, sizeof tag);
  }
  return tags;
}

}  // namespace

TEST(cache_index_is_46_bytes_a_page) {
  for (uint64_t slots : {1000ull, 4096ull, 65536ull}) {
    PageCache::Options options = CacheOptions(slots);
    options.path += std::to_string(slots);
    auto cache = PageCache::Open(options);
    CHECK_OK(cache.error);
    uint64_t bytes = cache.value->Stats().index_bytes;
    CHECK(bytes <= 48 * slots);
    CHECK(bytes <= 46 * slots + 16);
    CHECK(bytes >= 46 * slots);
  }
}

TEST(cache_refuses_what_is_not_right) {
  auto cache = OpenCache(4);
  Page page(1), other(2);
  CHECK_EQ(cache->Insert(other.tag(), 0, page.bytes, 0), Insertion::Rejected);
  CHECK_EQ(cache->Insert(page.tag(1), 0, page.bytes, 0), Insertion::Rejected);  // of another domain
  uint8_t zeros[kCachePage] = {};
  CHECK_EQ(cache->Insert(Tag{}, 0, zeros, 0), Insertion::Rejected);
  CHECK_EQ(cache->Stats().rejected, 3u);
  CHECK_EQ(cache->Stats().used, 0u);
  CHECK(!Get(*cache, 1));
  CHECK_EQ(Put(*cache, 1), Insertion::Inserted);
  CHECK_EQ(Put(*cache, 1), Insertion::Present);
  CHECK(Get(*cache, 1));
  PageCache::Options none = CacheOptions(4);
  none.verify = {};
  CHECK_EQ(PageCache::Open(none).error.kind, ErrorKind::Argument);
}

TEST(cache_held_pages_stay) {
  auto cache = OpenCache(10);
  for (uint64_t n = 0; n < 10; n++) Put(*cache, n);
  // twice in a set, in two sets, and one that is not there
  CHECK_EQ(cache->Pin(1, Tags({0, 1, 1, 2, 77}).data(), 5), 3u);
  CHECK_EQ(cache->Pin(2, Tags({2, 3}).data(), 2), 2u);
  CHECK_EQ(cache->Stats().pinned, 4u);
  for (uint64_t n = 100; n < 200; n++) Put(*cache, n);
  for (uint64_t n = 0; n < 10; n++) CHECK_EQ(Get(*cache, n), n < 4);
  CHECK_EQ(cache->Unpin(1), 3u);
  CHECK_EQ(cache->Unpin(1), 0u);
  CHECK_EQ(cache->Stats().pinned, 2u);
  for (uint64_t n = 200; n < 300; n++) Put(*cache, n);
  CHECK(Get(*cache, 2) && Get(*cache, 3));
  CHECK_EQ(cache->Unpin(2), 2u);
  // everything held: an insert is refused, and nothing breaks
  auto full = cache;
  CHECK_EQ(full->Clear(), 10u);
  std::vector<uint64_t> all;
  for (uint64_t n = 0; n < 10; n++) {
    Put(*full, n);
    all.push_back(n);
  }
  CHECK_EQ(full->Pin(3, Tags(all).data(), 10), 10u);
  CHECK_EQ(Put(*full, 50), Insertion::Full);
  CHECK_EQ(full->Stats().refused, 1u);
  CHECK_EQ(full->Unpin(3), 10u);
  CHECK_EQ(Put(*full, 50), Insertion::Inserted);
  CHECK_EQ(full->Clear(), 10u);
  for (uint64_t n = 0; n < 10; n++) Put(*full, n);
  CHECK_EQ(full->Pin(3, Tags(all).data(), 10), 10u);
  // what is removed is held no more, and what takes its slot isn't by mistake
  CHECK_EQ(full->RemoveDomain(0), 10u);
  CHECK_EQ(full->Stats().pinned, 0u);
  for (uint64_t n = 0; n < 10; n++) Put(*full, n);
  CHECK_EQ(full->Pin(4, Tags(all).data(), 10), 10u);
  CHECK_EQ(full->Unpin(3), 0u);
  CHECK_EQ(full->Stats().pinned, 10u);
}

TEST(cache_value_keeps_a_page) {
  auto cache = OpenCache(20);
  for (uint64_t n = 0; n < 20; n++) Put(*cache, n, 0, n < 5 ? kMaxValue : 0);
  Tag tag = Page(7).tag();
  CHECK(cache->SetValue(tag, 9));
  CHECK(!cache->SetValue(Page(77).tag(), 9));
  for (uint64_t n = 100; n < 150; n++) Put(*cache, n);
  for (uint64_t n = 0; n < 20; n++) CHECK_EQ(Get(*cache, n), n < 5 || n == 7);
}

TEST(cache_removed_domain_leaves_no_bytes) {
  constexpr uint64_t kSlots = 16;
  auto cache = OpenCache(kSlots);
  for (uint64_t n = 0; n < 12; n++) Put(*cache, n, static_cast<uint32_t>(n % 3));
  CHECK_EQ(cache->RemoveDomain(1), 4u);
  CHECK_EQ(cache->RemoveDomain(1), 0u);
  int fd = open(CacheOptions(kSlots).path.c_str(), O_RDONLY | O_CLOEXEC);
  std::vector<uint8_t> file(CacheFile::BytesOf(kSlots));
  CHECK(pread(fd, file.data(), file.size(), 0) == static_cast<ssize_t>(file.size()));
  close(fd);
  for (uint64_t n = 0; n < 12; n++) {
    bool there = false;
    for (uint64_t at = 0; at < file.size(); at += kCachePage)
      there |= memcmp(file.data() + at, Page(n).bytes, kCachePage) == 0;
    CHECK_EQ(there, n % 3 != 1);
    CHECK_EQ(Get(*cache, n, static_cast<uint32_t>(n % 3)), n % 3 != 1);
  }
}

// A page that was verified before its domain is removed does not come in after it.
TEST(cache_removal_refuses_what_was_verified_before) {
  static PageCache* removing = nullptr;
  PageCache::Options options = CacheOptions(8);
  options.verify = {[](void*, uint32_t domain, const uint8_t* page, const uint8_t* tag) {
                      Verdict verdict = VerifyTag(nullptr, domain, page, tag);
                      if (removing != nullptr) std::exchange(removing, nullptr)->RemoveDomain(domain);
                      return verdict;
                    },
                    nullptr};
  auto opened = PageCache::Open(options);
  CHECK_OK(opened.error);
  PageCache& cache = *opened.value;
  CHECK_EQ(Put(cache, 1), Insertion::Inserted);
  removing = &cache;
  CHECK_EQ(Put(cache, 2), Insertion::Full);
  CHECK(!Get(cache, 1));
  CHECK(!Get(cache, 2));
  CHECK_EQ(cache.Stats().used, 0u);
  CHECK_EQ(Put(cache, 2), Insertion::Inserted);
}

// A slot that somebody reads is never taken; removal waits for the reader.
TEST(cache_slot_is_not_reused_under_a_reader) {
  auto cache = OpenCache(1);
  Put(*cache, 1);
  PageCache::Hit hit;
  CHECK(cache->Enter(Page(1).tag(), &hit));
  CHECK_EQ(Put(*cache, 2), Insertion::Full);
  std::atomic<bool> removed{false};
  std::thread remover([&] {
    CHECK_EQ(cache->RemoveDomain(0), 1u);
    removed = true;
  });
  PageCache::Hit second;
  while (cache->Enter(Page(1).tag(), &second)) {
    cache->Leave(second);  // until it is retired: nobody new comes in
    std::this_thread::yield();
  }
  CHECK(!removed);
  CHECK(HasContent(hit.page, 1, kCachePage));
  cache->Leave(hit);
  remover.join();
  CHECK_EQ(Put(*cache, 2), Insertion::Inserted);
  CHECK(Get(*cache, 2));
}

// As many pages as there are slots, so that nothing is evicted: the cache is then a map, whatever happens to it.
TEST_SECONDS(cache_against_a_map, 60) {
  Random random(Seed());
  constexpr uint64_t kPages = 48;
  std::map<uint64_t, uint32_t> model;  // page → domain
  auto cache = OpenCache(kPages);
  uint64_t hits = 0, misses = 0;
  for (int step = 0; step < 20'000; step++) {
    uint64_t n = random.Below(kPages);
    uint32_t domain = static_cast<uint32_t>(n % 4);
    switch (random.Below(20)) {
      default: {
        Insertion expected = model.contains(n) ? Insertion::Present : Insertion::Inserted;
        CHECK_EQ(Put(*cache, n, domain, static_cast<uint8_t>(random.Below(16))), expected);
        model[n] = domain;
        break;
      }
      case 0:
      case 1:
      case 2:
      case 3:
      case 4:
      case 5:
        CHECK_EQ(Get(*cache, n, domain), model.contains(n));
        (model.contains(n) ? hits : misses)++;
        break;
      case 6:
        CHECK_EQ(cache->Has(Page(n).tag(domain)), model.contains(n));
        break;
      case 7:
        CHECK_EQ(cache->Pin(n % 3, Tags({n}, domain).data(), 1), model.contains(n) ? 1u : 0u);
        break;
      case 8:
        cache->Unpin(n % 3);
        break;
      case 9:
        if (random.Below(10) == 0)
          CHECK_EQ(cache->RemoveDomain(domain), std::erase_if(model, [&](auto& e) { return e.second == domain; }));
        break;
      case 10:
        if (random.Below(40) == 0) {
          CHECK_EQ(cache->Clear(), model.size());
          model.clear();
        }
        break;
      case 11:
        if (random.Below(20) == 0) {
          cache.reset();
          cache = OpenCache(kPages);
          hits = misses = 0;
        }
        break;
    }
    CacheStats stats = cache->Stats();
    CHECK_EQ(stats.used, model.size());
    CHECK_EQ(stats.hits, hits);
    CHECK_EQ(stats.misses, misses);
    CHECK_EQ(stats.evictions + stats.dropped + stats.rejected + stats.refused, 0u);
  }
}

TEST(cache_install_hits_zeros_and_absences) {
  for (Kind kind : {Kind::Private, Kind::Shared}) {
    constexpr uint64_t kFrames = 12;
    auto cache = OpenCache(32);
    Memory memory(kind, kFrames);
    auto session = Serve(memory);
    std::vector<uint64_t> pages;
    for (uint64_t f = 0; f < kFrames; f++) pages.push_back(f);
    std::vector<uint8_t> tags = Tags(pages);
    for (uint64_t f : {4ull, 5ull}) memset(tags.data() + f * sizeof(Tag), 0, sizeof(Tag));
    for (uint64_t f = 0; f < kFrames; f++)
      if (f != 8) Put(*cache, f);
    // one by fault, and its thread wakes
    {
      std::atomic<uint64_t> saw{0};
      Vcpu vcpu([&] { saw = Touch(memory, 2); });
      ExpectFault(*session, 2);
      CHECK_EQ(session->Claim(2, 1, FrameState::Wanted), 1u);
      CHECK_EQ(session->InstallFromCache(2, 1, tags.data(), *cache).installed, 1u);
      vcpu.Join();
      CHECK_EQ(saw.load(), Word(2, 0));
    }
    Installed result = session->InstallFromCache(0, kFrames, tags.data(), *cache);
    CHECK_EQ(result.outcome, Outcome::Absent);
    CHECK_EQ(result.next, 8u);
    CHECK_EQ(result.installed, 5u);  // 0 1 3 6 7
    CHECK_EQ(result.skipped, 3u);    // 2 was there, 4 and 5 are zero
    CHECK_EQ(session->table()->Get(4), FrameState::Zero);
    CHECK_EQ(session->table()->Get(8), FrameState::Missing);
    result = session->InstallFromCache(9, 3, tags.data(), *cache);
    CHECK_EQ(result.outcome, Outcome::Done);
    CHECK_EQ(result.next, kFrames);
    Put(*cache, 8);
    CHECK_EQ(session->InstallFromCache(8, 1, tags.data(), *cache).outcome, Outcome::Done);
    CHECK_EQ(session->InstallFromCache(8, 1, tags.data(), *cache).skipped, 1u);
    CHECK_EQ(session->InstallFromCache(8, 5, tags.data(), *cache).outcome, Outcome::Failed);
    CHECK_EQ(session->Counts().outstanding, 0u);
    CHECK_OK(session->Unregister(false));
    for (uint64_t f = 0; f < kFrames; f++) {
      if (f == 4 || f == 5)
        CHECK(IsAllZero(memory.at(f), kCachePage));
      else
        CHECK(HasContent(memory.at(f), f, kCachePage));
    }
    CacheStats stats = cache->Stats();
    CHECK_EQ(stats.hits, 10u);
    CHECK_EQ(stats.misses, 1u);
    cache->Clear();
  }
}

}  // namespace pagetide::test
