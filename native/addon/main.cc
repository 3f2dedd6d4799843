#include "addon/support.h"

namespace pagetide {

namespace {

Napi::Value SetErrorClass(const Napi::CallbackInfo& info) {
  if (info.Length() == 1 && info[0].IsFunction()) {
    State(info.Env()).error_class = Napi::Persistent(info[0].As<Napi::Function>());
  }
  return info.Env().Undefined();
}

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new AddonState());
  exports.Set("setErrorClass", Napi::Function::New(env, SetErrorClass));
  InitSession(env, exports);
  InitSystem(env, exports);
  InitSockets(env, exports);
  InitWatcher(env, exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(pagetide, Init)

}  // namespace pagetide
