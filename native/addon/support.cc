#include "addon/support.h"

#include <cerrno>

namespace pagetide {

namespace {

const char* CodeOf(const Error& error) {
  switch (error.kind) {
    case ErrorKind::Permission:
      return "PT_NO_PERMISSION";
    case ErrorKind::Unsupported:
      return "PT_UNSUPPORTED_HOST";
    case ErrorKind::InUse:
      return "PT_SOCKET_IN_USE";
    case ErrorKind::CacheInUse:
      return "PT_CACHE_IN_USE";
    case ErrorKind::CacheFile:
      return "PT_CACHE_FILE";
    case ErrorKind::Argument:
      return "PT_BAD_ARGUMENT";
    case ErrorKind::Internal:
    case ErrorKind::None:
      return "PT_INTERNAL";
    case ErrorKind::Syscall:
      break;
  }
  switch (error.err) {
    case ENOSPC:
      return "PT_NO_SPACE";
    case ENOMEM:
      return "PT_NO_MEMORY";
    case ESRCH:
      return "PT_VMM_GONE";
    case EACCES:
      return "PT_NO_PERMISSION";
    default:
      return "PT_SYSCALL";
  }
}

Napi::Value BadArgument(Napi::Env env, size_t index, const char* expected) {
  return Throw(env, MakeError(ErrorKind::Internal, "argument " + std::to_string(index) + " must be " + expected));
}

}  // namespace

Napi::Value Throw(Napi::Env env, const Error& error) {
  AddonState& state = State(env);
  Napi::String code = Napi::String::New(env, CodeOf(error));
  Napi::String message = Napi::String::New(env, error.Message());
  if (state.error_class.IsEmpty()) {
    Napi::Error plain = Napi::Error::New(env, error.Message());
    plain.Value().Set("code", code);
    plain.ThrowAsJavaScriptException();
    return env.Undefined();
  }
  Napi::Object thrown = state.error_class.New({code, message});
  if (env.IsExceptionPending()) return env.Undefined();
  if (error.err != 0) thrown.Set("errno", Napi::String::New(env, ErrnoName(error.err)));
  napi_throw(env, thrown);
  return env.Undefined();
}

bool GetNumber(const Napi::CallbackInfo& info, size_t index, double min, double max, double* out) {
  if (index < info.Length() && info[index].IsNumber()) {
    double value = info[index].As<Napi::Number>().DoubleValue();
    if (value >= min && value <= max) {
      *out = value;
      return true;
    }
  }
  BadArgument(info.Env(), index, "a number in range");
  return false;
}

bool GetInt(const Napi::CallbackInfo& info, size_t index, int64_t min, int64_t max, int64_t* out) {
  double value;
  if (!GetNumber(info, index, static_cast<double>(min), static_cast<double>(max), &value)) return false;
  *out = static_cast<int64_t>(value);
  if (static_cast<double>(*out) != value) {
    BadArgument(info.Env(), index, "a whole number");
    return false;
  }
  return true;
}

bool GetString(const Napi::CallbackInfo& info, size_t index, std::string* out) {
  if (index < info.Length() && info[index].IsString()) {
    *out = info[index].As<Napi::String>().Utf8Value();
    if (out->find('\0') == std::string::npos) return true;
  }
  BadArgument(info.Env(), index, "a string");
  return false;
}

bool GetBytes(const Napi::CallbackInfo& info, size_t index, uint8_t** data, size_t* size) {
  if (index < info.Length() && info[index].IsTypedArray()) {
    Napi::TypedArray array = info[index].As<Napi::TypedArray>();
    if (array.TypedArrayType() == napi_uint8_array) {
      Napi::Uint8Array bytes = array.As<Napi::Uint8Array>();
      *data = bytes.Data();
      *size = bytes.ByteLength();
      return true;
    }
  }
  BadArgument(info.Env(), index, "a Uint8Array");
  return false;
}

bool GetBigUint64(const Napi::CallbackInfo& info, size_t index, uint64_t* out) {
  if (index < info.Length() && info[index].IsBigInt()) {
    bool lossless = false;
    *out = info[index].As<Napi::BigInt>().Uint64Value(&lossless);
    if (lossless) return true;
  }
  BadArgument(info.Env(), index, "a bigint below 2^64");
  return false;
}

uv_loop_t* LoopOf(Napi::Env env) {
  uv_loop_t* loop = nullptr;
  napi_get_uv_event_loop(env, &loop);
  return loop;
}

}  // namespace pagetide
