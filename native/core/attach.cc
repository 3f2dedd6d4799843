#include "core/attach.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

#include "core/uffd_abi.h"
#include "core/userfault.h"

namespace pagetide {

namespace {

constexpr uint64_t kStopTimeoutNanos = 2'000'000'000;

uint64_t NowNanos() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000ull + static_cast<uint64_t>(now.tv_nsec);
}

#if defined(__x86_64__)

Error Gone(int pid, const char* call) {
  return SyscallError(call, ESRCH, 0, 0, "process " + std::to_string(pid) + " has exited");
}

// Exited, though its parent has not yet looked: such a process still has its number, and answers EPERM.
bool IsZombie(int pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text((std::istreambuf_iterator<char>(file)), {});
  size_t end = text.rfind(')');
  return end != std::string::npos && end + 2 < text.size() && (text[end + 2] == 'Z' || text[end + 2] == 'X');
}

// One stopped thread of the target. The destructor restores and detaches.
//
// Signals: the thread is brought to a stop that is none of a signal (what was about to be delivered goes first), and
// while it runs our call, its signals are blocked, so that they stay where they are, with their origin, in order. Those
// that the kernel raises for the instruction itself can't be blocked without losing their handlers: if somebody sends
// such a one just then, it is sent on at the end.
class StoppedThread {
 public:
  explicit StoppedThread(int pid) : pid_(pid) {}

  ~StoppedThread() {
    if (!stopped_) return;  // seized but never stopped, or gone: our thread's end detaches it
    if (saved_) {
      ptrace(PTRACE_SETREGS, pid_, nullptr, &registers_);
      ptrace(PTRACE_SETSIGMASK, pid_, sizeof mask_, &mask_);
    }
    for (int i = 0; i < held_count_; i++) syscall(SYS_tgkill, pid_, pid_, held_[i]);
    ptrace(PTRACE_DETACH, pid_, nullptr, nullptr);
  }

  Error Stop() {
    if (ptrace(PTRACE_SEIZE, pid_, nullptr, nullptr) != 0) {
      if (errno == ESRCH || (errno == EPERM && IsZombie(pid_))) return Gone(pid_, "ptrace(PTRACE_SEIZE)");
      if (errno == EPERM)
        return MakeError(ErrorKind::Permission,
                         "process " + std::to_string(pid_) +
                             " may not be traced: run as root, with CAP_SYS_PTRACE, or as its own "
                             "user with kernel.yama.ptrace_scope=0; a debugger may hold it");
      return SyscallError("ptrace(PTRACE_SEIZE)", errno, 0, 0, "process " + std::to_string(pid_));
    }
    if (ptrace(PTRACE_INTERRUPT, pid_, nullptr, nullptr) != 0) return SyscallError("ptrace(PTRACE_INTERRUPT)", errno);
    for (;;) {
      int status;
      if (Error error = WaitStop(NowNanos() + kStopTimeoutNanos, &status)) return error;
      if (status >> 16 == PTRACE_EVENT_STOP) break;
      // A signal was being delivered when we came: it is, before anything else. Our own stop is still to come.
      if (ptrace(PTRACE_CONT, pid_, nullptr, static_cast<long>(WSTOPSIG(status))) != 0)
        return SyscallError("ptrace(PTRACE_CONT)", errno);
    }
    stopped_ = true;
    if (ptrace(PTRACE_GETREGS, pid_, nullptr, &registers_) != 0) return SyscallError("ptrace(PTRACE_GETREGS)", errno);
    if (ptrace(PTRACE_GETSIGMASK, pid_, sizeof mask_, &mask_) != 0)
      return SyscallError("ptrace(PTRACE_GETSIGMASK)", errno);
    if (registers_.cs != kCode64)
      return MakeError(ErrorKind::Unsupported, "process " + std::to_string(pid_) + " is not a 64-bit program");
    return FindSyscallInstruction();
  }

