// Tags for JavaScript. Buffers are checked against the counts before the core is called; a key is known by its number
// in every thread of the process.
#include "core/tags.h"

#include "addon/domain_keys.h"
#include "addon/support.h"
#include "core/page_hash.h"

namespace pagetide {

// Never destroyed: threads may outlive static destructors.
Registry<DomainKey>& DomainKeys() {
  static auto* keys = new Registry<DomainKey>();
  return *keys;
}

namespace {

constexpr int64_t kMaxOffset = 1ll << 52;
constexpr int64_t kMaxPages = 1ll << 32;

Napi::Value OpenDomainKey(const Napi::CallbackInfo& info) {
  uint8_t* bytes;
  size_t size;
  if (!GetBytes(info, 0, &bytes, &size)) return info.Env().Undefined();
  auto key = DomainKey::Open(bytes, size);
  if (!key.ok()) return Throw(info.Env(), key.error);
  return Napi::Number::New(info.Env(), DomainKeys().Add(key.value));
}

Napi::Value CloseDomainKey(const Napi::CallbackInfo& info) {
  int64_t id;
  if (!GetInt(info, 0, 1, UINT32_MAX, &id)) return info.Env().Undefined();
  // idempotent, as closing is elsewhere; a call of another thread that is under way keeps the key until it ends
  DomainKeys().Remove(static_cast<uint32_t>(id));
  return info.Env().Undefined();
}

}  // namespace

std::shared_ptr<DomainKey> GetKey(const Napi::CallbackInfo& info, size_t index) {
  int64_t id;
  if (!GetInt(info, index, 1, UINT32_MAX, &id)) return nullptr;
  auto key = DomainKeys().Find(static_cast<uint32_t>(id));
  if (!key) Throw(info.Env(), MakeError(ErrorKind::Internal, "there is no domain key " + std::to_string(id)));
  return key;
}

namespace {

Napi::Value TagPagesOf(const Napi::CallbackInfo& info) {
  uint8_t *pages, *tags;
  size_t pages_size, tags_size;
  int64_t count;
  auto key = GetKey(info, 0);
  if (!key || !GetBytes(info, 1, &pages, &pages_size) || !GetInt(info, 2, 0, kMaxPages, &count) ||
      !GetBytes(info, 3, &tags, &tags_size))
    return info.Env().Undefined();
  if (pages_size / kTagPage < static_cast<uint64_t>(count) || tags_size / kTagBytes < static_cast<uint64_t>(count))
    return Throw(info.Env(), ArgumentError("the buffers hold fewer than " + std::to_string(count) + " pages and tags"));
  return Napi::Number::New(info.Env(), static_cast<double>(TagPages(*key, pages, static_cast<uint64_t>(count), tags)));
}

Napi::Value TagFileOf(const Napi::CallbackInfo& info) {
  uint8_t *tags, *scratch;
  size_t tags_size, scratch_size;
  int64_t fd, offset, count, first;
  auto key = GetKey(info, 0);
  if (!key || !GetInt(info, 1, 0, INT32_MAX, &fd) || !GetInt(info, 2, 0, kMaxOffset, &offset) ||
      !GetInt(info, 3, 1, kMaxPages, &count) || !GetBytes(info, 4, &tags, &tags_size) ||
      !GetInt(info, 5, 0, kMaxPages, &first) || !GetBytes(info, 6, &scratch, &scratch_size))
    return info.Env().Undefined();
  if (tags_size / kTagBytes < static_cast<uint64_t>(first + count))
    return Throw(info.Env(), ArgumentError("no room for tags " + std::to_string(first) + " to " +
                                           std::to_string(first + count - 1)));
  uint8_t* hashes = nullptr;
  size_t hashes_size;
  if (info.Length() > 7 && !info[7].IsUndefined()) {
    if (!GetBytes(info, 7, &hashes, &hashes_size)) return info.Env().Undefined();
    if (hashes_size / kPageHashBytes < static_cast<uint64_t>(count))
      return Throw(info.Env(), ArgumentError("no room for the hashes of " + std::to_string(count) + " pages"));
  }
  auto zero = TagFile(*key, static_cast<int>(fd), static_cast<uint64_t>(offset), static_cast<uint64_t>(count),
                      tags + static_cast<uint64_t>(first) * kTagBytes, scratch, scratch_size, hashes);
  if (!zero.ok()) return Throw(info.Env(), zero.error);
  return Napi::Number::New(info.Env(), static_cast<double>(zero.value));
}

Napi::Value VerifyPageOf(const Napi::CallbackInfo& info) {
  uint8_t *page, *tag;
  size_t page_size, tag_size;
  auto key = GetKey(info, 0);
  if (!key || !GetBytes(info, 1, &page, &page_size) || !GetBytes(info, 2, &tag, &tag_size))
    return info.Env().Undefined();
  if (page_size != kTagPage || tag_size != kTagBytes)
    return Throw(info.Env(), ArgumentError("a page has 4096 bytes, a tag 16"));
  return Napi::Boolean::New(info.Env(), VerifyPage(*key, page, tag));
}

}  // namespace

void InitTags(Napi::Env env, Napi::Object exports) {
  exports.Set("openDomainKey", Napi::Function::New(env, OpenDomainKey));
  exports.Set("closeDomainKey", Napi::Function::New(env, CloseDomainKey));
  exports.Set("tagPages", Napi::Function::New(env, TagPagesOf));
  exports.Set("tagFile", Napi::Function::New(env, TagFileOf));
  exports.Set("verifyPage", Napi::Function::New(env, VerifyPageOf));
  exports.Set("digestEngine", Napi::String::New(env, Sha256().name));
}

}  // namespace pagetide
