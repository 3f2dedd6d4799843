// A descriptor on the event loop of its thread (uv_poll): pidfds, listening sockets, connections that carry
// descriptors.
//
// The uv handle outlives the JavaScript object until libuv has closed it; an environment that ends while a watcher is
// open closes it through its clean-up hook and waits for that.
#include "addon/support.h"

namespace pagetide {

namespace {

class Watcher;

struct Handle {
  uv_poll_t poll;
  Watcher* owner = nullptr;
  Napi::FunctionReference callback;
  Napi::AsyncContext* context = nullptr;
  napi_async_cleanup_hook_handle hook = nullptr;
  bool closing = false;
};

void Closed(uv_handle_t* raw) {
  auto* handle = static_cast<Handle*>(raw->data);
  // Only here: close() may be called from inside the callback that these carry.
  handle->callback.Reset();
  delete handle->context;
  // Removing the hook also tells an ending environment that this one is done.
  if (handle->hook != nullptr) napi_remove_async_cleanup_hook(handle->hook);
  delete handle;
}

void Shut(Handle* handle);

class Watcher : public Napi::ObjectWrap<Watcher> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "FdWatcher",
                       {InstanceMethod<&Watcher::Close>("close"), InstanceMethod<&Watcher::Ref>("ref"),
                        InstanceMethod<&Watcher::Unref>("unref")});
  }

  explicit Watcher(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Watcher>(info) {
    Napi::Env env = info.Env();
    int64_t fd;
    if (!GetInt(info, 0, 0, INT32_MAX, &fd)) return;
    if (!info[1].IsFunction()) {
      Throw(env, MakeError(ErrorKind::Internal, "argument 1 must be a function"));
      return;
    }
    auto* handle = new Handle();
    int status = uv_poll_init(LoopOf(env), &handle->poll, static_cast<int>(fd));
    if (status != 0) {
      delete handle;
      Throw(env, SyscallError("uv_poll_init", -status));
      return;
    }
    handle->poll.data = handle;
    handle->callback = Napi::Persistent(info[1].As<Napi::Function>());
    handle->context = new Napi::AsyncContext(env, "pagetide:watch");
    napi_add_async_cleanup_hook(
        env, [](napi_async_cleanup_hook_handle, void* data) { Shut(static_cast<Handle*>(data)); }, handle,
        &handle->hook);
    uv_poll_start(&handle->poll, UV_READABLE, [](uv_poll_t* poll, int, int) {
      auto* ready = static_cast<Handle*>(poll->data);
      if (ready->closing) return;
      Napi::Env env = ready->callback.Env();
      Napi::HandleScope scope(env);
      ready->callback.MakeCallback(env.Global(), {}, *ready->context);
    });
    handle->owner = this;
    handle_ = handle;
  }

  // Dropped without close(): the handle would keep calling into nothing.
  ~Watcher() override { Release(); }

  // The handle is being closed by someone else: forget it.
  void Forget() { handle_ = nullptr; }

 private:
  void Release() {
    if (handle_ != nullptr) Shut(handle_);
  }
  Napi::Value Close(const Napi::CallbackInfo& info) {
    Release();
    return info.Env().Undefined();
  }
  Napi::Value Ref(const Napi::CallbackInfo& info) {
    if (handle_ != nullptr) uv_ref(reinterpret_cast<uv_handle_t*>(&handle_->poll));
    return info.Env().Undefined();
  }
  Napi::Value Unref(const Napi::CallbackInfo& info) {
    if (handle_ != nullptr) uv_unref(reinterpret_cast<uv_handle_t*>(&handle_->poll));
    return info.Env().Undefined();
  }

  Handle* handle_ = nullptr;
};

void Shut(Handle* handle) {
  if (handle->closing) return;
  handle->closing = true;
  if (handle->owner != nullptr) handle->owner->Forget();
  handle->owner = nullptr;
  uv_poll_stop(&handle->poll);
  uv_close(reinterpret_cast<uv_handle_t*>(&handle->poll), Closed);
}

Napi::Value Watch(const Napi::CallbackInfo& info) {
  if (info.Length() < 2) return Throw(info.Env(), MakeError(ErrorKind::Internal, "watch(fd, callback)"));
  return State(info.Env()).watcher_class.New({info[0], info[1]});
}

}  // namespace

void InitWatcher(Napi::Env env, Napi::Object exports) {
  State(env).watcher_class = Napi::Persistent(Watcher::Define(env));
  exports.Set("watch", Napi::Function::New(env, Watch));
}

}  // namespace pagetide