  // Runs one system call in the target. Its result, negative errno on failure, goes to `value`.
  Error Call(long number, uint64_t a, uint64_t b, uint64_t c, long* value) {
    user_regs_struct registers = registers_;
    registers.rip = instruction_;
    registers.rax = static_cast<unsigned long long>(number);
    registers.rdi = a;
    registers.rsi = b;
    registers.rdx = c;
    // not inside a system call: keeps the kernel from restarting the interrupted one with our registers
    registers.orig_rax = ~0ull;
    uint64_t blocked = ~0ull;
    for (int signal : {SIGTRAP, SIGSYS, SIGSEGV, SIGBUS, SIGILL, SIGFPE}) blocked &= ~(1ull << (signal - 1));
    saved_ = true;
    if (ptrace(PTRACE_SETSIGMASK, pid_, sizeof blocked, &blocked) != 0)
      return SyscallError("ptrace(PTRACE_SETSIGMASK)", errno);
    if (ptrace(PTRACE_SETREGS, pid_, nullptr, &registers) != 0) return SyscallError("ptrace(PTRACE_SETREGS)", errno);
    for (;;) {
      if (ptrace(PTRACE_SINGLESTEP, pid_, nullptr, nullptr) != 0)
        return SyscallError("ptrace(PTRACE_SINGLESTEP)", errno);
      stopped_ = false;
      int status;
      // Without a time limit: it runs with our registers, and must never be let go with them. The call itself does not
      // wait; only a target that somebody freezes at this very moment takes longer.
      if (Error error = WaitStop(UINT64_MAX, &status)) return error;
      stopped_ = true;
      if (status >> 16 != 0) continue;  // a stop of the whole process, not a signal
      if (ptrace(PTRACE_GETREGS, pid_, nullptr, &registers) != 0) return SyscallError("ptrace(PTRACE_GETREGS)", errno);
      int signal = WSTOPSIG(status);
      siginfo_t info{};
      ptrace(PTRACE_GETSIGINFO, pid_, nullptr, &info);
      bool stepped = registers.rip == instruction_ + 2;
      if (signal == SIGSYS && info.si_code > 0)
        return MakeError(ErrorKind::Permission,
                         "a seccomp filter of process " + std::to_string(pid_) + " forbids the injected call");
      if (signal == SIGTRAP && info.si_code > 0 && stepped) break;
      if (info.si_code > 0)
        return MakeError(ErrorKind::Internal, "the injected call did not run in process " + std::to_string(pid_));
      if (held_count_ < kMaxHeld) held_[held_count_++] = signal;  // sent by somebody
    }
    *value = static_cast<long>(registers.rax);
    return {};
  }

 private:
  static constexpr unsigned long long kCode64 = 0x33;  // the code segment of 64-bit programs
  static constexpr int kMaxHeld = 16;

