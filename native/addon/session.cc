// FaultSession for JavaScript. Every method checks frames and buffers against the session before the core is called.
#include "core/session.h"

#include <cstdlib>

#include "addon/cache.h"
#include "addon/registry.h"
#include "addon/resident.h"
#include "addon/support.h"
#include "core/memory.h"

namespace pagetide {

namespace {

constexpr int64_t kMaxFrame = 1ll << 32;
// One COPY's worth for 4 KiB pages, one page of 2 MiB ones.
constexpr size_t kScratch = 2 << 20;

// Never destroyed: threads may outlive static destructors.
Registry<FaultSession>& Sessions() {
  static auto* sessions = new Registry<FaultSession>();
  return *sessions;
}
Registry<Arena>& Arenas() {
  static auto* arenas = new Registry<Arena>();
  return *arenas;
}

class SessionView : public Napi::ObjectWrap<SessionView> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "FaultSession",
                       {
                           InstanceMethod<&SessionView::Register>("register"),
                           InstanceMethod<&SessionView::Unregister>("unregister"),
                           InstanceMethod<&SessionView::Wait>("wait"),
                           InstanceMethod<&SessionView::Clock>("clock"),
                           InstanceMethod<&SessionView::Stop>("stop"),
                           InstanceMethod<&SessionView::Claim>("claim"),
                           InstanceMethod<&SessionView::Release>("release"),
                           InstanceMethod<&SessionView::NextMissing>("nextMissing"),
                           InstanceMethod<&SessionView::Install>("install"),
                           InstanceMethod<&SessionView::InstallFromFile>("installFromFile"),
                           InstanceMethod<&SessionView::InstallFromArena>("installFromArena"),
                           InstanceMethod<&SessionView::InstallFromCache>("installFromCache"),
                           InstanceMethod<&SessionView::InstallFromResident>("installFromResident"),
                           InstanceMethod<&SessionView::InstallZero>("installZero"),
                           InstanceMethod<&SessionView::MarkZero>("markZero"),
                           InstanceMethod<&SessionView::Wake>("wake"),
                           InstanceMethod<&SessionView::Reset>("reset"),
                           InstanceMethod<&SessionView::Reconcile>("reconcile"),
                           InstanceMethod<&SessionView::Adopt>("adopt"),
                           InstanceMethod<&SessionView::Punch>("punch"),
                           InstanceMethod<&SessionView::PunchAbsent>("punchAbsent"),
                           InstanceMethod<&SessionView::Counts>("counts"),
                           InstanceMethod<&SessionView::Close>("close"),
                       });
  }

  // new FaultSession(id): only from this file.
  explicit SessionView(const Napi::CallbackInfo& info) : Napi::ObjectWrap<SessionView>(info) {
    Napi::Env env = info.Env();
    int64_t id;
    if (!GetInt(info, 0, 1, UINT32_MAX, &id)) return;
    session_ = Sessions().Find(static_cast<uint32_t>(id));
    if (!session_) {
      Throw(env, MakeError(ErrorKind::Internal, "there is no session " + std::to_string(id)));
      return;
    }
    loop_fd_ = uv_backend_fd(LoopOf(env));
    Napi::Object self = info.This().As<Napi::Object>();
    self.Set("id", Napi::Number::New(env, static_cast<double>(id)));
    self.Set("frames", Napi::Number::New(env, static_cast<double>(session_->frames())));
    self.Set("pageSize", Napi::Number::New(env, static_cast<double>(session_->page_size())));
    // The finalizer's copy keeps the mapping as long as a view of it lives.
    auto* keep = new std::shared_ptr<PageTable>(session_->table());
    Napi::ArrayBuffer memory = Napi::ArrayBuffer::New(
        env, (*keep)->bytes(), (*keep)->frames(),
        [](Napi::Env, void*, std::shared_ptr<PageTable>* held) { delete held; }, keep);
    self.Set("table", Napi::Uint8Array::New(env, session_->frames(), memory, 0));
    if (session_->origins() == nullptr) return;
    auto* origins = new std::shared_ptr<uint8_t[]>(session_->origins());
    Napi::ArrayBuffer view = Napi::ArrayBuffer::New(
        env, origins->get(), session_->frames(),
        [](Napi::Env, void*, std::shared_ptr<uint8_t[]>* held) { delete held; }, origins);
    self.Set("origins", Napi::Uint8Array::New(env, session_->frames(), view, 0));
  }

  ~SessionView() override { free(scratch_); }

 private:
  bool Open(Napi::Env env) {
    if (session_) return true;
    Throw(env, MakeError(ErrorKind::Internal, "the session is closed"));
    return false;
  }

  bool GetFrames(const Napi::CallbackInfo& info, int64_t* frame, int64_t* count) {
    if (!Open(info.Env()) || !GetInt(info, 0, 0, kMaxFrame, frame) || !GetInt(info, 1, 1, kMaxFrame, count))
      return false;
    if (session_->CheckFrames(static_cast<uint64_t>(*frame), static_cast<uint64_t>(*count))) return true;
    Throw(info.Env(), ArgumentError("frames outside the guest's memory", static_cast<uint64_t>(*frame),
                                    static_cast<uint64_t>(*count)));
    return false;
  }

  // Int32Array of at least `length` entries at `index`; nullptr after throwing.
  static int32_t* Fields(const Napi::CallbackInfo& info, size_t index, size_t length) {
    if (index < info.Length() && info[index].IsTypedArray()) {
      Napi::TypedArray array = info[index].As<Napi::TypedArray>();
      if (array.TypedArrayType() == napi_int32_array && array.ElementLength() >= length)
        return array.As<Napi::Int32Array>().Data();
    }
    Throw(info.Env(), MakeError(ErrorKind::Internal, "argument " + std::to_string(index) + " must be an Int32Array"));
    return nullptr;
  }

  // Float64Array of at least 4 entries: doubles can be written and read without making a number object.
  static double* Status(const Napi::CallbackInfo& info, size_t index) {
    if (index < info.Length() && info[index].IsTypedArray()) {
      Napi::TypedArray array = info[index].As<Napi::TypedArray>();
      if (array.TypedArrayType() == napi_float64_array && array.ElementLength() >= 4)
        return array.As<Napi::Float64Array>().Data();
    }
    Throw(info.Env(), MakeError(ErrorKind::Internal, "argument " + std::to_string(index) + " must be a Float64Array"));
    return nullptr;
  }

  // Once a thread and session.
  bool MakeScratch(Napi::Env env) {
    if (scratch_ != nullptr) return true;
    if (posix_memalign(reinterpret_cast<void**>(&scratch_), 4096, kScratch) == 0) return true;
    scratch_ = nullptr;
    Throw(env, SyscallError("posix_memalign", ENOMEM));
    return false;
  }

  static Napi::Value Finish(Napi::Env env, const Installed& result, int32_t* outcome) {
    outcome[0] = static_cast<int32_t>(result.installed);
    outcome[1] = static_cast<int32_t>(result.skipped);
    outcome[2] = static_cast<int32_t>(result.next);
    outcome[3] = result.err;
    return Napi::Number::New(env, static_cast<int>(result.outcome));
  }

  Napi::Value Done(Napi::Env env, const Error& error) { return error.ok() ? env.Undefined() : Throw(env, error); }

  Napi::Value Register(const Napi::CallbackInfo& info) {
    return Open(info.Env()) ? Done(info.Env(), session_->Register()) : info.Env().Undefined();
  }

  Napi::Value Unregister(const Napi::CallbackInfo& info) {
    if (!Open(info.Env())) return info.Env().Undefined();
    bool force = info.Length() > 0 && info[0].IsObject() && info[0].As<Napi::Object>().Get("force").ToBoolean();
    return Done(info.Env(), session_->Unregister(force));
  }

  Napi::Value Wait(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    int64_t timeout, spin;
    if (!Open(env) || !GetInt(info, 2, -1, 3600'000, &timeout) || !GetInt(info, 3, 0, 1000'000, &spin))
      return env.Undefined();
    if (!info[0].IsTypedArray() || info[0].As<Napi::TypedArray>().TypedArrayType() != napi_uint32_array)
      return Throw(env, MakeError(ErrorKind::Internal, "argument 0 must be a Uint32Array"));
    Napi::Uint32Array frames = info[0].As<Napi::Uint32Array>();
    double* status = Status(info, 1);
    if (status == nullptr) return env.Undefined();
    int64_t socket_fd = -1;
    if (info.Length() > 4 && !GetInt(info, 4, -1, INT32_MAX, &socket_fd)) return env.Undefined();
    Waited waited;
    Error error =
        session_->Wait(frames.Data(), static_cast<uint32_t>(frames.ElementLength()), static_cast<int>(timeout),
                       static_cast<int>(spin), loop_fd_, &waited, static_cast<int>(socket_fd));
    if (error) return Throw(env, error);
    status[0] = waited.flags;
    status[1] = waited.removes;
    status[2] = static_cast<double>(waited.entered_ns) / 1000;
    status[3] = static_cast<double>(waited.read_ns) / 1000;
    return Napi::Number::New(env, waited.faults);
  }

  Napi::Value Clock(const Napi::CallbackInfo& info) {
    double* status = Status(info, 0);
    if (status != nullptr) status[3] = static_cast<double>(MonotonicNanos()) / 1000;
    return info.Env().Undefined();
  }

  Napi::Value Stop(const Napi::CallbackInfo& info) {
    if (session_) session_->Stop();
    return info.Env().Undefined();
  }

  Napi::Value Claim(const Napi::CallbackInfo& info) {
    int64_t frame, count, as;
    if (!GetFrames(info, &frame, &count) || !GetInt(info, 2, 1, 2, &as)) return info.Env().Undefined();
    return Napi::Number::New(info.Env(),
                             static_cast<double>(session_->Claim(frame, count, static_cast<FrameState>(as))));
  }

  Napi::Value Release(const Napi::CallbackInfo& info) {
    int64_t frame, count, from;
    if (!GetFrames(info, &frame, &count) || !GetInt(info, 2, 1, 2, &from)) return info.Env().Undefined();
    return Napi::Number::New(info.Env(),
                             static_cast<double>(session_->Release(frame, count, static_cast<FrameState>(from))));
  }

  Napi::Value NextMissing(const Napi::CallbackInfo& info) {
    int64_t frame;
    if (!Open(info.Env()) || !GetInt(info, 0, 0, kMaxFrame, &frame)) return info.Env().Undefined();
    uint64_t next = session_->NextMissing(frame);
    return Napi::Number::New(info.Env(), next >= session_->frames() ? -1 : static_cast<double>(next));
  }

  Napi::Value Install(const Napi::CallbackInfo& info) {
    int64_t frame, count, offset;
    uint8_t* data;
    size_t size;
    if (!GetFrames(info, &frame, &count) || !GetBytes(info, 2, &data, &size) ||
        !GetInt(info, 3, 0, static_cast<int64_t>(size), &offset))
      return info.Env().Undefined();
    int32_t* outcome = Fields(info, 4, 4);
    if (outcome == nullptr) return info.Env().Undefined();
    if ((size - static_cast<size_t>(offset)) / session_->page_size() < static_cast<uint64_t>(count))
      return Throw(info.Env(), MakeError(ErrorKind::Internal, "the buffer ends before the last page"));
    int64_t origin = static_cast<int64_t>(Origin::Source);
    if (info.Length() > 5 && !GetInt(info, 5, 1, static_cast<int64_t>(Origin::Peer), &origin))
      return info.Env().Undefined();
    return Finish(info.Env(), session_->Install(frame, count, data + offset, static_cast<Origin>(origin)), outcome);
  }

  Napi::Value InstallFromFile(const Napi::CallbackInfo& info) {
    int64_t frame, count, fd, offset;
    if (!GetFrames(info, &frame, &count) || !GetInt(info, 2, 0, INT32_MAX, &fd) ||
        !GetInt(info, 3, 0, 1ll << 52, &offset))
      return info.Env().Undefined();
    int32_t* outcome = Fields(info, 4, 4);
    if (outcome == nullptr) return info.Env().Undefined();
    if (!MakeScratch(info.Env())) return info.Env().Undefined();
    Installed result = session_->InstallFromFile(frame, count, static_cast<int>(fd), offset, scratch_, kScratch);
    return Finish(info.Env(), result, outcome);
  }

  Napi::Value InstallFromArena(const Napi::CallbackInfo& info) {
    int64_t frame, count, arena_id, first;
    if (!GetFrames(info, &frame, &count) || !GetInt(info, 2, 1, UINT32_MAX, &arena_id)) return info.Env().Undefined();
    if (!info[3].IsTypedArray() || info[3].As<Napi::TypedArray>().TypedArrayType() != napi_uint32_array)
      return Throw(info.Env(), MakeError(ErrorKind::Internal, "argument 3 must be a Uint32Array"));
    Napi::Uint32Array slots = info[3].As<Napi::Uint32Array>();
    if (!GetInt(info, 4, 0, static_cast<int64_t>(slots.ElementLength()), &first)) return info.Env().Undefined();
    if (static_cast<int64_t>(slots.ElementLength()) - first < count)
      return Throw(info.Env(), MakeError(ErrorKind::Internal, "fewer slots than frames"));
    int32_t* outcome = Fields(info, 5, 4);
    if (outcome == nullptr) return info.Env().Undefined();
    // Looked up once a thread and kept: the registry's lock is not for the way of a fault.
    if (arena_id_ != arena_id) {
      arena_ = Arenas().Find(static_cast<uint32_t>(arena_id));
      arena_id_ = arena_id;
    }
    if (!arena_ || arena_->slot_size() != session_->page_size())
      return Throw(info.Env(), MakeError(ErrorKind::Internal, "no such arena, or its slots are of another size"));
    Installed result = session_->InstallFromSlots(frame, count, arena_->data(), arena_->slots(), slots.Data() + first);
    return Finish(info.Env(), result, outcome);
  }

  Napi::Value InstallFromCache(const Napi::CallbackInfo& info) {
    int64_t frame, count, cache_id;
    uint8_t* tags;
    size_t size;
    if (!GetFrames(info, &frame, &count) || !GetBytes(info, 2, &tags, &size)) return info.Env().Undefined();
    // The first thing that is looked at, and seldom near: it comes while the other arguments are taken. Of an address
    // that is not there, nothing comes.
    __builtin_prefetch(tags + static_cast<uint64_t>(frame) * sizeof(Tag));
    if (!GetInt(info, 3, 1, UINT32_MAX, &cache_id)) return info.Env().Undefined();
    int32_t* outcome = Fields(info, 4, 4);
    if (outcome == nullptr) return info.Env().Undefined();
    if (size / sizeof(Tag) < static_cast<uint64_t>(frame + count))
      return Throw(info.Env(), MakeError(ErrorKind::Internal, "fewer tags than frames"));
    if (session_->page_size() != kCachePage)
      return Throw(info.Env(), ArgumentError("the cache holds pages of 4096 bytes, the guest's are larger"));
    // As with the arena; but not kept alive, so that a cache that was destroyed is closed although this thread used it.
    if (cache_id_ != cache_id) {
      cache_ = Caches().Find(static_cast<uint32_t>(cache_id));
      cache_id_ = cache_id;
    }
    std::shared_ptr<SharedCache> shared = cache_.lock();
    if (!shared) {
      // Closed meanwhile: the guest is served from elsewhere.
      Installed none;
      none.outcome = Outcome::Absent;
      none.next = static_cast<uint64_t>(frame);
      return Finish(info.Env(), none, outcome);
    }
    return Finish(info.Env(), session_->InstallFromCache(frame, count, tags, *shared->cache), outcome);
  }

  Napi::Value InstallFromResident(const Napi::CallbackInfo& info) {
    int64_t frame, count, lookups_id;
    uint8_t* tags;
    size_t size;
    if (!GetFrames(info, &frame, &count) || !GetBytes(info, 2, &tags, &size)) return info.Env().Undefined();
    // The first thing that is looked at, and seldom near: it comes while the other arguments are taken. Of an address
    // that is not there, nothing comes.
    __builtin_prefetch(tags + static_cast<uint64_t>(frame) * sizeof(Tag));
    if (!GetInt(info, 3, 1, UINT32_MAX, &lookups_id)) return info.Env().Undefined();
    int32_t* outcome = Fields(info, 4, 4);
    if (outcome == nullptr) return info.Env().Undefined();
    if (size / sizeof(Tag) < static_cast<uint64_t>(frame + count))
      return Throw(info.Env(), MakeError(ErrorKind::Internal, "fewer tags than frames"));
    if (session_->page_size() != kTagPage)
      return Throw(info.Env(), ArgumentError("tags are of 4096 bytes, the guest's pages are larger"));
    if (!MakeScratch(info.Env())) return info.Env().Undefined();
    // As with the cache.
    if (lookups_id_ != lookups_id) {
      lookups_ = Lookups().Find(static_cast<uint32_t>(lookups_id));
      lookups_id_ = lookups_id;
    }
    std::shared_ptr<ResidentLookups> lookups = lookups_.lock();
    if (!lookups) {
      Installed none;
      none.outcome = Outcome::Absent;
      none.next = static_cast<uint64_t>(frame);
      return Finish(info.Env(), none, outcome);
    }
    Installed result =
        session_->InstallFromResident(frame, count, tags, *lookups->index, lookups->domain, scratch_, kScratch);
    return Finish(info.Env(), result, outcome);
  }

  Napi::Value InstallZero(const Napi::CallbackInfo& info) {
    int64_t frame, count;
    if (!GetFrames(info, &frame, &count)) return info.Env().Undefined();
    int32_t* outcome = Fields(info, 2, 4);
    if (outcome == nullptr) return info.Env().Undefined();
    return Finish(info.Env(), session_->InstallZero(frame, count), outcome);
  }

  Napi::Value MarkZero(const Napi::CallbackInfo& info) {
    int64_t frame, count;
    if (!GetFrames(info, &frame, &count)) return info.Env().Undefined();
    return Napi::Number::New(info.Env(), static_cast<double>(session_->MarkZero(frame, count)));
  }

  Napi::Value Wake(const Napi::CallbackInfo& info) {
    int64_t frame, count;
    if (!GetFrames(info, &frame, &count)) return info.Env().Undefined();
    return Done(info.Env(), session_->Wake(frame, count));
  }

  Napi::Value Reset(const Napi::CallbackInfo& info) {
    int64_t frame, count, state;
    if (!GetFrames(info, &frame, &count) || !GetInt(info, 2, 0, kFrameStates - 1, &state))
      return info.Env().Undefined();
    session_->Reset(frame, count, static_cast<FrameState>(state));
    return info.Env().Undefined();
  }

  Napi::Value Reconcile(const Napi::CallbackInfo& info) {
    if (!Open(info.Env())) return info.Env().Undefined();
    if (!info[0].IsTypedArray() || info[0].As<Napi::TypedArray>().TypedArrayType() != napi_uint32_array)
      return Throw(info.Env(), MakeError(ErrorKind::Internal, "argument 0 must be a Uint32Array"));
    Napi::Uint32Array present = info[0].As<Napi::Uint32Array>();
    return Napi::Number::New(info.Env(),
                             static_cast<double>(session_->Reconcile(present.Data(), present.ElementLength() / 2)));
  }

  Napi::Value Adopt(const Napi::CallbackInfo& info) {
    int64_t id;
    if (!Open(info.Env()) || !GetInt(info, 0, 1, UINT32_MAX, &id)) return info.Env().Undefined();
    auto from = Sessions().Find(static_cast<uint32_t>(id));
    if (!from) return Throw(info.Env(), MakeError(ErrorKind::Internal, "there is no session " + std::to_string(id)));
    return Done(info.Env(), session_->Adopt(*from));
  }

  Napi::Value Punch(const Napi::CallbackInfo& info) {
    int64_t frame, count, state;
    if (!GetFrames(info, &frame, &count) || !GetInt(info, 2, 0, kFrameStates - 1, &state))
      return info.Env().Undefined();
    return Done(info.Env(), session_->Punch(frame, count, static_cast<FrameState>(state)));
  }

  Napi::Value PunchAbsent(const Napi::CallbackInfo& info) {
    return Open(info.Env()) ? Done(info.Env(), session_->PunchAbsent()) : info.Env().Undefined();
  }

  Napi::Value Counts(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    if (!Open(env)) return env.Undefined();
    SessionCounts counts = session_->Counts();
    Napi::Object object = Napi::Object::New(env);
    auto set = [&](const char* name, uint64_t value) {
      object.Set(name, Napi::Number::New(env, static_cast<double>(value)));
    };
    set("total", counts.total);
    set("outstanding", counts.outstanding);
    set("wanted", counts.wanted);
    set("present", counts.present);
    set("zero", counts.zero);
    set("removed", counts.removed);
    set("installed", counts.installed);
    set("zeroInstalled", counts.zero_installed);
    set("skipped", counts.skipped);
    set("faults", counts.faults);
    set("removes", counts.removes);
    set("foreign", counts.foreign);
    return object;
  }

  Napi::Value Close(const Napi::CallbackInfo& info) {
    session_.reset();
    arena_.reset();
    arena_id_ = 0;
    return info.Env().Undefined();
  }

  std::shared_ptr<FaultSession> session_;
  std::shared_ptr<Arena> arena_;
  int64_t arena_id_ = 0;
  std::weak_ptr<SharedCache> cache_;
  int64_t cache_id_ = 0;
  std::weak_ptr<ResidentLookups> lookups_;
  int64_t lookups_id_ = 0;
  uint8_t* scratch_ = nullptr;
  int loop_fd_ = -1;
};

