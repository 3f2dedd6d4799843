// Unix sockets with descriptors attached.
#include "core/fd_passing.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "test/guest.h"

namespace pagetide::test {

namespace {

struct Pair {
  int a = -1, b = -1;
  Pair() {
    int fds[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) == 0);
    a = fds[0];
    b = fds[1];
  }
  ~Pair() {
    if (a >= 0) close(a);
    if (b >= 0) close(b);
  }
};

bool SameFile(int a, int b) {
  struct stat x {
  }, y{};
  return fstat(a, &x) == 0 && fstat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

int OpenFile(const std::string& name) {
  int fd = open((Folder() + "/" + name).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  CHECK(fd >= 0);
  return fd;
}

void CloseAll(const std::vector<int>& fds) {
  for (int fd : fds) close(fd);
}

}  // namespace

TEST(socket_listens_for_its_owner_alone) {
  std::string path = Folder() + "/socket";
  mode_t mask = umask(0);
  auto listener = ListenUnix(path);
  umask(mask);
  CHECK_OK(listener.error);
  struct stat info {};
  CHECK(lstat(path.c_str(), &info) == 0);
  CHECK(S_ISSOCK(info.st_mode));
  CHECK_EQ(info.st_mode & 0777, 0600u);
  CHECK_EQ(AcceptUnix(listener.value).value, -1);
  auto client = ConnectUnix(path);
  CHECK_OK(client.error);
  auto server = AcceptUnix(listener.value);
  CHECK_OK(server.error);
  CHECK(server.value >= 0);
  CHECK_EQ(PeerPid(server.value).value, getpid());
  CHECK_EQ(PeerPid(client.value).value, getpid());
  CloseAll({client.value, server.value});
  // somebody listens: the second is told so, and the first is undisturbed
  auto second = ListenUnix(path);
  CHECK_EQ(second.error.kind, ErrorKind::InUse);
  CHECK_CONTAINS(second.error.Message(), path);
  client = ConnectUnix(path);
  CHECK_OK(client.error);
  CloseAll({client.value, listener.value});
  // nobody listens any more: replaced
  CHECK_EQ(ConnectUnix(path).error.err, ECONNREFUSED);
  listener = ListenUnix(path);
  CHECK_OK(listener.error);
  client = ConnectUnix(path);
  CHECK_OK(client.error);
  CloseAll({client.value, listener.value});
  unlink(path.c_str());
  // nothing else was left in the folder
  CHECK(rmdir(Folder().c_str()) == 0);
}

TEST(socket_with_a_full_queue_is_in_use) {
  std::string path = Folder() + "/socket";
  auto listener = ListenUnix(path);
  CHECK_OK(listener.error);
  std::vector<int> clients;
  for (;;) {
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    strcpy(address.sun_path, path.c_str());
    clients.push_back(fd);
    if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) break;
  }
  CHECK_EQ(errno, EAGAIN);
  auto second = ListenUnix(path);
  CHECK_EQ(second.error.kind, ErrorKind::InUse);
  CloseAll(clients);
  close(listener.value);
}

// A socket is there only when it can be connected to.
TEST(socket_appears_when_it_listens) {
  std::string path = Folder() + "/socket";
  for (int i = 0; i < 200; i++) {
    std::atomic<bool> go{false};
    Vcpu client([&] {
      go = true;
      for (;;) {
        auto fd = ConnectUnix(path);
        if (!fd.ok() && fd.error.err == ENOENT) continue;
        CHECK_OK(fd.error);
        close(fd.value);
        return;
      }
    });
    while (!go) std::this_thread::yield();
    auto listener = ListenUnix(path);
    CHECK_OK(listener.error);
    client.Join();
    unlink(path.c_str());
    close(listener.value);
  }
}

TEST(socket_refuses_paths_it_cannot_use) {
  std::string file = Folder() + "/file";
  close(OpenFile("file"));
  auto listener = ListenUnix(file);
  CHECK_EQ(listener.error.kind, ErrorKind::InUse);
  CHECK_CONTAINS(listener.error.Message(), "no socket");
  CHECK(access(file.c_str(), F_OK) == 0);
  std::string longest = Folder() + "/" + std::string(107 - Folder().size() - 1, 'x');
  CHECK_EQ(ListenUnix(longest + "x").error.kind, ErrorKind::Argument);
  CHECK_EQ(ConnectUnix(longest + "x").error.kind, ErrorKind::Argument);
  CHECK_EQ(ListenUnix("").error.kind, ErrorKind::Argument);
  listener = ListenUnix(longest);
  CHECK_OK(listener.error);
  auto client = ConnectUnix(longest);
  CHECK_OK(client.error);
  CloseAll({client.value, listener.value});
  CHECK_EQ(ListenUnix(Folder() + "/no/such").error.err, ENOENT);
  CHECK_EQ(ConnectUnix(Folder() + "/none").error.err, ENOENT);
}

TEST(socket_passes_descriptors_with_the_first_byte) {
  Pair pair;
  uint8_t buffer[64];
  CHECK_EQ(Receive(pair.b, buffer, sizeof buffer).value.bytes, -1);  // would block
  std::vector<int> fds = {OpenFile("one"), OpenFile("two"), eventfd(0, EFD_CLOEXEC)};
  CHECK_OK(Send(pair.a, reinterpret_cast<const uint8_t*>("hello"), 5, fds, 1000));
  auto got = Receive(pair.b, buffer, sizeof buffer);
  CHECK_OK(got.error);
  CHECK_EQ(got.value.bytes, 5);
  CHECK_EQ(got.value.fds.size(), size_t{3});
  CHECK(memcmp(buffer, "hello", 5) == 0);
  for (int i = 0; i < 2; i++) CHECK(SameFile(got.value.fds[i], fds[i]) && got.value.fds[i] != fds[i]);
  for (int fd : got.value.fds) CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
  CloseAll(got.value.fds);
  CloseAll(fds);
  // none
  CHECK_OK(Send(pair.a, buffer, 1, {}, 1000));
  got = Receive(pair.b, buffer, sizeof buffer);
  CHECK_EQ(got.value.bytes, 1);
  CHECK(got.value.fds.empty());
  // end of file
  close(pair.a);
  pair.a = -1;
  got = Receive(pair.b, buffer, sizeof buffer);
  CHECK_OK(got.error);
  CHECK_EQ(got.value.bytes, 0);
}

TEST(socket_bounds_descriptors) {
  Pair pair;
  uint8_t byte = 7, buffer[8];
  std::vector<int> fds;
  for (int i = 0; i <= kMaxPassedFds; i++) fds.push_back(OpenFile("f" + std::to_string(i)));
  CHECK_EQ(Send(pair.a, &byte, 1, fds, 1000).kind, ErrorKind::Argument);
  CHECK_EQ(Send(pair.a, &byte, 0, {fds[0]}, 1000).kind, ErrorKind::Argument);
  CHECK_EQ(Receive(pair.b, buffer, 0).error.kind, ErrorKind::Argument);  // would look like an end of file
  CHECK_EQ(Receive(pair.b, buffer, 8).value.bytes, -1);                  // nothing was sent
  // a peer that sends more than we take: what is beyond is closed, nothing leaks
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * 17)] = {};
  iovec piece{&byte, 1};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* part = CMSG_FIRSTHDR(&message);
  part->cmsg_level = SOL_SOCKET;
  part->cmsg_type = SCM_RIGHTS;
  part->cmsg_len = CMSG_LEN(sizeof(int) * 17);
  memcpy(CMSG_DATA(part), fds.data(), sizeof(int) * 17);
  CHECK(sendmsg(pair.a, &message, 0) == 1);
  auto got = Receive(pair.b, buffer, sizeof buffer);
  CHECK_OK(got.error);
  CHECK_EQ(got.value.bytes, 1);
  CHECK_EQ(got.value.fds.size(), size_t{kMaxPassedFds});
  CloseAll(got.value.fds);
  fds.resize(kMaxPassedFds + 1);
  CloseAll(fds);  // the runner counts descriptors afterwards
}