  Error WaitStop(uint64_t deadline, int* status) {
    for (;;) {
      int got = waitpid(pid_, status, __WALL | WNOHANG);
      if (got == pid_) {
        if (WIFSTOPPED(*status)) return {};
        return Gone(pid_, "ptrace");
      }
      if (got < 0 && errno == ECHILD) return Gone(pid_, "ptrace");
      if (got < 0 && errno != EINTR) return SyscallError("waitpid", errno);
      if (NowNanos() > deadline)
        return SyscallError("ptrace(PTRACE_INTERRUPT)", ETIMEDOUT, 0, 0,
                            "process " + std::to_string(pid_) + " does not stop");
      timespec nap{0, 20'000};
      nanosleep(&nap, nullptr);
    }
  }

  bool IsSyscall(uint64_t address) {
    errno = 0;
    long word = ptrace(PTRACE_PEEKTEXT, pid_, address, nullptr);
    return errno == 0 && (word & 0xffff) == 0x050f;
  }

  Error FindSyscallInstruction() {
    // Parked in a system call (the rule: the main loop sits in ppoll): the instruction lies just behind.
    if (IsSyscall(registers_.rip - 2)) {
      instruction_ = registers_.rip - 2;
      return {};
    }
    // Otherwise the vdso has one on every kernel (the fallback of clock_gettime).
    std::ifstream maps("/proc/" + std::to_string(pid_) + "/maps");
    std::string line;
    while (std::getline(maps, line)) {
      if (line.find("[vdso]") == std::string::npos) continue;
      uint64_t start = strtoull(line.c_str(), nullptr, 16);
      uint64_t end = strtoull(line.c_str() + line.find('-') + 1, nullptr, 16);
      // in one go: the target is stopped meanwhile
      std::string code(end - start, 0);
      iovec here{code.data(), code.size()}, there{reinterpret_cast<void*>(start), code.size()};
      ssize_t n = process_vm_readv(pid_, &here, 1, &there, 1, 0);
      size_t found = n > 0 ? code.find("\x0f\x05") : std::string::npos;
      if (found == std::string::npos) break;
      instruction_ = start + found;
      return {};
    }
    return MakeError(ErrorKind::Internal, "no syscall instruction found in process " + std::to_string(pid_));
  }

  int pid_;
  bool stopped_ = false;
  bool saved_ = false;
  uint64_t mask_ = 0;
  int held_[kMaxHeld] = {};
  int held_count_ = 0;
  uint64_t instruction_ = 0;
  user_regs_struct registers_{};
};

// Runs `number(a, b, c)` in the target, from a thread that exists for this alone (see attach.h).
Error RunInTarget(int pid, long number, uint64_t a, uint64_t b, uint64_t c, long* value) {
  struct Work {
    int pid;
    long number;
    uint64_t a, b, c;
    long* value;
    Error error;
  } work{pid, number, a, b, c, value, {}};
  pthread_t thread;
  int err = pthread_create(
      &thread, nullptr,
      [](void* arg) -> void* {
        auto* w = static_cast<Work*>(arg);
        StoppedThread target(w->pid);
        w->error = target.Stop();
        if (w->error.ok()) w->error = target.Call(w->number, w->a, w->b, w->c, w->value);
        return nullptr;
      },
      &work);
  if (err != 0) return SyscallError("pthread_create", err);
  pthread_join(thread, nullptr);
  return work.error;
}

#else

Error RunInTarget(int, long, uint64_t, uint64_t, uint64_t, long*) {
  return MakeError(ErrorKind::Unsupported, "attaching to a running process is implemented for x86-64 only");
}

#endif

}  // namespace

Result<int> PidfdOpen(int pid) {
  int fd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  if (fd < 0) return SyscallError("pidfd_open", errno, 0, 0, "process " + std::to_string(pid));
  return fd;
}

Result<int> TakeFd(int pid, int remote_fd) {
  auto pidfd = PidfdOpen(pid);
  if (!pidfd.ok()) return pidfd.error;
  int fd = static_cast<int>(syscall(SYS_pidfd_getfd, pidfd.value, remote_fd, 0));
  int err = errno;
  close(pidfd.value);
  if (fd >= 0) return fd;
  if (err == EPERM)
    return MakeError(ErrorKind::Permission, "descriptors of process " + std::to_string(pid) +
                                                " may not be taken: it needs CAP_SYS_PTRACE or the same user");
  return SyscallError("pidfd_getfd", err, 0, 0,
                      "descriptor " + std::to_string(remote_fd) + " of process " + std::to_string(pid));
}

Result<Attached> AttachUserfault(int pid, uint64_t features, int remote_device) {
  constexpr uint64_t kFlags = O_CLOEXEC | O_NONBLOCK;
  long value = 0;
  Error error = remote_device < 0 ? RunInTarget(pid, SYS_userfaultfd, kFlags, 0, 0, &value)
                                  : RunInTarget(pid, SYS_ioctl, static_cast<uint64_t>(remote_device),
                                                USERFAULTFD_IOC_NEW, kFlags, &value);
  if (error) return error;
  if (value < 0) {
    if (value == -EPERM)
      return MakeError(ErrorKind::Permission,
                       "process " + std::to_string(pid) +
                           " may not create a userfaultfd: set vm.unprivileged_userfaultfd=1, or "
                           "pass it /dev/userfaultfd");
    return SyscallError("userfaultfd", static_cast<int>(-value), 0, 0, "inside process " + std::to_string(pid));
  }
  Attached attached;
  attached.remote_fd = static_cast<int>(value);
  auto fd = TakeFd(pid, attached.remote_fd);
  error = fd.ok() ? NegotiateApi(fd.value, features) : fd.error;
  if (error) {
    if (fd.ok()) close(fd.value);
    CloseRemote(pid, attached.remote_fd);
    return error;
  }
  attached.fd = fd.value;
  return attached;
}

Error CloseRemote(int pid, int remote_fd) {
  long value = 0;
  if (Error error = RunInTarget(pid, SYS_close, static_cast<uint64_t>(remote_fd), 0, 0, &value)) return error;
  if (value < 0) return SyscallError("close", static_cast<int>(-value), 0, 0, "inside process " + std::to_string(pid));
  return {};
}

Result<std::vector<int>> FindUserfaults(int pid) {
  std::string folder = "/proc/" + std::to_string(pid) + "/fd";
  DIR* dir = opendir(folder.c_str());
  if (dir == nullptr) {
    std::string name = "process " + std::to_string(pid);
    if (errno == EACCES) return MakeError(ErrorKind::Permission, "descriptors of " + name + " may not be listed");
    return SyscallError("opendir", errno == ENOENT ? ESRCH : errno, 0, 0, name);
  }
  std::vector<int> found;
  while (dirent* entry = readdir(dir)) {
    char target[64];
    ssize_t n = readlinkat(dirfd(dir), entry->d_name, target, sizeof target - 1);
    if (n <= 0) continue;
    target[n] = 0;
    if (strcmp(target, "anon_inode:[userfaultfd]") == 0) found.push_back(atoi(entry->d_name));
  }
  closedir(dir);
  return found;
}

}  // namespace pagetide