bool GetField(Napi::Env env, Napi::Object object, const char* name, int64_t max, uint64_t* out) {
  Napi::Value value = object.Get(name);
  double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : -1;
  if (number >= 0 && number <= static_cast<double>(max) &&
      number == static_cast<double>(static_cast<uint64_t>(number))) {
    *out = static_cast<uint64_t>(number);
    return true;
  }
  Throw(env, ArgumentError(std::string(name) + " must be a whole number from 0 to " + std::to_string(max)));
  return false;
}

Napi::Value CreateSession(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!info[0].IsObject()) return Throw(env, MakeError(ErrorKind::Internal, "argument 0 must be an object"));
  Napi::Object options = info[0].As<Napi::Object>();
  FaultSession::Options native;
  uint64_t uffd;
  if (!GetField(env, options, "uffd", INT32_MAX, &uffd)) return env.Undefined();
  native.uffd = static_cast<int>(uffd);
  if (!GetField(env, options, "pageSize", 1ll << 40, &native.page_size)) return env.Undefined();
  native.shared = options.Get("shared").ToBoolean();
  native.recover = options.Get("recover").ToBoolean();
  if (options.Get("tablePath").IsString()) native.table_path = options.Get("tablePath").As<Napi::String>().Utf8Value();
  if (!options.Get("regions").IsArray()) return Throw(env, ArgumentError("regions must be an array"));
  Napi::Array regions = options.Get("regions").As<Napi::Array>();
  for (uint32_t i = 0; i < regions.Length(); i++) {
    if (!regions.Get(i).IsObject()) return Throw(env, ArgumentError("a region must be an object"));
    Napi::Object object = regions.Get(i).As<Napi::Object>();
    Region region{};
    constexpr int64_t kMax = 1ll << 52;
    if (!GetField(env, object, "hostAddress", kMax, &region.host) ||
        !GetField(env, object, "size", kMax, &region.size) || !GetField(env, object, "offset", kMax, &region.offset))
      return env.Undefined();
    native.regions.push_back(region);
  }
  auto session = FaultSession::Create(std::move(native));
  if (!session.ok()) return Throw(env, session.error);
  uint32_t id = Sessions().Add(session.value);
  return State(env).session_class.New({Napi::Number::New(env, id)});
}

