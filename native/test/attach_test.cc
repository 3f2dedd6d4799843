// Attaching to processes that run: parked, computing, under a storm of signals; and what happens when they end.
#include "core/attach.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <fstream>

#include "core/memory.h"
#include "core/uffd_abi.h"
#include "test/guest.h"
#include "test/helper.h"

namespace pagetide::test {

namespace {

Attached Attach(const Helper& helper, uint64_t features = kFeatures) {
  auto attached = AttachUserfault(helper.pid(), features, -1);
  if (!attached.ok() && attached.error.kind == ErrorKind::Permission) Skip(attached.error.Message());
  if (!attached.ok() && attached.error.kind == ErrorKind::Unsupported) Skip(attached.error.Message());
  CHECK_OK(attached.error);
  CHECK(attached.value.fd >= 0 && attached.value.remote_fd >= 0);
  return attached.value;
}

std::shared_ptr<FaultSession> ServeHelper(const Helper& helper, int uffd) {
  FaultSession::Options options;
  options.uffd = uffd;
  options.regions = {{helper.address(), kHelperFrames * 4096ull, 0}};
  auto session = FaultSession::Create(options);
  CHECK_OK(session.error);
  CHECK_OK(session.value->Register());
  return session.value;
}

std::string Words(uint64_t frame) {
  char text[64];
  snprintf(text, sizeof text, "%016" PRIx64 " %016" PRIx64, Word(frame, 0), Word(frame, 511));
  return text;
}

// The helper touches `frame`; the fault is served from here.
void ServeTouch(Helper& helper, FaultSession& session, uint64_t frame) {
  helper.Say("touch " + std::to_string(frame));
  ExpectFault(session, frame);
  CHECK_EQ(session.Install(frame, 1, Pages(frame, 1).get()).outcome, Outcome::Done);
  CHECK_EQ(helper.Hear(), Words(frame));
}

bool IsTraced(int pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/status");
  std::string line;
  while (std::getline(file, line))
    if (line.rfind("TracerPid:", 0) == 0) return line.find_first_of("123456789") != std::string::npos;
  return false;
}

// Attaches to a helper parked in `number`, which must answer afterwards as if nothing had been.
void AttachParked(const char* mode, long number) {
  Helper helper(mode);
  helper.WaitParkedIn(number);
  Attached attached = Attach(helper);
  CHECK(!IsTraced(helper.pid()));
  CHECK(!helper.Heard());  // no EINTR
  helper.WaitParkedIn(number);
  helper.Say("ping");
  CHECK_EQ(helper.Hear(), std::string("pong"));
  auto session = ServeHelper(helper, attached.fd);
  ServeTouch(helper, *session, 9);
  helper.WaitParkedIn(number);
  CHECK_OK(session->Unregister(true));
}

// Parked for 400 ms in a call that restarts with what is left of its time.
void AttachSleeping(const char* mode, long number, int result) {
  Helper helper(mode);
  helper.WaitParkedIn(number);
  std::vector<Attached> attached;
  for (int i = 0; i < 5; i++) attached.push_back(Attach(helper, 0));
  int err = -1;
  unsigned ms = 0;
  std::string line = helper.Hear();
  CHECK(sscanf(line.c_str(), "slept %d %u", &err, &ms) == 2);
  CHECK_EQ(err, result);
  CHECK(ms >= 399 && ms < 5000);
  for (const Attached& one : attached) close(one.fd);
  helper.Say("ping");
  CHECK_EQ(helper.Hear(), std::string("pong"));
}

}  // namespace

TEST(attach_to_one_parked_in_ppoll) {
  AttachParked("ppoll", SYS_ppoll);
}
TEST(attach_to_one_parked_in_read) {
  AttachParked("read", SYS_read);
}
TEST(attach_to_one_in_nanosleep) {
  AttachSleeping("nanosleep", SYS_nanosleep, 0);
}
TEST(attach_to_one_in_futex) {
  AttachSleeping("futex", SYS_futex, ETIMEDOUT);
}

TEST(attach_to_one_that_computes) {
  Helper helper("busy");
  for (int i = 0; i < 20; i++) close(Attach(helper, 0).fd);
  CHECK_EQ(FindUserfaults(helper.pid()).value.size(), size_t{20});
  helper.Say("stop");
  CHECK_EQ(helper.Hear(), std::string("right"));
}

TEST_SECONDS(attach_amid_signals_and_threads, 60) {
  Helper helper("signals");
  constexpr int kSignals = 1500;
  std::atomic<bool> done{false};
  std::atomic<int> attaches{0};
  {
    Vcpu sender([&] {
      for (int i = 0; i < kSignals; i++) {
        sigval value{};
        value.sival_int = i;
        while (sigqueue(helper.pid(), SIGRTMIN, value) != 0) CHECK_EQ(errno, EAGAIN);
        if (i % 8 == 0) std::this_thread::yield();
        while (i > 20 * (attaches + 1) && !done) std::this_thread::yield();  // spread over the attaches
      }
    });
    for (int i = 0; i < 150; i++) {
      Attached attached = Attach(helper, 0);
      CHECK_OK(CloseRemote(helper.pid(), attached.remote_fd));
      close(attached.fd);
      attaches++;
    }
    done = true;
  }
  helper.Say("queued " + std::to_string(kSignals));
  CHECK_EQ(helper.Hear(), std::string("all"));
  CHECK_EQ(FindUserfaults(helper.pid()).value.size(), size_t{0});
}

// A process that its user has stopped is attached to, and stays stopped.
TEST(attach_to_a_stopped_one) {
  Helper helper("ppoll");
  helper.WaitParkedIn(SYS_ppoll);
  auto state = [&] {
    std::ifstream file("/proc/" + std::to_string(helper.pid()) + "/stat");
    std::string text((std::istreambuf_iterator<char>(file)), {});
    return text[text.rfind(')') + 2];
  };
  kill(helper.pid(), SIGSTOP);
  while (state() != 'T') std::this_thread::yield();
  Attached attached = Attach(helper);
  while (state() != 'T') std::this_thread::yield();
  auto session = ServeHelper(helper, attached.fd);
  CHECK(!helper.Heard());
  kill(helper.pid(), SIGCONT);
  ServeTouch(helper, *session, 1);
  CHECK_OK(session->Unregister(true));
}

TEST(attach_take_again_find_and_close) {
  Helper helper("ppoll");
  CHECK(FindUserfaults(helper.pid()).value.empty());
  Attached attached = Attach(helper);
  auto found = FindUserfaults(helper.pid());
  CHECK_OK(found.error);
  CHECK_EQ(found.value.size(), size_t{1});
  CHECK_EQ(found.value[0], attached.remote_fd);
  {
    auto session = ServeHelper(helper, attached.fd);
    ServeTouch(helper, *session, 0);
    // a fault that the next session will find: this one's agent dies with it unread
    helper.Say("touch 5");
    uint32_t frame;
    Waited waited;
    while (waited.faults == 0) CHECK_OK(session->Wait(&frame, 1, 1000, 0, -1, &waited));
  }
  auto again = TakeFd(helper.pid(), attached.remote_fd);
  CHECK_OK(again.error);
  FaultSession::Options options;
  options.uffd = again.value;
  options.regions = {{helper.address(), kHelperFrames * 4096ull, 0}};
  auto session = FaultSession::Create(options);
  CHECK_OK(session.error);
  auto present = PresentExtents(helper.pid(), helper.address(), kHelperFrames * 4096ull);
  CHECK_OK(present.error);
  CHECK_EQ(present.value.size(), size_t{1});
  uint32_t pairs[2] = {0, static_cast<uint32_t>(present.value[0].length / 4096)};
  session.value->Reset(0, 1, FrameState::Present);
  CHECK_EQ(session.value->Reconcile(pairs, 1), 0u);
  CHECK_OK(session.value->Wake(0, kHelperFrames));  // the fault that was read before is raised again
  ExpectFault(*session.value, 5);
  CHECK_EQ(session.value->Install(5, 1, Pages(5, 1).get()).installed, 1u);
  CHECK_EQ(helper.Hear(), Words(5));
  CHECK_OK(session.value->Unregister(true));
  CHECK_OK(CloseRemote(helper.pid(), attached.remote_fd));
  CHECK(FindUserfaults(helper.pid()).value.empty());
  Error error = CloseRemote(helper.pid(), attached.remote_fd);
  CHECK_EQ(error.err, EBADF);
  CHECK_CONTAINS(error.Message(), "close: EBADF");
  auto none = TakeFd(helper.pid(), attached.remote_fd);
  CHECK_EQ(none.error.err, EBADF);
  helper.Say("touch 6");
  CHECK_EQ(helper.Hear(), std::string("0000000000000000 0000000000000000"));
}

// A userfaultfd out of /dev/userfaultfd that was passed in (here: opened by the helper's own number does not exist).
TEST(attach_by_a_device_that_is_not_there) {
  Helper helper("ppoll");
  auto attached = AttachUserfault(helper.pid(), kFeatures, 77);
  CHECK(!attached.ok());
  if (attached.error.kind == ErrorKind::Permission || attached.error.kind == ErrorKind::Unsupported)
    Skip(attached.error.Message());
  CHECK_EQ(attached.error.err, EBADF);
  CHECK_CONTAINS(attached.error.Message(), "inside process");
  helper.Say("ping");
  CHECK_EQ(helper.Hear(), std::string("pong"));
}

TEST(attach_with_a_feature_that_is_missing_leaves_nothing) {
  Helper helper("ppoll");
  close(Attach(helper).fd);
  size_t before = FindUserfaults(helper.pid()).value.size();
  auto attached = AttachUserfault(helper.pid(), 1ull << 62, -1);
  CHECK_EQ(attached.error.err, EINVAL);
  CHECK_EQ(FindUserfaults(helper.pid()).value.size(), before);
}

TEST(attach_to_what_has_exited) {
  int child = fork();
  if (child == 0) _exit(0);
  siginfo_t info;
  CHECK(waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT) == 0);
  // not reaped yet: root or not, this is no question of rights
  auto zombie = AttachUserfault(child, kFeatures, -1);
  CHECK_EQ(zombie.error.err, ESRCH);
  CHECK_CONTAINS(zombie.error.Message(), "has exited");
  CHECK(waitpid(child, nullptr, 0) == child);
  for (const Error& error :
       {AttachUserfault(child, kFeatures, -1).error, TakeFd(child, 0).error, CloseRemote(child, 0),
        FindUserfaults(child).error, PidfdOpen(child).error, PresentExtents(child, 0x10000, 4096).error}) {
    CHECK_EQ(error.kind, ErrorKind::Syscall);
    CHECK_EQ(error.err, ESRCH);
    CHECK_CONTAINS(error.Message(), "process " + std::to_string(child));
  }
}

