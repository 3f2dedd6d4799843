// Unix sockets that carry descriptors. Node's own sockets drop them.
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>

#include "addon/support.h"
#include "core/fd_passing.h"

namespace pagetide {

namespace {

constexpr int kSendTimeoutMs = 5000;

// The kernel's tcp_info (linux/tcp.h, which cannot stand beside the C library's) as far as it is used here.
struct TcpInfo {
  tcp_info old;
  uint64_t pacing_rate, max_pacing_rate, bytes_acked, bytes_received;
  uint32_t segs_out, segs_in;
};
static_assert(offsetof(TcpInfo, bytes_acked) == 120 && sizeof(TcpInfo) == 144);

Napi::Value FdOrThrow(Napi::Env env, const Result<int>& fd) {
  return fd.ok() ? Napi::Number::New(env, fd.value) : Throw(env, fd.error);
}

Napi::Value Listen(const Napi::CallbackInfo& info) {
  std::string path;
  return GetString(info, 0, &path) ? FdOrThrow(info.Env(), ListenUnix(path)) : info.Env().Undefined();
}

Napi::Value Connect(const Napi::CallbackInfo& info) {
  std::string path;
  return GetString(info, 0, &path) ? FdOrThrow(info.Env(), ConnectUnix(path)) : info.Env().Undefined();
}

bool GetFd(const Napi::CallbackInfo& info, int64_t* fd) {
  return GetInt(info, 0, 0, INT32_MAX, fd);
}

Napi::Value Accept(const Napi::CallbackInfo& info) {
  int64_t fd;
  return GetFd(info, &fd) ? FdOrThrow(info.Env(), AcceptUnix(static_cast<int>(fd))) : info.Env().Undefined();
}

Napi::Value PeerPidOf(const Napi::CallbackInfo& info) {
  int64_t fd;
  return GetFd(info, &fd) ? FdOrThrow(info.Env(), PeerPid(static_cast<int>(fd))) : info.Env().Undefined();
}

Napi::Value ReceiveMessage(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  int64_t fd;
  uint8_t* data;
  size_t size;
  if (!GetFd(info, &fd) || !GetBytes(info, 1, &data, &size)) return env.Undefined();
  if (size == 0) return Throw(env, ArgumentError("no room to receive into"));
  auto received = Receive(static_cast<int>(fd), data, size);
  if (!received.ok()) return Throw(env, received.error);
  Napi::Array fds = Napi::Array::New(env, received.value.fds.size());
  for (size_t i = 0; i < received.value.fds.size(); i++) fds.Set(static_cast<uint32_t>(i), received.value.fds[i]);
  Napi::Object object = Napi::Object::New(env);
  object.Set("bytes", static_cast<double>(received.value.bytes));
  object.Set("fds", fds);
  return object;
}

Napi::Value SendMessage(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  int64_t fd;
  uint8_t* data;
  size_t size;
  if (!GetFd(info, &fd) || !GetBytes(info, 1, &data, &size)) return env.Undefined();
  std::vector<int> fds;
  if (info.Length() > 2 && info[2].IsArray()) {
    Napi::Array array = info[2].As<Napi::Array>();
    for (uint32_t i = 0; i < array.Length(); i++) {
      if (!array.Get(i).IsNumber()) return Throw(env, ArgumentError("descriptors are numbers"));
      fds.push_back(array.Get(i).As<Napi::Number>().Int32Value());
    }
  }
  if (Error error = Send(static_cast<int>(fd), data, size, fds, kSendTimeoutMs)) return Throw(env, error);
  return env.Undefined();
}

// recv and send on a TCP socket whose libuv handle rests: the number of bytes, or the negative errno. Nothing is thrown
// and nothing allocated: this is the way of a fault.
Napi::Value RecvSocket(const Napi::CallbackInfo& info) {
  int64_t fd;
  uint8_t* data;
  size_t size;
  if (!GetFd(info, &fd) || !GetBytes(info, 1, &data, &size)) return info.Env().Undefined();
  ssize_t n;
  do {
    n = recv(static_cast<int>(fd), data, size, MSG_DONTWAIT);
  } while (n < 0 && errno == EINTR);
  return Napi::Number::New(info.Env(), n < 0 ? -errno : static_cast<double>(n));
}

Napi::Value SendSocket(const Napi::CallbackInfo& info) {
  int64_t fd, offset, length;
  uint8_t* data;
  size_t size;
  if (!GetFd(info, &fd) || !GetBytes(info, 1, &data, &size) ||
      !GetInt(info, 2, 0, static_cast<int64_t>(size), &offset) ||
      !GetInt(info, 3, 0, static_cast<int64_t>(size) - offset, &length))
    return info.Env().Undefined();
  ssize_t n;
  do {
    n = send(static_cast<int>(fd), data + offset, static_cast<size_t>(length), MSG_DONTWAIT | MSG_NOSIGNAL);
  } while (n < 0 && errno == EINTR);
  return Napi::Number::New(info.Env(), n < 0 ? -errno : static_cast<double>(n));
}

// Bytes of a TCP socket that the other end has not acknowledged, sent or not; the negative errno where it is none.
Napi::Value UnacknowledgedBytes(const Napi::CallbackInfo& info) {
  int64_t fd;
  if (!GetFd(info, &fd)) return info.Env().Undefined();
  int bytes = 0;
  return Napi::Number::New(info.Env(), ioctl(static_cast<int>(fd), SIOCOUTQ, &bytes) == 0 ? bytes : -errno);
}

// Bytes that have crossed the network for a TCP socket, both ways and with what was sent again, each packet with
// `header` bytes of headers: what came, what left that is acknowledged, and acknowledgements. -1 where the kernel does
// not tell.
Napi::Value CarriedBytes(const Napi::CallbackInfo& info) {
  int64_t fd, header;
  if (!GetFd(info, &fd) || !GetInt(info, 1, 0, 1 << 16, &header)) return info.Env().Undefined();
  TcpInfo tcp = {};
  socklen_t length = sizeof tcp;
  if (getsockopt(static_cast<int>(fd), IPPROTO_TCP, TCP_INFO, &tcp, &length) != 0 || length < sizeof tcp)
    return Napi::Number::New(info.Env(), -1);
  // packets on their way, data among them, count once they are acknowledged
  double packets = static_cast<double>(tcp.segs_in) + tcp.segs_out - tcp.old.tcpi_unacked;
  double bytes = static_cast<double>(tcp.bytes_received) + static_cast<double>(tcp.bytes_acked);
  return Napi::Number::New(info.Env(), bytes + packets * static_cast<double>(header));
}

Napi::Value DuplicateFd(const Napi::CallbackInfo& info) {
  int64_t fd;
  if (!GetFd(info, &fd)) return info.Env().Undefined();
  int copy = fcntl(static_cast<int>(fd), F_DUPFD_CLOEXEC, 0);
  return copy >= 0 ? Napi::Number::New(info.Env(), copy)
                   : Throw(info.Env(), SyscallError("fcntl(F_DUPFD_CLOEXEC)", errno));
}

Napi::Value Close(const Napi::CallbackInfo& info) {
  int64_t fd;
  if (!GetFd(info, &fd)) return info.Env().Undefined();
  if (close(static_cast<int>(fd)) != 0 && errno != EINTR) return Throw(info.Env(), SyscallError("close", errno));
  return info.Env().Undefined();
}

}  // namespace

void InitSockets(Napi::Env env, Napi::Object exports) {
  exports.Set("listenUnix", Napi::Function::New(env, Listen));
  exports.Set("connectUnix", Napi::Function::New(env, Connect));
  exports.Set("accept", Napi::Function::New(env, Accept));
  exports.Set("peerPid", Napi::Function::New(env, PeerPidOf));
  exports.Set("receive", Napi::Function::New(env, ReceiveMessage));
  exports.Set("send", Napi::Function::New(env, SendMessage));
  exports.Set("recvSocket", Napi::Function::New(env, RecvSocket));
  exports.Set("sendSocket", Napi::Function::New(env, SendSocket));
  exports.Set("unacknowledged", Napi::Function::New(env, UnacknowledgedBytes));
  exports.Set("carried", Napi::Function::New(env, CarriedBytes));
  exports.Set("duplicate", Napi::Function::New(env, DuplicateFd));
  exports.Set("close", Napi::Function::New(env, Close));
}

}  // namespace pagetide