Napi::Value CreateFileSession(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!info[0].IsArray()) return Throw(env, MakeError(ErrorKind::Internal, "argument 0 must be an array"));
  int64_t page_size;
  if (!GetInt(info, 1, 1, 1ll << 40, &page_size)) return env.Undefined();
  Napi::Array array = info[0].As<Napi::Array>();
  std::vector<TargetFile> files;
  for (uint32_t i = 0; i < array.Length(); i++) {
    if (!array.Get(i).IsObject()) return Throw(env, ArgumentError("a file must be an object"));
    Napi::Object object = array.Get(i).As<Napi::Object>();
    TargetFile file{};
    uint64_t fd;
    constexpr int64_t kMax = 1ll << 52;
    if (!GetField(env, object, "fd", INT32_MAX, &fd) || !GetField(env, object, "size", kMax, &file.size) ||
        !GetField(env, object, "offset", kMax, &file.offset))
      return env.Undefined();
    file.fd = static_cast<int>(fd);
    files.push_back(file);
  }
  auto session = FaultSession::CreateOverFiles(files, static_cast<uint64_t>(page_size));
  if (!session.ok()) return Throw(env, session.error);
  uint32_t id = Sessions().Add(session.value);
  return State(env).session_class.New({Napi::Number::New(env, id)});
}

