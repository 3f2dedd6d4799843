// pagetide-launch: starts a program so that it belongs to nobody.
//
//   pagetide-launch --log FILE [--cwd DIR] -- COMMAND ARGUMENTS…
//
// The program gets a session of its own, is reparented, reads from /dev/null, appends its output to FILE, and inherits
// no other descriptor, no blocked signal and no signal disposition: it outlives whoever asked for it. Scheduling, the
// OOM score, limits and the environment are left as they are.
//
//   pagetide-launch ── fork ── middle (setsid) ── fork ── program
//        │ waits for the middle,                              │ reports {pid, start time}, then execs
//        │ reads reports from a close-on-exec pipe ◄──────────┘ or reports what failed
//
// Prints {"pid":…,"startTime":…} and exits 0 once the program's image runs. startTime is field 22 of /proc/PID/stat:
// with the pid it names the process for ever. Exits 1 with one line on stderr where the program could not be started.
#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

struct Report {
  enum Kind : int { kStarted, kFailed } kind;
  int error;      // errno
  char what[16];  // what failed
  long pid;
  unsigned long long start_time;  // clock ticks since boot
};

constexpr int kReports = 3;  // where the program's side keeps the pipe

[[noreturn]] void Usage(const char* wrong) {
  fprintf(stderr, "pagetide-launch: %s; usage: pagetide-launch --log FILE [--cwd DIR] -- COMMAND ARGUMENTS...\n",
          wrong);
  exit(2);
}

void Send(int fd, const Report& report) {
  // Smaller than PIPE_BUF: written whole or not at all.
  while (write(fd, &report, sizeof report) < 0 && errno == EINTR) {
  }
}

[[noreturn]] void Fail(int fd, const char* what) {
  Report report = {};
  report.kind = Report::kFailed;
  report.error = errno;
  snprintf(report.what, sizeof report.what, "%s", what);
  Send(fd, report);
  _exit(1);
}

bool ReadStartTime(unsigned long long* start_time) {
  char text[1024];
  const int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  const ssize_t got = read(fd, text, sizeof text - 1);
  close(fd);
  if (got <= 0) return false;
  text[got] = '\0';
  // The name, field 2, may hold anything; behind its last parenthesis follows field 3.
  const char* at = strrchr(text, ')');
  for (int field = 2; at != nullptr && field < 22; field++) at = strchr(at + 1, ' ');
  if (at == nullptr) return false;
  *start_time = strtoull(at + 1, nullptr, 10);
  return true;
}

void CloseFrom(unsigned first) {
  if (syscall(SYS_close_range, first, ~0u, 0) == 0) return;
  // Before Linux 5.9.
  const long most = sysconf(_SC_OPEN_MAX);
  for (long fd = first; fd < (most > 0 ? most : 65536); fd++) close(static_cast<int>(fd));
}

[[noreturn]] void RunProgram(int reports, int log, const char* cwd, char** command) {
  for (int number = 1; number < NSIG; number++) signal(number, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);

  // The folder is entered before descriptors are rearranged, so that every failure can still be reported.
  if (cwd != nullptr && chdir(cwd) != 0) Fail(reports, "chdir");
  const int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (null < 0) Fail(reports, "/dev/null");
  // Copies above the range of numbers that is about to be overwritten.
  const int from[] = {fcntl(null, F_DUPFD_CLOEXEC, 10), fcntl(log, F_DUPFD_CLOEXEC, 10),
                      fcntl(reports, F_DUPFD_CLOEXEC, 10)};
  if (from[0] < 0 || from[1] < 0 || from[2] < 0) Fail(reports, "dup");
  dup2(from[0], STDIN_FILENO);
  dup2(from[1], STDOUT_FILENO);
  dup2(from[1], STDERR_FILENO);
  dup3(from[2], kReports, O_CLOEXEC);
  CloseFrom(kReports + 1);

  Report report = {};
  report.kind = Report::kStarted;
  report.pid = getpid();
  if (!ReadStartTime(&report.start_time)) Fail(kReports, "/proc");
  Send(kReports, report);
  execvp(command[0], command);
  Fail(kReports, "exec");
}

}  // namespace

int main(int argc, char** argv) {
  const char* log_path = nullptr;
  const char* cwd = nullptr;
  int at = 1;
  for (; at < argc && strcmp(argv[at], "--") != 0; at += 2) {
    if (at + 1 >= argc) Usage("an option lacks its value");
    if (strcmp(argv[at], "--log") == 0) {
      log_path = argv[at + 1];
    } else if (strcmp(argv[at], "--cwd") == 0) {
      cwd = argv[at + 1];
    } else {
      Usage("unknown option");
    }
  }
  if (log_path == nullptr) Usage("--log is missing");
  if (at + 1 >= argc) Usage("the command is missing");
  char** command = argv + at + 1;

  const int log = open(log_path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  if (log < 0) {
    fprintf(stderr, "pagetide-launch: log %s: %s\n", log_path, strerror(errno));
    return 1;
  }
  int pipe_fds[2];
  if (pipe2(pipe_fds, O_CLOEXEC) != 0) {
    perror("pagetide-launch: pipe");
    return 1;
  }
  const pid_t middle = fork();
  if (middle == 0) {
    close(pipe_fds[0]);
    if (setsid() < 0) Fail(pipe_fds[1], "setsid");
    const pid_t program = fork();
    if (program < 0) Fail(pipe_fds[1], "fork");
    if (program == 0) RunProgram(pipe_fds[1], log, cwd, command);
    _exit(0);
  }
  if (middle < 0) {
    perror("pagetide-launch: fork");
    return 1;
  }
  close(pipe_fds[1]);

  // The pipe ends when exec succeeds, or when the program's side is gone.
  Report started = {};
  bool runs = false;
  for (Report report = {};;) {
    const ssize_t got = read(pipe_fds[0], &report, sizeof report);
    if (got < 0 && errno == EINTR) continue;
    if (got != static_cast<ssize_t>(sizeof report)) break;
    if (report.kind == Report::kFailed) {
      fprintf(stderr, "pagetide-launch: %s: %s: %s\n", command[0], report.what, strerror(report.error));
      return 1;
    }
    started = report;
    runs = true;
  }
  // Waited for, so that the program has been reparented when the caller reads about it.
  while (waitpid(middle, nullptr, 0) < 0 && errno == EINTR) {
  }
  if (!runs) {
    fprintf(stderr, "pagetide-launch: %s: died before it began\n", command[0]);
    return 1;
  }
  printf("{\"pid\":%ld,\"startTime\":%llu}\n", started.pid, started.start_time);
  return fflush(stdout) == 0 ? 0 : 1;
}