TEST(socket_sends_more_than_it_holds) {
  Pair pair;
  std::vector<uint8_t> data(4 << 20);
  for (size_t i = 0; i < data.size(); i++) data[i] = static_cast<uint8_t>(i * 7 + i / 251);
  int file = OpenFile("file");
  std::vector<uint8_t> arrived;
  std::vector<int> fds;
  Vcpu reader([&] {
    std::vector<uint8_t> buffer(3000);
    for (;;) {
      pollfd fd{pair.b, POLLIN, 0};
      poll(&fd, 1, -1);
      auto got = Receive(pair.b, buffer.data(), buffer.size());
      CHECK_OK(got.error);
      if (got.value.bytes == 0) return;
      if (got.value.bytes < 0) continue;
      arrived.insert(arrived.end(), buffer.begin(), buffer.begin() + got.value.bytes);
      fds.insert(fds.end(), got.value.fds.begin(), got.value.fds.end());
    }
  });
  CHECK_OK(Send(pair.a, data.data(), data.size(), {file}, 15000));
  shutdown(pair.a, SHUT_WR);
  reader.Join();
  CHECK(arrived == data);
  CHECK_EQ(fds.size(), size_t{1});
  CloseAll(fds);
  close(file);
}

TEST(socket_send_ends_in_time) {
  Pair pair;
  std::vector<uint8_t> data(4 << 20);
  uint64_t start = NowNs();
  Error error = Send(pair.a, data.data(), data.size(), {}, 100);
  CHECK_EQ(error.err, ETIMEDOUT);
  CHECK(NowNs() - start >= 99'000'000);
  // also when the reader takes a little now and then: the time is for the whole
  std::atomic<bool> stop{false};
  Vcpu reader([&] {
    uint8_t buffer[16384];
    while (!stop) {
      pollfd fd{pair.b, POLLIN, 0};
      if (poll(&fd, 1, 20) == 1 && recv(pair.b, buffer, sizeof buffer, MSG_DONTWAIT) < 0) CHECK_EQ(errno, EAGAIN);
      poll(nullptr, 0, 20);
    }
  });
  start = NowNs();
  error = Send(pair.a, data.data(), data.size(), {}, 300);
  CHECK_EQ(error.err, ETIMEDOUT);
  CHECK(NowNs() - start < 3'000'000'000);
  stop = true;
}

TEST(socket_with_a_broken_peer_is_an_error) {
  Pair pair;
  std::vector<uint8_t> data(1 << 20);
  close(pair.b);
  pair.b = -1;
  CHECK_EQ(Send(pair.a, data.data(), 1, {}, 1000).err, EPIPE);  // and no SIGPIPE
  Pair other;
  Vcpu reader([&] {
    pollfd fd{other.b, POLLIN, 0};
    poll(&fd, 1, -1);
    close(other.b);
  });
  Error error = Send(other.a, data.data(), data.size(), {}, 10000);
  CHECK(error.err == EPIPE || error.err == ECONNRESET);
  reader.Join();
  other.b = -1;
}

TEST(socket_names_the_peer_across_processes) {
  std::string path = Folder() + "/socket";
  auto listener = ListenUnix(path);
  CHECK_OK(listener.error);
  int pid = fork();
  if (pid == 0) {
    auto client = ConnectUnix(path);
    char byte;
    _exit(client.ok() && read(client.value, &byte, 1) == 0 ? 0 : 1);
  }
  pollfd fd{listener.value, POLLIN, 0};
  CHECK(poll(&fd, 1, 5000) == 1);
  auto server = AcceptUnix(listener.value);
  CHECK_EQ(PeerPid(server.value).value, pid);
  CHECK(!PeerPid(0x7fffff).ok());
  CloseAll({server.value, listener.value});
  int status;
  CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

}  // namespace pagetide::test