TEST(attach_without_the_right) {
  if (!IsRoot()) Skip("needs root, to have a process that is somebody else's");
  static int pid;
  Helper helper("ppoll");
  pid = helper.pid();
  AsNobody([] {
    auto attached = AttachUserfault(pid, kFeatures, -1);
    CHECK_EQ(attached.error.kind, ErrorKind::Permission);
    CHECK_CONTAINS(attached.error.Message(), "CAP_SYS_PTRACE");
    auto taken = TakeFd(pid, 0);
    CHECK_EQ(taken.error.kind, ErrorKind::Permission);
    CHECK_EQ(CloseRemote(pid, 0).kind, ErrorKind::Permission);
    CHECK_EQ(FindUserfaults(pid).error.kind, ErrorKind::Permission);
    CHECK_EQ(PresentExtents(pid, 0x10000, 4096).error.kind, ErrorKind::Permission);
  });
  helper.Say("ping");
  CHECK_EQ(helper.Hear(), std::string("pong"));
}

// A process that may be traced, but may not create a userfaultfd.
TEST(attach_to_one_that_may_not_create_it) {
  std::ifstream file("/proc/sys/vm/unprivileged_userfaultfd");
  int everybody = 1;
  if (!IsRoot() || !(file >> everybody) || everybody != 0) Skip("needs root and vm.unprivileged_userfaultfd=0");
  int ready[2];
  CHECK(pipe2(ready, O_CLOEXEC) == 0);
  int child = fork();
  if (child == 0) {
    if (setgid(65534) != 0 || setuid(65534) != 0) _exit(1);
    char byte = 1;
    if (write(ready[1], &byte, 1) != 1) _exit(1);
    for (;;) pause();
  }
  char byte;
  CHECK(read(ready[0], &byte, 1) == 1);
  auto attached = AttachUserfault(child, kFeatures, -1);
  CHECK_EQ(attached.error.kind, ErrorKind::Permission);
  CHECK_CONTAINS(attached.error.Message(), "unprivileged_userfaultfd");
  kill(child, SIGKILL);
  CHECK(waitpid(child, nullptr, 0) == child);
  close(ready[0]);
  close(ready[1]);
}

