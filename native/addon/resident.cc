// The resident index for JavaScript, by number. Every call checks its arguments before the core is called.
#include "addon/resident.h"

#include "addon/domain_keys.h"
#include "addon/support.h"
#include "core/page_hash.h"

namespace pagetide {

// Never destroyed: threads may outlive static destructors.
Registry<ResidentLookups>& Lookups() {
  static auto* lookups = new Registry<ResidentLookups>();
  return *lookups;
}

namespace {

constexpr int64_t kMaxFrames = ResidentTags::kMaxSlots;

Registry<ResidentIndex>& Indexes() {
  static auto* indexes = new Registry<ResidentIndex>();
  return *indexes;
}

Napi::Value Number(const Napi::CallbackInfo& info, uint64_t value) {
  return Napi::Number::New(info.Env(), static_cast<double>(value));
}

// Argument 0; nullptr after throwing.
std::shared_ptr<ResidentIndex> Find(const Napi::CallbackInfo& info) {
  int64_t id;
  if (!GetInt(info, 0, 1, UINT32_MAX, &id)) return nullptr;
  auto found = Indexes().Find(static_cast<uint32_t>(id));
  if (!found) Throw(info.Env(), MakeError(ErrorKind::Internal, "there is no resident index " + std::to_string(id)));
  return found;
}

// createResident(frames)
Napi::Value Create(const Napi::CallbackInfo& info) {
  int64_t frames;
  if (!GetInt(info, 0, 1, kMaxFrames, &frames)) return info.Env().Undefined();
  auto index = ResidentIndex::Open(static_cast<uint64_t>(frames));
  if (!index.ok()) return Throw(info.Env(), index.error);
  return Number(info, Indexes().Add(std::move(index.value)));
}

// Whoever looks up in it still finds nothing from now on.
Napi::Value Destroy(const Napi::CallbackInfo& info) {
  int64_t id;
  if (!GetInt(info, 0, 1, UINT32_MAX, &id)) return info.Env().Undefined();
  if (auto index = Indexes().Remove(static_cast<uint32_t>(id))) index->Clear();
  return info.Env().Undefined();
}

// residentAdd(id, fd, frames, domain, key)
Napi::Value AddFile(const Napi::CallbackInfo& info) {
  auto index = Find(info);
  int64_t fd, frames, domain;
  if (!index || !GetInt(info, 1, 0, INT32_MAX, &fd) || !GetInt(info, 2, 1, kMaxFrames, &frames) ||
      !GetInt(info, 3, 0, UINT32_MAX, &domain))
    return info.Env().Undefined();
  auto key = GetKey(info, 4);
  if (!key) return info.Env().Undefined();
  auto file =
      index->Add(static_cast<int>(fd), static_cast<uint64_t>(frames), static_cast<uint32_t>(domain), std::move(key));
  return file.ok() ? Number(info, file.value) : Throw(info.Env(), file.error);
}

// residentSet(id, file, first, count, tags, firstTag, hashes): hashes of `count` frames, or undefined
Napi::Value SetTags(const Napi::CallbackInfo& info) {
  auto index = Find(info);
  int64_t file, first, count, first_tag;
  uint8_t* tags;
  size_t size;
  if (!index || !GetInt(info, 1, 1, UINT32_MAX, &file) || !GetInt(info, 2, 0, kMaxFrames, &first) ||
      !GetInt(info, 3, 0, kMaxFrames, &count) || !GetBytes(info, 4, &tags, &size) ||
      !GetInt(info, 5, 0, kMaxFrames, &first_tag))
    return info.Env().Undefined();
  if (size / sizeof(Tag) < static_cast<uint64_t>(first_tag + count))
    return Throw(info.Env(), MakeError(ErrorKind::Internal, "fewer tags than frames"));
  uint8_t* hashes = nullptr;
  size_t hashes_size;
  if (info.Length() > 6 && !info[6].IsUndefined()) {
    if (!GetBytes(info, 6, &hashes, &hashes_size)) return info.Env().Undefined();
    if (hashes_size / kPageHashBytes < static_cast<uint64_t>(count))
      return Throw(info.Env(), MakeError(ErrorKind::Internal, "fewer hashes than frames"));
  }
  Error error = index->Set(static_cast<uint32_t>(file), static_cast<uint64_t>(first), static_cast<uint64_t>(count),
                           tags + static_cast<uint64_t>(first_tag) * sizeof(Tag), hashes);
  return error.ok() ? info.Env().Undefined() : Throw(info.Env(), error);
}

// residentRemove(id, file): nothing to do where the index, and with it every file, is gone
Napi::Value RemoveFile(const Napi::CallbackInfo& info) {
  int64_t id, file;
  if (!GetInt(info, 0, 1, UINT32_MAX, &id) || !GetInt(info, 1, 1, UINT32_MAX, &file)) return info.Env().Undefined();
  if (auto index = Indexes().Find(static_cast<uint32_t>(id))) index->Remove(static_cast<uint32_t>(file));
  return info.Env().Undefined();
}

// residentRemoveDomain(id, domain)
Napi::Value RemoveDomain(const Napi::CallbackInfo& info) {
  auto index = Find(info);
  int64_t domain;
  if (!index || !GetInt(info, 1, 0, UINT32_MAX, &domain)) return info.Env().Undefined();
  return Number(info, index->RemoveDomain(static_cast<uint32_t>(domain)));
}

// residentLookups(id, domain)
Napi::Value OpenLookups(const Napi::CallbackInfo& info) {
  auto index = Find(info);
  int64_t domain;
  if (!index || !GetInt(info, 1, 0, UINT32_MAX, &domain)) return info.Env().Undefined();
  auto lookups = std::make_shared<ResidentLookups>();
  lookups->index = std::move(index);
  lookups->domain = static_cast<uint32_t>(domain);
  return Number(info, Lookups().Add(std::move(lookups)));
}

Napi::Value CloseLookups(const Napi::CallbackInfo& info) {
  int64_t id;
  if (GetInt(info, 0, 1, UINT32_MAX, &id)) Lookups().Remove(static_cast<uint32_t>(id));
  return info.Env().Undefined();
}

// residentCopy(lookups, tags, firstTag, into, offset)
Napi::Value Copy(const Napi::CallbackInfo& info) {
  int64_t id, first_tag, offset;
  uint8_t *tags, *into;
  size_t tags_size, size;
  if (!GetInt(info, 0, 1, UINT32_MAX, &id) || !GetBytes(info, 1, &tags, &tags_size) ||
      !GetInt(info, 2, 0, kMaxFrames, &first_tag) || !GetBytes(info, 3, &into, &size) ||
      !GetInt(info, 4, 0, 1ll << 52, &offset))
    return info.Env().Undefined();
  if (tags_size / sizeof(Tag) <= static_cast<uint64_t>(first_tag) || size < kTagPage ||
      static_cast<uint64_t>(offset) > size - kTagPage)
    return Throw(info.Env(), MakeError(ErrorKind::Internal, "no such tag, or no room for the page"));
  auto lookups = Lookups().Find(static_cast<uint32_t>(id));
  bool found =
      lookups && lookups->index->Copy(lookups->domain, Tag::Load(tags + static_cast<uint64_t>(first_tag) * sizeof(Tag)),
                                      into + offset);
  return Napi::Boolean::New(info.Env(), found);
}

// residentHas(lookups, tags, present): a byte a tag, which becomes 1 where it seems to be listed and stays as it is
// elsewhere
Napi::Value Has(const Napi::CallbackInfo& info) {
  int64_t id;
  uint8_t *tags, *present;
  size_t tags_size, size;
  if (!GetInt(info, 0, 1, UINT32_MAX, &id) || !GetBytes(info, 1, &tags, &tags_size) ||
      !GetBytes(info, 2, &present, &size))
    return info.Env().Undefined();
  size_t count = tags_size / sizeof(Tag);
  if (size < count) return Throw(info.Env(), MakeError(ErrorKind::Internal, "argument 2 ends too early"));
  auto lookups = Lookups().Find(static_cast<uint32_t>(id));
  for (size_t i = 0; i < count && lookups; i++) {
    if (lookups->index->Has(Tag::Load(tags + i * sizeof(Tag)))) present[i] = 1;
  }
  return info.Env().Undefined();
}

Napi::Value Stats(const Napi::CallbackInfo& info) {
  auto index = Find(info);
  if (!index) return info.Env().Undefined();
  ResidentStats stats = index->Stats();
  Napi::Object object = Napi::Object::New(info.Env());
  auto set = [&](const char* name, uint64_t value) { object.Set(name, Number(info, value)); };
  set("files", stats.files);
  set("frames", stats.frames);
  set("listed", stats.listed);
  set("different", stats.different);
  set("hits", stats.hits);
  set("misses", stats.misses);
  set("stale", stats.stale);
  set("indexBytes", stats.index_bytes);
  return object;
}

}  // namespace

void InitResident(Napi::Env env, Napi::Object exports) {
  auto add = [&](const char* name, auto* call) { exports.Set(name, Napi::Function::New(env, call)); };
  add("createResident", Create);
  add("destroyResident", Destroy);
  add("residentAdd", AddFile);
  add("residentSet", SetTags);
  add("residentRemove", RemoveFile);
  add("residentRemoveDomain", RemoveDomain);
  add("residentLookups", OpenLookups);
  add("closeResidentLookups", CloseLookups);
  add("residentCopy", Copy);
  add("residentHas", Has);
  add("residentStats", Stats);
}

}  // namespace pagetide
