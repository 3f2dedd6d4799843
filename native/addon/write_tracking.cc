// WriteTracker for JavaScript: an object of one thread.
#include "core/write_tracking.h"

#include <unistd.h>

#include "addon/support.h"

namespace pagetide {

namespace {

constexpr int64_t kMaxAddress = 1ll << 52;

class TrackerView : public Napi::ObjectWrap<TrackerView> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "WriteTracker",
                       {InstanceMethod<&TrackerView::Scan>("scan"), InstanceMethod<&TrackerView::Close>("close")});
  }

  // new WriteTracker(pid, uffd, pageSize, [[address, size, offset], …] flat in a Float64Array): only from
  // createWriteTracker.
  explicit TrackerView(const Napi::CallbackInfo& info) : Napi::ObjectWrap<TrackerView>(info) {
    Napi::Env env = info.Env();
    int64_t pid, uffd, page_size;
    if (!GetInt(info, 0, 1, INT32_MAX, &pid) || !GetInt(info, 1, 0, INT32_MAX, &uffd) ||
        !GetInt(info, 2, 1, 1 << 30, &page_size))
      return;
    WriteTracker::Options options;
    options.pid = static_cast<int>(pid);
    options.uffd = static_cast<int>(uffd);
    options.page_size = static_cast<uint64_t>(page_size);
    if (info.Length() < 4 || !info[3].IsTypedArray() ||
        info[3].As<Napi::TypedArray>().TypedArrayType() != napi_float64_array) {
      Throw(env, MakeError(ErrorKind::Internal, "argument 3 must be a Float64Array"));
      return;
    }
    Napi::Float64Array numbers = info[3].As<Napi::Float64Array>();
    for (size_t i = 0; i + 2 < numbers.ElementLength(); i += 3) {
      uint64_t values[3];
      for (size_t n = 0; n < 3; n++) {
        double number = numbers[i + n];
        if (!(number >= 0 && number <= static_cast<double>(kMaxAddress)) ||
            number != static_cast<double>(static_cast<uint64_t>(number))) {
          Throw(env, ArgumentError("a region is three whole numbers below 2^52"));
          return;
        }
        values[n] = static_cast<uint64_t>(number);
      }
      options.regions.push_back({values[0], values[1], values[2]});
    }
    auto tracker = WriteTracker::Create(options);
    if (!tracker.ok()) {
      Throw(env, tracker.error);
      return;
    }
    tracker_ = tracker.value;
    info.This().As<Napi::Object>().Set("frames", Napi::Number::New(env, static_cast<double>(tracker_->frames())));
  }

 private:
  // Returns the number of runs, or -1 - runs where the pass goes on: nothing is allocated.
  Napi::Value Scan(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    if (!tracker_) return Throw(env, MakeError(ErrorKind::Internal, "the tracker is closed"));
    if (info.Length() < 1 || !info[0].IsTypedArray() ||
        info[0].As<Napi::TypedArray>().TypedArrayType() != napi_uint32_array)
      return Throw(env, MakeError(ErrorKind::Internal, "argument 0 must be a Uint32Array"));
    Napi::Uint32Array runs = info[0].As<Napi::Uint32Array>();
    Scanned scanned;
    if (Error error = tracker_->Scan(runs.Data(), runs.ElementLength() / 2, &scanned)) return Throw(env, error);
    int64_t count = scanned.runs;
    return Napi::Number::New(env, static_cast<double>(scanned.complete ? count : -1 - count));
  }

  Napi::Value Close(const Napi::CallbackInfo& info) {
    std::shared_ptr<WriteTracker> tracker = std::move(tracker_);
    tracker_ = nullptr;
    if (tracker) {
      if (Error error = tracker->Close()) return Throw(info.Env(), error);
    }
    return info.Env().Undefined();
  }

  std::shared_ptr<WriteTracker> tracker_;
};

Napi::Value CreateWriteTracker(const Napi::CallbackInfo& info) {
  if (info.Length() < 4)
    return Throw(info.Env(), MakeError(ErrorKind::Internal, "createWriteTracker(pid, uffd, pageSize, regions)"));
  return State(info.Env()).tracker_class.New({info[0], info[1], info[2], info[3]});
}

}  // namespace

void InitWriteTracking(Napi::Env env, Napi::Object exports) {
  State(env).tracker_class = Napi::Persistent(TrackerView::Define(env));
  exports.Set("createWriteTracker", Napi::Function::New(env, CreateWriteTracker));
  exports.Set("trackingFeatures", Napi::BigInt::New(env, kTrackingFeatures));
}

}  // namespace pagetide
