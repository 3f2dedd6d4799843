#include <malloc.h>

#include "addon/support.h"

namespace pagetide {

namespace {

Napi::Value SetErrorClass(const Napi::CallbackInfo& info) {
  if (info.Length() == 1 && info[0].IsFunction()) {
    State(info.Env()).error_class = Napi::Persistent(info[0].As<Napi::Function>());
  }
  return info.Env().Undefined();
}

// glibc gives every thread a heap of its own that keeps what was freed in it, eight times the CPUs at most: in a
// process of a dozen threads most of what they once needed would stay resident. And once a large buffer has been freed,
// it takes the next ones of that size from the heap, where whatever comes to lie behind them keeps them from being
// given back: a threshold that is set stays. The ways that have to be fast allocate nothing.
void SettleMalloc() {
  static const bool done =
      mallopt(M_ARENA_MAX, 2) && mallopt(M_MMAP_THRESHOLD, 1 << 20) && mallopt(M_TRIM_THRESHOLD, 4 << 20);
  (void)done;
}

Napi::Value TrimMemory(const Napi::CallbackInfo& info) {
  malloc_trim(0);
  return info.Env().Undefined();
}

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  SettleMalloc();
  env.SetInstanceData(new AddonState());
  exports.Set("setErrorClass", Napi::Function::New(env, SetErrorClass));
  exports.Set("trimMemory", Napi::Function::New(env, TrimMemory));
  InitSession(env, exports);
  InitSystem(env, exports);
  InitSockets(env, exports);
  InitWatcher(env, exports);
  InitTags(env, exports);
  InitWriteTracking(env, exports);
  InitCache(env, exports);
  InitResident(env, exports);
  InitTlsSession(env, exports);
  InitDeltas(env, exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(pagetide, Init)

}  // namespace pagetide
