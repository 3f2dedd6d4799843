// The shared-page cache for JavaScript, by number. Every call checks its arguments before the core is called.
#include "addon/cache.h"

#include "addon/domain_keys.h"
#include "addon/support.h"

namespace pagetide {

// Never destroyed: threads may outlive static destructors.
Registry<SharedCache>& Caches() {
  static auto* caches = new Registry<SharedCache>();
  return *caches;
}

namespace {

constexpr int64_t kMaxSafe = 1ll << 53;

Napi::Value Number(const Napi::CallbackInfo& info, uint64_t value) {
  return Napi::Number::New(info.Env(), static_cast<double>(value));
}

// Argument 0; nullptr after throwing.
std::shared_ptr<SharedCache> Find(const Napi::CallbackInfo& info) {
  int64_t id;
  if (!GetInt(info, 0, 1, UINT32_MAX, &id)) return nullptr;
  auto found = Caches().Find(static_cast<uint32_t>(id));
  if (!found) Throw(info.Env(), MakeError(ErrorKind::Internal, "there is no cache " + std::to_string(id)));
  return found;
}

// Argument `index`: tags, 16 bytes each; `count` gets how many.
bool GetTags(const Napi::CallbackInfo& info, size_t index, uint8_t** tags, uint64_t* count) {
  size_t size;
  if (!GetBytes(info, index, tags, &size)) return false;
  *count = size / sizeof(Tag);
  if (size % sizeof(Tag) == 0) return true;
  Throw(info.Env(), MakeError(ErrorKind::Internal, "tags have 16 bytes each"));
  return false;
}

// Arguments `index` and `index` + 1: bytes, and where among them `length` ones begin.
bool GetPiece(const Napi::CallbackInfo& info, size_t index, size_t length, uint8_t** piece) {
  size_t size;
  int64_t offset;
  if (!GetBytes(info, index, piece, &size) || !GetInt(info, index + 1, 0, kMaxSafe, &offset)) return false;
  if (size < length || static_cast<uint64_t>(offset) > size - length) {
    Throw(info.Env(), MakeError(ErrorKind::Internal, "argument " + std::to_string(index) + " ends too early"));
    return false;
  }
  *piece += offset;
  return true;
}

// createCache(path, bytes, replace)
Napi::Value CreateCache(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  PageCache::Options options;
  int64_t bytes;
  if (!GetString(info, 0, &options.path) || !GetInt(info, 1, 0, kMaxSafe, &bytes)) return env.Undefined();
  options.replace = info.Length() > 2 && info[2].ToBoolean();
  options.slots = CacheFile::SlotsIn(static_cast<uint64_t>(bytes));
  if (options.slots == 0) return Throw(env, ArgumentError("a cache file holds one page at least: 12288 bytes"));
  auto shared = std::make_shared<SharedCache>();
  options.verify = shared->keys.verify();
  auto cache = PageCache::Open(options);
  if (!cache.ok()) return Throw(env, cache.error);
  shared->cache = std::move(cache.value);
  return Number(info, Caches().Add(std::move(shared)));
}

Napi::Value DestroyCache(const Napi::CallbackInfo& info) {
  int64_t id;
  if (GetInt(info, 0, 1, UINT32_MAX, &id)) Caches().Remove(static_cast<uint32_t>(id));
  return info.Env().Undefined();
}

// cacheKey(id, domain, key)
Napi::Value SetKey(const Napi::CallbackInfo& info) {
  auto shared = Find(info);
  int64_t domain;
  uint8_t* key;
  size_t size;
  if (!shared || !GetInt(info, 1, 0, UINT32_MAX, &domain) || !GetBytes(info, 2, &key, &size))
    return info.Env().Undefined();
  Error error = shared->keys.Set(static_cast<uint32_t>(domain), key, size);
  return error.ok() ? info.Env().Undefined() : Throw(info.Env(), error);
}

// cacheUseKey(id, domain, key): the key by its number, so that no secret comes by way of JavaScript
Napi::Value UseKey(const Napi::CallbackInfo& info) {
  auto shared = Find(info);
  int64_t domain;
  if (!shared || !GetInt(info, 1, 0, UINT32_MAX, &domain)) return info.Env().Undefined();
  auto key = GetKey(info, 2);
  if (!key) return info.Env().Undefined();
  Error error = shared->keys.Set(static_cast<uint32_t>(domain), key->bytes(), kDomainKeyBytes);
  return error.ok() ? info.Env().Undefined() : Throw(info.Env(), error);
}

// cacheInsert(id, domain, tags, tagOffset, pages, pageOffset, value)
Napi::Value Insert(const Napi::CallbackInfo& info) {
  auto shared = Find(info);
  int64_t domain, value;
  uint8_t *tag, *page;
  if (!shared || !GetInt(info, 1, 0, UINT32_MAX, &domain) || !GetPiece(info, 2, sizeof(Tag), &tag) ||
      !GetPiece(info, 4, kCachePage, &page) || !GetInt(info, 6, 0, kMaxValue, &value))
    return info.Env().Undefined();
  Insertion result =
      shared->cache->Insert(Tag::Load(tag), static_cast<uint32_t>(domain), page, static_cast<uint8_t>(value));
  return Napi::Number::New(info.Env(), static_cast<int>(result));
}

// cacheRead(id, tags, tagOffset, into, offset)
Napi::Value Read(const Napi::CallbackInfo& info) {
  auto shared = Find(info);
  uint8_t *tag, *into;
  if (!shared || !GetPiece(info, 1, sizeof(Tag), &tag) || !GetPiece(info, 3, kCachePage, &into))
    return info.Env().Undefined();
  return Napi::Boolean::New(info.Env(), shared->cache->Read(Tag::Load(tag), into));
}

// cacheHas(id, tags, present): a byte a tag
Napi::Value Has(const Napi::CallbackInfo& info) {
  auto shared = Find(info);
  uint8_t *tags, *present;
  uint64_t count, found = 0;
  size_t size;
  if (!shared || !GetTags(info, 1, &tags, &count) || !GetBytes(info, 2, &present, &size)) return info.Env().Undefined();
  if (size < count) return Throw(info.Env(), MakeError(ErrorKind::Internal, "argument 2 ends too early"));
  for (uint64_t i = 0; i < count; i++) {
    Tag tag = Tag::Load(tags + i * sizeof(Tag));
    present[i] = !tag.IsZero() && shared->cache->Has(tag) ? 1 : 0;
    found += present[i];
  }
  return Number(info, found);
}

// cacheSetValue(id, tags, value)
Napi::Value SetValue(const Napi::CallbackInfo& info) {
  auto shared = Find(info);
  uint8_t* tags;
  uint64_t count, found = 0;
  int64_t value;
  if (!shared || !GetTags(info, 1, &tags, &count) || !GetInt(info, 2, 0, kMaxValue, &value))
    return info.Env().Undefined();
  for (uint64_t i = 0; i < count; i++)
    found += shared->cache->SetValue(Tag::Load(tags + i * sizeof(Tag)), static_cast<uint8_t>(value)) ? 1 : 0;
  return Number(info, found);
}

// cachePin(id, set, tags)
Napi::Value Pin(const Napi::CallbackInfo& info) {
  auto shared = Find(info);
  int64_t set;
  uint8_t* tags;
  uint64_t count;
  if (!shared || !GetInt(info, 1, 0, kMaxSafe, &set) || !GetTags(info, 2, &tags, &count)) return info.Env().Undefined();
  return Number(info, shared->cache->Pin(static_cast<uint64_t>(set), tags, count));
}

// cacheUnpin(id, set)
Napi::Value Unpin(const Napi::CallbackInfo& info) {
  auto shared = Find(info);
  int64_t set;
  if (!shared || !GetInt(info, 1, 0, kMaxSafe, &set)) return info.Env().Undefined();
  return Number(info, shared->cache->Unpin(static_cast<uint64_t>(set)));
}

// What was to be erased lies in a file that we cannot write to any more.
Napi::Value Erased(const Napi::CallbackInfo& info, SharedCache& shared, uint64_t count) {
  if (shared.cache->Stats().lost)
    return Throw(info.Env(), MakeError(ErrorKind::CacheFile, "the cache file was cut off: not every page was erased"));
  return Number(info, count);
}

Napi::Value RemoveDomain(const Napi::CallbackInfo& info) {
  auto shared = Find(info);
  int64_t domain;
  if (!shared || !GetInt(info, 1, 0, UINT32_MAX, &domain)) return info.Env().Undefined();
  return Erased(info, *shared, shared->cache->RemoveDomain(static_cast<uint32_t>(domain)));
}

Napi::Value Clear(const Napi::CallbackInfo& info) {
  auto shared = Find(info);
  if (!shared) return info.Env().Undefined();
  return Erased(info, *shared, shared->cache->Clear());
}

Napi::Value Stats(const Napi::CallbackInfo& info) {
  auto shared = Find(info);
  if (!shared) return info.Env().Undefined();
  CacheStats stats = shared->cache->Stats();
  Napi::Object object = Napi::Object::New(info.Env());
  auto set = [&](const char* name, uint64_t value) { object.Set(name, Number(info, value)); };
  set("slots", stats.slots);
  set("used", stats.used);
  set("pinned", stats.pinned);
  set("hits", stats.hits);
  set("misses", stats.misses);
  set("insertions", stats.insertions);
  set("evictions", stats.evictions);
  set("rejected", stats.rejected);
  set("dropped", stats.dropped);
  set("refused", stats.refused);
  set("indexBytes", stats.index_bytes);
  object.Set("lost", Napi::Boolean::New(info.Env(), stats.lost));
  return object;
}

}  // namespace

void InitCache(Napi::Env env, Napi::Object exports) {
  auto add = [&](const char* name, auto* call) { exports.Set(name, Napi::Function::New(env, call)); };
  add("createCache", CreateCache);
  add("destroyCache", DestroyCache);
  add("cacheKey", SetKey);
  add("cacheUseKey", UseKey);
  add("cacheInsert", Insert);
  add("cacheRead", Read);
  add("cacheHas", Has);
  add("cacheSetValue", SetValue);
  add("cachePin", Pin);
  add("cacheUnpin", Unpin);
  add("cacheRemoveDomain", RemoveDomain);
  add("cacheClear", Clear);
  add("cacheStats", Stats);
}

}  // namespace pagetide
