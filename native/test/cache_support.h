// Pages whose tags can be made without a key, and caches of them.
#pragma once

#include <cstring>
#include <memory>
#include <string>

#include "core/page_cache.h"
#include "test/guest.h"

namespace pagetide::test {

// A digest that is good enough for pages made by us: every byte of the page counts, and the domain.
inline Tag TagOf(uint32_t domain, const uint8_t* page) {
  uint64_t a = 0x243f6a8885a308d3ull ^ domain, b = 0x13198a2e03707344ull + domain;
  for (size_t i = 0; i < kCachePage; i += 8) {
    uint64_t word;
    memcpy(&word, page + i, 8);
    a = (a ^ word) * 0x9e3779b97f4a7c15ull;
    a ^= a >> 32;
    b = (b + word) * 0xbf58476d1ce4e5b9ull;
    b ^= b >> 29;
  }
  return {a, b | 1};
}

inline Verdict VerifyTag(void* context, uint32_t domain, const uint8_t* page, const uint8_t* tag) {
  if (context != nullptr && domain == *static_cast<uint32_t*>(context)) return Verdict::Unknown;
  return TagOf(domain, page) == Tag::Load(tag) ? Verdict::Right : Verdict::Wrong;
}

// Page number `n`, as `Fill` makes it.
struct Page {
  explicit Page(uint64_t n) { Fill(bytes, n, kCachePage); }
  Tag tag(uint32_t domain = 0) const { return TagOf(domain, bytes); }
  alignas(4096) uint8_t bytes[kCachePage];
};

inline PageCache::Options CacheOptions(uint64_t slots) {
  PageCache::Options options;
  options.path = Folder() + "/cache";
  options.slots = slots;
  options.verify = {VerifyTag, nullptr};
  return options;
}

inline std::shared_ptr<PageCache> OpenCache(uint64_t slots) {
  auto cache = PageCache::Open(CacheOptions(slots));
  CHECK_OK(cache.error);
  return cache.value;
}

inline Insertion Put(PageCache& cache, uint64_t n, uint32_t domain = 0, uint8_t value = 0) {
  Page page(n);
  return cache.Insert(page.tag(domain), domain, page.bytes, value);
}

// Whether page `n` is there; one that is must be the right one.
inline bool Get(PageCache& cache, uint64_t n, uint32_t domain = 0) {
  uint8_t into[kCachePage];
  if (!cache.Read(Page(n).tag(domain), into)) return false;
  CHECK(HasContent(into, n, kCachePage));
  return true;
}

}  // namespace pagetide::test
