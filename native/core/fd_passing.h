// Unix sockets with descriptors attached (SCM_RIGHTS): how a userfaultfd changes hands.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/error.h"

namespace pagetide {

inline constexpr int kMaxPassedFds = 16;

// A listening stream socket, non-blocking, mode 0600. A socket file that nobody listens on any more is replaced; one
// that somebody listens on gives InUse. The file appears when it can be connected to. The path must fit sockaddr_un
// (107 bytes).
Result<int> ListenUnix(const std::string& path);
// Fails with EAGAIN where a listener has accepted nothing for 5 s.
Result<int> ConnectUnix(const std::string& path);
// -1 where none waits.
Result<int> AcceptUnix(int fd);
Result<int> PeerPid(int fd);

struct Received {
  int64_t bytes = 0;  // 0: end of file, -1: would block
  std::vector<int> fds;
};
// One recvmsg. Descriptors beyond kMaxPassedFds are closed by the kernel.
Result<Received> Receive(int fd, uint8_t* into, size_t size);
// Sends all of it, the descriptors with the first byte. Blocks in poll where the socket is full; `timeout_ms` for the
// whole, after which it fails with ETIMEDOUT, part of the data being sent.
Error Send(int fd, const uint8_t* data, size_t size, const std::vector<int>& fds, int timeout_ms);

}  // namespace pagetide