TEST(attach_target_killed_is_gone) {
  Helper helper("ppoll");
  Attached attached = Attach(helper);
  auto session = ServeHelper(helper, attached.fd);
  helper.Say("touch 3");
  ExpectFault(*session, 3);
  CHECK_EQ(session->MarkZero(7, 1), 1u);
  helper.Kill();
  auto pages = Pages(0, 8);
  CHECK_EQ(session->Claim(3, 1, FrameState::Wanted), 1u);
  Installed result = session->Install(3, 5, pages.get());
  CHECK_EQ(result.outcome, Outcome::Gone);
  CHECK_EQ(result.next, 3u);
  CHECK_EQ(session->table()->Get(3), FrameState::Wanted);
  CHECK_EQ(session->InstallZero(7, 1).outcome, Outcome::Gone);
  CHECK_EQ(session->table()->Get(7), FrameState::Zero);
  CHECK_OK(session->Wake(0, 8));
  // The userfaultfd itself is quiet: only installs and the pidfd tell.
  CHECK_EQ(Drain(*session).flags, 0);
  CHECK(!session->Unregister(false).ok());
  CHECK_OK(session->Unregister(true));
  Error error = session->Register();
  CHECK_EQ(error.err, ESRCH);
}

// The guest's process sits in a fault while it is attached to again: a debugger may stop it there, too.
TEST(attach_while_it_waits_for_a_page) {
  Helper helper("ppoll");
  Attached attached = Attach(helper);
  auto session = ServeHelper(helper, attached.fd);
  helper.Say("touch 11");
  ExpectFault(*session, 11);
  Attached second = Attach(helper, 0);
  CHECK_OK(CloseRemote(helper.pid(), second.remote_fd));
  close(second.fd);
  CHECK(!helper.Heard());
  CHECK_EQ(session->Install(11, 1, Pages(11, 1).get()).installed, 1u);
  CHECK_EQ(helper.Hear(), Words(11));
  CHECK_OK(session->Unregister(true));
}

// Removes of another process, and its memory as seen from outside.
TEST(attach_remove_in_the_target) {
  Helper helper("ppoll");
  Attached attached = Attach(helper);
  auto session = ServeHelper(helper, attached.fd);
  CHECK_EQ(session->Install(0, 2, Pages(0, 2).get()).installed, 2u);
  auto present = PresentExtents(helper.pid(), helper.address(), kHelperFrames * 4096ull);
  CHECK_EQ(present.value.size(), size_t{1});
  CHECK_EQ(present.value[0].offset, 0u);
  CHECK_EQ(present.value[0].length, 8192u);
  helper.Say("drop");
  CHECK_EQ(ExpectRemove(*session), kHelperFrames);
  CHECK_EQ(helper.Hear(), std::string("dropped"));
  CHECK_EQ(session->Counts().removed, uint64_t{kHelperFrames});
  CHECK(PresentExtents(helper.pid(), helper.address(), kHelperFrames * 4096ull).value.empty());
  CHECK_OK(session->Unregister(false));
}

}  // namespace pagetide::test
