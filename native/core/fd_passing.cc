#include "core/fd_passing.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

namespace pagetide {

namespace {

constexpr time_t kConnectSeconds = 5;

int64_t NowMs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<int64_t>(now.tv_sec) * 1000 + now.tv_nsec / 1000000;
}

Error FillAddress(const std::string& path, sockaddr_un* address) {
  *address = {};
  address->sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address->sun_path) {
    return ArgumentError("a Unix socket path has 1 to 107 bytes: " + path);
  }
  memcpy(address->sun_path, path.c_str(), path.size());
  return {};
}

}  // namespace

Result<int> ConnectUnix(const std::string& path) {
  sockaddr_un address;
  if (Error error = FillAddress(path, &address)) return error;
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return SyscallError("socket", errno);
  // A listener that accepts nothing must not hold us for ever; afterwards sending is Send's own business.
  timeval limit{kConnectSeconds, 0}, none{0, 0};
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  int result;
  do {
    result = connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address);
  } while (result != 0 && errno == EINTR);
  if (result != 0) {
    int err = errno;
    close(fd);
    return SyscallError("connect", err, 0, 0, err == EAGAIN ? path + " accepts no connections" : path);
  }
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &none, sizeof none);
  return fd;
}

Result<int> ListenUnix(const std::string& path) {
  sockaddr_un address;
  if (Error error = FillAddress(path, &address)) return error;
  struct stat info {};
  if (lstat(path.c_str(), &info) == 0 && !S_ISSOCK(info.st_mode)) {
    return MakeError(ErrorKind::InUse, path + " exists and is no socket");
  }
  // Bound under another name in the same folder, and given its own when it listens: a socket that is there can be
  // connected to. Through the folder's descriptor, so that the other name always fits sockaddr_un.
  size_t slash = path.rfind('/');
  std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  int dir = open(folder.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (dir < 0) return SyscallError("open", errno, 0, 0, folder);
  static std::atomic<uint32_t> serial{0};
  std::string hidden = "/proc/self/fd/" + std::to_string(dir) + "/.pagetide-" + std::to_string(getpid()) + "-" +
                       std::to_string(serial.fetch_add(1));
  sockaddr_un temporary;
  int fd = -1;
  auto fail = [&](Error error) -> Result<int> {
    if (fd >= 0) close(fd);
    unlink(hidden.c_str());
    close(dir);
    return error;
  };
  if (Error error = FillAddress(hidden, &temporary)) return fail(error);
  fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return fail(SyscallError("socket", errno));
  // The mode has to be right from the first moment: bind honours it where it is set on the socket before.
  if (fchmod(fd, 0600) != 0) return fail(SyscallError("fchmod", errno, 0, 0, path));
  unlink(hidden.c_str());  // of a process that had our number and died here
  if (bind(fd, reinterpret_cast<sockaddr*>(&temporary), sizeof temporary) != 0)
    return fail(SyscallError("bind", errno, 0, 0, path));
  if (listen(fd, 64) != 0) return fail(SyscallError("listen", errno, 0, 0, path));
  // link never replaces; a stale socket goes first
  if (link(hidden.c_str(), path.c_str()) != 0) {
    if (errno != EEXIST) return fail(SyscallError("link", errno, 0, 0, path));
    int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (probe < 0) return fail(SyscallError("socket", errno));
    int err = connect(probe, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 ? 0 : errno;
    close(probe);
    // EAGAIN: its queue is full
    if (err == 0 || err == EAGAIN) return fail(MakeError(ErrorKind::InUse, "somebody listens on " + path));
    if (err != ECONNREFUSED && err != ENOENT) return fail(SyscallError("connect", err, 0, 0, path));
    if (unlink(path.c_str()) != 0 && errno != ENOENT) return fail(SyscallError("unlink", errno, 0, 0, path));
    if (link(hidden.c_str(), path.c_str()) != 0) {
      if (errno == EEXIST) return fail(MakeError(ErrorKind::InUse, "somebody else began to listen on " + path));
      return fail(SyscallError("link", errno, 0, 0, path));
    }
  }
  unlink(hidden.c_str());
  close(dir);
  return fd;
}

Result<int> AcceptUnix(int fd) {
  int connection = accept4(fd, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (connection >= 0) return connection;
  if (errno == EAGAIN || errno == ECONNABORTED || errno == EINTR) return -1;
  return SyscallError("accept4", errno);
}

Result<int> PeerPid(int fd) {
  ucred credentials{};
  socklen_t size = sizeof credentials;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) {
    return SyscallError("getsockopt(SO_PEERCRED)", errno);
  }
  return static_cast<int>(credentials.pid);
}

Result<Received> Receive(int fd, uint8_t* into, size_t size) {
  if (size == 0) return ArgumentError("no room to receive into");  // would look like the end of file
  iovec piece{into, size};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxPassedFds)];
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t n;
  do {
    n = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  } while (n < 0 && errno == EINTR);
  Received received;
  if (n < 0) {
    if (errno != EAGAIN) return SyscallError("recvmsg", errno);
    received.bytes = -1;
    return received;
  }
  received.bytes = n;
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr; part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; i++) {
      int passed;
      memcpy(&passed, CMSG_DATA(part) + i * sizeof(int), sizeof passed);
      received.fds.push_back(passed);
    }
  }
  return received;
}

Error Send(int fd, const uint8_t* data, size_t size, const std::vector<int>& fds, int timeout_ms) {
  if (fds.size() > static_cast<size_t>(kMaxPassedFds)) return ArgumentError("too many descriptors for one message");
  if (size == 0) return ArgumentError("descriptors travel with at least one byte");
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxPassedFds)] = {};
  size_t sent = 0;
  int64_t deadline = NowMs() + timeout_ms;
  while (sent < size) {
    iovec piece{const_cast<uint8_t*>(data) + sent, size - sent};
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    if (sent == 0 && !fds.empty()) {
      message.msg_control = control;
      message.msg_controllen = CMSG_SPACE(sizeof(int) * fds.size());
      cmsghdr* part = CMSG_FIRSTHDR(&message);
      part->cmsg_level = SOL_SOCKET;
      part->cmsg_type = SCM_RIGHTS;
      part->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
      memcpy(CMSG_DATA(part), fds.data(), sizeof(int) * fds.size());
    }
    ssize_t n = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) {
      sent += static_cast<size_t>(n);
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return SyscallError("sendmsg", errno);
    pollfd wait{fd, POLLOUT, 0};
    int64_t left = deadline - NowMs();
    if (left <= 0) return SyscallError("sendmsg", ETIMEDOUT);
    int ready = poll(&wait, 1, static_cast<int>(left));
    if (ready < 0 && errno != EINTR) return SyscallError("poll", errno);
  }
  return {};
}

}  // namespace pagetide
