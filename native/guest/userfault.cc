#include "guest/userfault.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace guest {

namespace {

// Younger than the kernel headers that this builds with.
constexpr unsigned long kDeviceNew = 0xAA00;  // USERFAULTFD_IOC_NEW
constexpr int kUserModeOnly = 1;              // UFFD_USER_MODE_ONLY

int Create(bool* user_mode_only, std::string* error) {
  *user_mode_only = false;
  constexpr int kFlags = O_CLOEXEC | O_NONBLOCK;
  int fd = static_cast<int>(syscall(SYS_userfaultfd, kFlags));
  if (fd >= 0) return fd;
  std::string why = SystemError("userfaultfd");
  const int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  if (device >= 0) {
    fd = ioctl(device, kDeviceNew, kFlags);
    if (fd < 0) why += SystemError(", /dev/userfaultfd");
    close(device);
    if (fd >= 0) return fd;
  } else {
    why += SystemError(", /dev/userfaultfd");
  }
  *user_mode_only = true;
  fd = static_cast<int>(syscall(SYS_userfaultfd, kFlags | kUserModeOnly));
  if (fd < 0) *error = why + SystemError(", user mode only");
  return fd;
}

std::string RegionsAsJson(const Memory& memory) {
  std::string json = "[";
  for (const Region& region : memory.regions()) {
    if (json.size() > 1) json += ",";
    const std::string page = std::to_string(memory.page_size());
    json += "{\"base_host_virt_addr\":" + std::to_string(reinterpret_cast<uint64_t>(region.address)) +
            ",\"size\":" + std::to_string(region.size) + ",\"offset\":" + std::to_string(region.offset) +
            ",\"page_size\":" + page + ",\"page_size_kib\":" + page + "}";
  }
  return json + "]";
}

}  // namespace

bool CreateUserfault(const Memory& memory, bool registered, Userfault* userfault, std::string* error) {
  userfault->fd = Create(&userfault->user_mode_only, error);
  if (userfault->fd < 0) return false;
  struct uffdio_api api = {};
  api.api = UFFD_API;
  api.features = memory.is_private() ? UFFD_FEATURE_EVENT_REMOVE : 0;
  if (ioctl(userfault->fd, UFFDIO_API, &api) != 0) {
    *error = SystemError("UFFDIO_API");
    return false;
  }
  if (!registered) return true;
  for (const Region& region : memory.regions()) {
    struct uffdio_register range = {};
    range.range.start = reinterpret_cast<uint64_t>(region.address);
    range.range.len = region.size;
    range.mode = UFFDIO_REGISTER_MODE_MISSING;
    if (ioctl(userfault->fd, UFFDIO_REGISTER, &range) != 0) {
      *error = SystemError("UFFDIO_REGISTER");
      return false;
    }
  }
  return true;
}

bool HandOver(const Memory& memory, const std::string& socket_path, Userfault* userfault, std::string* error) {
  struct sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (socket_path.size() >= sizeof address.sun_path) {
    *error = "hand-over socket path is too long (107 bytes at most)";
    return false;
  }
  memcpy(address.sun_path, socket_path.c_str(), socket_path.size());
  userfault->connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (userfault->connection < 0 ||
      connect(userfault->connection, reinterpret_cast<struct sockaddr*>(&address), sizeof address) != 0) {
    *error = SystemError("connecting to hand-over socket " + socket_path);
    return false;
  }

  std::string json = RegionsAsJson(memory);
  struct iovec data = {json.data(), json.size()};
  alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  struct msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  struct cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(header), &userfault->fd, sizeof(int));
  // At most 64 regions, a few KiB: it always fits the socket's buffer, so it goes as one message.
  ssize_t sent;
  do {
    sent = sendmsg(userfault->connection, &message, MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  if (sent != static_cast<ssize_t>(json.size())) {
    *error = sent < 0 ? SystemError("sending the userfaultfd") : "the hand-over message was cut";
    return false;
  }
  return true;
}

}  // namespace guest
