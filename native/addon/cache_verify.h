// How the cache verifies pages: the one place where digest and domain keys are plugged in.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "core/page_cache.h"

namespace pagetide {

inline constexpr size_t kMaxKeyBytes = 64;
inline constexpr uint32_t kMaxKeys = 1u << 16;

// Keys of domains, found by any thread without a lock. A change makes a new table; the old ones are kept to the end, as
// a thread may still be reading one: changes are as rare as tenants.
class CacheKeys {
 public:
  CacheKeys() = default;
  ~CacheKeys();
  CacheKeys(const CacheKeys&) = delete;
  CacheKeys& operator=(const CacheKeys&) = delete;

  // `size`: 1 to kMaxKeyBytes; 0 forgets the domain's key.
  Error Set(uint32_t domain, const uint8_t* key, size_t size);
  PageVerify verify() { return {Verify, this}; }

 private:
  struct Key {
    uint32_t domain;
    uint32_t size;
    uint8_t bytes[kMaxKeyBytes];
  };
  using Keys = std::vector<Key>;  // by domain
  static Verdict Verify(void* context, uint32_t domain, const uint8_t* page, const uint8_t* tag);

  std::mutex mutex_;
  std::vector<std::unique_ptr<Keys>> tables_;
  std::atomic<const Keys*> now_{nullptr};
};

}  // namespace pagetide
