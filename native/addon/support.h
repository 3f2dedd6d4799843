// What every part of the addon needs: typed errors, checked arguments, state of the environment.
#pragma once

#include <napi.h>
#include <uv.h>

#include <cstdint>
#include <string>

#include "core/error.h"

namespace pagetide {

// One per environment (main thread, each worker): no JavaScript reference is shared between threads.
struct AddonState {
  Napi::FunctionReference error_class;
  Napi::FunctionReference session_class;
  Napi::FunctionReference watcher_class;
  Napi::FunctionReference tracker_class;
  Napi::FunctionReference tls_class;
};

inline AddonState& State(Napi::Env env) {
  return *env.GetInstanceData<AddonState>();
}

// Throws a PagetideError whose code follows the kind and errno. Returns undefined, so `return Throw(…)` reads well.
Napi::Value Throw(Napi::Env env, const Error& error);

// Arguments. Each throws PT_INTERNAL (a caller's defect: TypeScript checked before) and returns false when it does not
// fit.
bool GetNumber(const Napi::CallbackInfo& info, size_t index, double min, double max, double* out);
bool GetInt(const Napi::CallbackInfo& info, size_t index, int64_t min, int64_t max, int64_t* out);
bool GetString(const Napi::CallbackInfo& info, size_t index, std::string* out);
bool GetBytes(const Napi::CallbackInfo& info, size_t index, uint8_t** data, size_t* size);
bool GetBigUint64(const Napi::CallbackInfo& info, size_t index, uint64_t* out);

uv_loop_t* LoopOf(Napi::Env env);

void InitSession(Napi::Env env, Napi::Object exports);
void InitSystem(Napi::Env env, Napi::Object exports);
void InitSockets(Napi::Env env, Napi::Object exports);
void InitTags(Napi::Env env, Napi::Object exports);
void InitWatcher(Napi::Env env, Napi::Object exports);
void InitWriteTracking(Napi::Env env, Napi::Object exports);
void InitCache(Napi::Env env, Napi::Object exports);
void InitResident(Napi::Env env, Napi::Object exports);
void InitTlsSession(Napi::Env env, Napi::Object exports);
void InitDeltas(Napi::Env env, Napi::Object exports);

}  // namespace pagetide
