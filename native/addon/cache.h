// Caches by number, for the parts of the addon that use one.
#pragma once

#include "addon/cache_verify.h"
#include "addon/registry.h"
#include "core/page_cache.h"

namespace pagetide {

// A cache with the keys that its pages are verified with. The keys outlive the cache.
struct SharedCache {
  CacheKeys keys;
  std::shared_ptr<PageCache> cache;
};

Registry<SharedCache>& Caches();

}  // namespace pagetide
