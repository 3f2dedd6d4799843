// The host and other processes: probing, attaching, what memory exists.
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

#include "addon/support.h"
#include "core/attach.h"
#include "core/file_changes.h"
#include "core/memory.h"
#include "core/userfault.h"

namespace pagetide {

namespace {

constexpr int64_t kMaxOffset = 1ll << 52;

Napi::Value Probe(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  UserfaultProbe probe = ProbeUserfault();
  Napi::Object object = Napi::Object::New(env);
  Napi::Array ways = Napi::Array::New(env);
  for (size_t i = 0; i < probe.ways.size(); i++) {
    Napi::Object way = Napi::Object::New(env);
    way.Set("way", probe.ways[i].name);
    way.Set("ok", probe.ways[i].err == 0);
    if (probe.ways[i].err != 0) way.Set("errno", ErrnoName(probe.ways[i].err));
    ways.Set(static_cast<uint32_t>(i), way);
  }
  object.Set("ways", ways);
  if (probe.any) object.Set("features", Napi::BigInt::New(env, probe.features));
  object.Set("pagemapScan", probe.pagemap_scan);
  object.Set("shmem", probe.shmem);
  object.Set("hugetlbfs", probe.hugetlbfs);
  return object;
}

Napi::Value CreateUserfaultFd(const Napi::CallbackInfo& info) {
  uint64_t features;
  if (!GetBigUint64(info, 0, &features)) return info.Env().Undefined();
  auto made = CreateUserfault(features, true);
  if (!made.ok()) return Throw(info.Env(), made.error);
  Napi::Object object = Napi::Object::New(info.Env());
  object.Set("fd", made.value.fd);
  object.Set("userModeOnly", made.value.user_mode_only);
  return object;
}

bool GetPid(const Napi::CallbackInfo& info, size_t index, int64_t* pid) {
  return GetInt(info, index, 1, INT32_MAX, pid);
}

Napi::Value Attach(const Napi::CallbackInfo& info) {
  int64_t pid, device = -1;
  uint64_t features;
  if (!GetPid(info, 0, &pid) || !GetBigUint64(info, 1, &features)) return info.Env().Undefined();
  if (info.Length() > 2 && !info[2].IsUndefined() && !GetInt(info, 2, 0, INT32_MAX, &device))
    return info.Env().Undefined();
  auto attached = AttachUserfault(static_cast<int>(pid), features, static_cast<int>(device));
  if (!attached.ok()) return Throw(info.Env(), attached.error);
  Napi::Object object = Napi::Object::New(info.Env());
  object.Set("fd", attached.value.fd);
  object.Set("remoteFd", attached.value.remote_fd);
  return object;
}

Napi::Value TakeFdOf(const Napi::CallbackInfo& info) {
  int64_t pid, remote;
  if (!GetPid(info, 0, &pid) || !GetInt(info, 1, 0, INT32_MAX, &remote)) return info.Env().Undefined();
  auto fd = TakeFd(static_cast<int>(pid), static_cast<int>(remote));
  return fd.ok() ? Napi::Number::New(info.Env(), fd.value) : Throw(info.Env(), fd.error);
}

Napi::Value CloseRemoteFd(const Napi::CallbackInfo& info) {
  int64_t pid, remote;
  if (!GetPid(info, 0, &pid) || !GetInt(info, 1, 0, INT32_MAX, &remote)) return info.Env().Undefined();
  if (Error error = CloseRemote(static_cast<int>(pid), static_cast<int>(remote))) return Throw(info.Env(), error);
  return info.Env().Undefined();
}

Napi::Value FindUserfaultsOf(const Napi::CallbackInfo& info) {
  int64_t pid;
  if (!GetPid(info, 0, &pid)) return info.Env().Undefined();
  auto found = FindUserfaults(static_cast<int>(pid));
  if (!found.ok()) return Throw(info.Env(), found.error);
  Napi::Array array = Napi::Array::New(info.Env(), found.value.size());
  for (size_t i = 0; i < found.value.size(); i++) array.Set(static_cast<uint32_t>(i), found.value[i]);
  return array;
}

Napi::Value ToArray(Napi::Env env, const Result<std::vector<Extent>>& extents) {
  if (!extents.ok()) return Throw(env, extents.error);
  Napi::Array array = Napi::Array::New(env, extents.value.size());
  for (size_t i = 0; i < extents.value.size(); i++) {
    Napi::Object extent = Napi::Object::New(env);
    extent.Set("offset", static_cast<double>(extents.value[i].offset));
    extent.Set("length", static_cast<double>(extents.value[i].length));
    array.Set(static_cast<uint32_t>(i), extent);
  }
  return array;
}

Napi::Value DataExtentsOf(const Napi::CallbackInfo& info) {
  int64_t fd, offset, length;
  if (!GetInt(info, 0, 0, INT32_MAX, &fd) || !GetInt(info, 1, 0, kMaxOffset, &offset) ||
      !GetInt(info, 2, 0, kMaxOffset, &length))
    return info.Env().Undefined();
  return ToArray(info.Env(), DataExtents(static_cast<int>(fd), offset, length));
}

Napi::Value PresentExtentsOf(const Napi::CallbackInfo& info) {
  int64_t pid, address, size;
  if (!GetPid(info, 0, &pid) || !GetInt(info, 1, 0, kMaxOffset, &address) || !GetInt(info, 2, 0, kMaxOffset, &size))
    return info.Env().Undefined();
  return ToArray(info.Env(), PresentExtents(static_cast<int>(pid), address, size));
}

Napi::Value WatchChanges(const Napi::CallbackInfo& info) {
  int64_t fd;
  if (!GetInt(info, 0, 0, INT32_MAX, &fd)) return info.Env().Undefined();
  auto watch = FileChanges::OfProcess().Watch(static_cast<int>(fd));
  return watch.ok() ? Napi::Number::New(info.Env(), watch.value) : Throw(info.Env(), watch.error);
}

Napi::Value CountChanges(const Napi::CallbackInfo& info) {
  int64_t watch;
  if (!GetInt(info, 0, 1, INT32_MAX, &watch)) return info.Env().Undefined();
  auto count = FileChanges::OfProcess().Count(static_cast<int>(watch));
  return count.ok() ? Napi::Number::New(info.Env(), static_cast<double>(count.value)) : Throw(info.Env(), count.error);
}

Napi::Value UnwatchChanges(const Napi::CallbackInfo& info) {
  int64_t watch;
  if (GetInt(info, 0, 1, INT32_MAX, &watch)) FileChanges::OfProcess().Unwatch(static_cast<int>(watch));
  return info.Env().Undefined();
}

Napi::Value IsZeroRange(const Napi::CallbackInfo& info) {
  uint8_t* data;
  size_t size;
  int64_t offset, length;
  if (!GetBytes(info, 0, &data, &size) || !GetInt(info, 1, 0, static_cast<int64_t>(size), &offset) ||
      !GetInt(info, 2, 0, static_cast<int64_t>(size) - offset, &length))
    return info.Env().Undefined();
  return Napi::Boolean::New(info.Env(), IsZero(data + offset, length));
}

Napi::Value OpenPidfd(const Napi::CallbackInfo& info) {
  int64_t pid;
  if (!GetPid(info, 0, &pid)) return info.Env().Undefined();
  auto fd = PidfdOpen(static_cast<int>(pid));
  return fd.ok() ? Napi::Number::New(info.Env(), fd.value) : Throw(info.Env(), fd.error);
}

Napi::Value SetTrafficClass(const Napi::CallbackInfo& info) {
  int64_t fd, dscp;
  if (!GetInt(info, 0, 0, INT32_MAX, &fd) || !GetInt(info, 1, 0, 63, &dscp)) return info.Env().Undefined();
  int value = static_cast<int>(dscp) << 2;  // the two low bits are ECN's
  bool v4 = setsockopt(static_cast<int>(fd), IPPROTO_IP, IP_TOS, &value, sizeof value) == 0;
  bool v6 = setsockopt(static_cast<int>(fd), IPPROTO_IPV6, IPV6_TCLASS, &value, sizeof value) == 0;
  if (!v4 && !v6) return Throw(info.Env(), SyscallError("setsockopt(IP_TOS)", errno));
  return info.Env().Undefined();
}

}  // namespace

void InitSystem(Napi::Env env, Napi::Object exports) {
  exports.Set("probe", Napi::Function::New(env, Probe));
  exports.Set("createUserfault", Napi::Function::New(env, CreateUserfaultFd));
  exports.Set("attach", Napi::Function::New(env, Attach));
  exports.Set("takeFd", Napi::Function::New(env, TakeFdOf));
  exports.Set("closeRemote", Napi::Function::New(env, CloseRemoteFd));
  exports.Set("findUserfaults", Napi::Function::New(env, FindUserfaultsOf));
  exports.Set("presentExtents", Napi::Function::New(env, PresentExtentsOf));
  exports.Set("dataExtents", Napi::Function::New(env, DataExtentsOf));
  exports.Set("watchChanges", Napi::Function::New(env, WatchChanges));
  exports.Set("countChanges", Napi::Function::New(env, CountChanges));
  exports.Set("unwatchChanges", Napi::Function::New(env, UnwatchChanges));
  exports.Set("isZero", Napi::Function::New(env, IsZeroRange));
  exports.Set("pidfdOpen", Napi::Function::New(env, OpenPidfd));
  exports.Set("setTrafficClass", Napi::Function::New(env, SetTrafficClass));
}

}  // namespace pagetide