Napi::Value OpenSession(const Napi::CallbackInfo& info) {
  int64_t id;
  if (!GetInt(info, 0, 1, UINT32_MAX, &id)) return info.Env().Undefined();
  return State(info.Env()).session_class.New({Napi::Number::New(info.Env(), static_cast<double>(id))});
}

Napi::Value DestroySession(const Napi::CallbackInfo& info) {
  int64_t id;
  if (!GetInt(info, 0, 1, UINT32_MAX, &id)) return info.Env().Undefined();
  if (auto session = Sessions().Remove(static_cast<uint32_t>(id))) session->Stop();
  return info.Env().Undefined();
}

Napi::Value CreateArena(const Napi::CallbackInfo& info) {
  std::string path;
  int64_t slot_size, slots;
  if (!GetString(info, 0, &path) || !GetInt(info, 1, 4096, 2 << 20, &slot_size) ||
      !GetInt(info, 2, 1, UINT32_MAX, &slots))
    return info.Env().Undefined();
  auto arena = Arena::Open(path, slot_size, slots);
  if (!arena.ok()) return Throw(info.Env(), arena.error);
  return Napi::Number::New(info.Env(), Arenas().Add(arena.value));
}

Napi::Value DestroyArena(const Napi::CallbackInfo& info) {
  int64_t id;
  if (GetInt(info, 0, 1, UINT32_MAX, &id)) Arenas().Remove(static_cast<uint32_t>(id));
  return info.Env().Undefined();
}

