// Deltas for JavaScript. Buffers are checked against the counts before the core is called.
#include "addon/support.h"
#include "core/block_delta.h"
#include "core/error.h"

namespace pagetide {

namespace {

constexpr int64_t kMaxPages = 1ll << 32;

Napi::Value DigestBlocksOf(const Napi::CallbackInfo& info) {
  uint64_t seed;
  uint8_t *pages, *digests;
  size_t pages_size, digests_size;
  int64_t count;
  if (!GetBigUint64(info, 0, &seed) || !GetBytes(info, 1, &pages, &pages_size) ||
      !GetInt(info, 2, 0, kMaxPages, &count) || !GetBytes(info, 3, &digests, &digests_size))
    return info.Env().Undefined();
  auto all = static_cast<uint64_t>(count);
  if (pages_size / kDeltaPage < all || digests_size / kPageDigestBytes < all)
    return Throw(info.Env(), ArgumentError("the buffers hold fewer than " + std::to_string(count) + " pages"));
  DigestBlocks(BlockHash(seed), pages, all, digests);
  return info.Env().Undefined();
}

Napi::Value EncodeDeltasOf(const Napi::CallbackInfo& info) {
  uint64_t seed;
  uint8_t *pages, *digests, *into;
  size_t pages_size, digests_size, into_size;
  int64_t count;
  if (!GetBigUint64(info, 0, &seed) || !GetBytes(info, 1, &pages, &pages_size) ||
      !GetInt(info, 2, 0, kMaxPages, &count) || !GetBytes(info, 3, &digests, &digests_size) ||
      !GetBytes(info, 4, &into, &into_size))
    return info.Env().Undefined();
  auto all = static_cast<uint64_t>(count);
  if (pages_size / kDeltaPage < all || digests_size / kPageDigestBytes < all ||
      into_size / (kDeltaPage + kBlockMapBytes) < all)
    return Throw(info.Env(), ArgumentError("the buffers hold fewer than " + std::to_string(count) + " pages"));
  return Napi::Number::New(info.Env(), static_cast<double>(EncodeDeltas(BlockHash(seed), pages, all, digests, into)));
}

Napi::Value ApplyDeltasOf(const Napi::CallbackInfo& info) {
  uint8_t *pages, *deltas;
  size_t pages_size, deltas_size;
  int64_t count;
  if (!GetBytes(info, 0, &pages, &pages_size) || !GetInt(info, 1, 0, kMaxPages, &count) ||
      !GetBytes(info, 2, &deltas, &deltas_size))
    return info.Env().Undefined();
  auto all = static_cast<uint64_t>(count);
  if (pages_size / kDeltaPage < all)
    return Throw(info.Env(), ArgumentError("the buffer holds fewer than " + std::to_string(count) + " pages"));
  return Napi::Boolean::New(info.Env(), ApplyDeltas(pages, all, deltas, deltas_size));
}

}  // namespace

void InitDeltas(Napi::Env env, Napi::Object exports) {
  exports.Set("digestBlocks", Napi::Function::New(env, DigestBlocksOf));
  exports.Set("encodeDeltas", Napi::Function::New(env, EncodeDeltasOf));
  exports.Set("applyDeltas", Napi::Function::New(env, ApplyDeltasOf));
}

}  // namespace pagetide
