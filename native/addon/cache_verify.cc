#include "addon/cache_verify.h"

#define OPENSSL_API_COMPAT 0x10100000L  // the plain calls: no object is allocated for a page
#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>
#include <cstring>

namespace pagetide {

namespace {

// tag = first 16 bytes of SHA-256(domain key ‖ page); the zero tag is that of the zero page alone.
bool HasTag(const uint8_t* key, size_t key_size, const uint8_t* page, const uint8_t* tag) {
  SHA256_CTX context;
  uint8_t digest[SHA256_DIGEST_LENGTH];
  SHA256_Init(&context);
  SHA256_Update(&context, key, key_size);
  SHA256_Update(&context, page, kCachePage);
  SHA256_Final(digest, &context);
  OPENSSL_cleanse(&context, sizeof context);
  if (Tag::Load(digest).IsZero()) digest[15] = 1;
  return memcmp(digest, tag, sizeof(Tag)) == 0;
}

}  // namespace

CacheKeys::~CacheKeys() {
  for (auto& table : tables_) OPENSSL_cleanse(table->data(), table->size() * sizeof(Key));
}

Error CacheKeys::Set(uint32_t domain, const uint8_t* bytes, size_t size) {
  if (size > kMaxKeyBytes) return ArgumentError("a domain's key has 1 to 64 bytes");
  std::lock_guard hold(mutex_);
  const Keys* now = now_.load(std::memory_order_relaxed);
  auto next = std::make_unique<Keys>(now == nullptr ? Keys{} : *now);
  auto at = std::lower_bound(next->begin(), next->end(), domain,
                             [](const Key& key, uint32_t wanted) { return key.domain < wanted; });
  bool known = at != next->end() && at->domain == domain;
  if (size == 0) {
    if (known) next->erase(at);
  } else {
    if (!known && next->size() >= kMaxKeys) return ArgumentError("more than 65536 domains");
    Key key{};
    key.domain = domain;
    key.size = static_cast<uint32_t>(size);
    memcpy(key.bytes, bytes, size);
    if (known) {
      *at = key;
    } else {
      next->insert(at, key);
    }
  }
  now_.store(next.get(), std::memory_order_release);
  tables_.push_back(std::move(next));
  return {};
}

Verdict CacheKeys::Verify(void* context, uint32_t domain, const uint8_t* page, const uint8_t* tag) {
  const Keys* keys = static_cast<CacheKeys*>(context)->now_.load(std::memory_order_acquire);
  if (keys == nullptr) return Verdict::Unknown;
  auto at = std::lower_bound(keys->begin(), keys->end(), domain,
                             [](const Key& key, uint32_t wanted) { return key.domain < wanted; });
  if (at == keys->end() || at->domain != domain) return Verdict::Unknown;
  return HasTag(at->bytes, at->size, page, tag) ? Verdict::Right : Verdict::Wrong;
}

}  // namespace pagetide