Napi::Value ArenaView(const Napi::CallbackInfo& info) {
  int64_t id;
  if (!GetInt(info, 0, 1, UINT32_MAX, &id)) return info.Env().Undefined();
  auto arena = Arenas().Find(static_cast<uint32_t>(id));
  if (!arena) return Throw(info.Env(), MakeError(ErrorKind::Internal, "there is no arena " + std::to_string(id)));
  auto* keep = new std::shared_ptr<Arena>(arena);
  Napi::ArrayBuffer memory = Napi::ArrayBuffer::New(
      info.Env(), arena->data(), arena->size(), [](Napi::Env, void*, std::shared_ptr<Arena>* held) { delete held; },
      keep);
  return Napi::Uint8Array::New(info.Env(), arena->size(), memory, 0);
}

}  // namespace

void InitSession(Napi::Env env, Napi::Object exports) {
  State(env).session_class = Napi::Persistent(SessionView::Define(env));
  exports.Set("createSession", Napi::Function::New(env, CreateSession));
  exports.Set("createFileSession", Napi::Function::New(env, CreateFileSession));
  exports.Set("openSession", Napi::Function::New(env, OpenSession));
  exports.Set("destroySession", Napi::Function::New(env, DestroySession));
  exports.Set("createArena", Napi::Function::New(env, CreateArena));
  exports.Set("destroyArena", Napi::Function::New(env, DestroyArena));
  exports.Set("arenaView", Napi::Function::New(env, ArenaView));
}

}  // namespace pagetide
