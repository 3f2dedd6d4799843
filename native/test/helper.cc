#include "test/helper.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <thread>
#include <vector>

#include "core/attach.h"
#include "test/harness.h"
#include "test/writer.h"

namespace pagetide::test {

namespace {

uint8_t* memory;

void Print(const std::string& line) {
  std::string text = line + "\n";
  if (write(STDOUT_FILENO, text.data(), text.size()) < 0) _exit(1);
}

// A line from stdin by read(2) alone; an EINTR would show.
bool ReadLine(std::string* line) {
  line->clear();
  char c;
  for (;;) {
    ssize_t n = read(STDIN_FILENO, &c, 1);
    if (n < 0) {
      Print(std::string("read failed: ") + strerror(errno));
      _exit(1);
    }
    if (n == 0) return false;
    if (c == '\n') return true;
    *line += c;
  }
}

void Answer(const std::string& line) {
  unsigned frame;
  if (sscanf(line.c_str(), "touch %u", &frame) == 1) {
    auto* words = reinterpret_cast<volatile uint64_t*>(memory + frame * 4096ull);
    char text[64];
    snprintf(text, sizeof text, "%016" PRIx64 " %016" PRIx64, words[0], words[511]);
    Print(text);
  } else if (line == "ping") {
    Print("pong");
  } else if (line == "drop") {
    Print(madvise(memory, kHelperFrames * 4096ull, MADV_DONTNEED) == 0 ? "dropped" : "failed");
  } else {
    Print("what?");
  }
}

void Ready() {
  char text[64];
  snprintf(text, sizeof text, "ready %d %" PRIx64, getpid(), reinterpret_cast<uint64_t>(memory));
  Print(text);
}

uint64_t ElapsedMs(const timespec& since) {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>((now.tv_sec - since.tv_sec) * 1000 + (now.tv_nsec - since.tv_nsec) / 1000000);
}

// Many live registers, so that a clobbered one shows.
uint64_t Chain(uint64_t rounds) {
  uint64_t a = 1, b = 2, c = 3, d = 4, e = 5, f = 6, g = 7;
  double x = 1.5;
  for (uint64_t i = 0; i < rounds; i++) {
    a ^= a << 13, a ^= a >> 7, a ^= a << 17;
    b += a * 3, c ^= b, d -= c, e += d >> 3, f ^= e << 1, g += f;
    x = x * 1.0000001 + 1e-9;
  }
  uint64_t bits;
  memcpy(&bits, &x, 8);
  return a ^ b ^ c ^ d ^ e ^ f ^ g ^ bits;
}

std::atomic<uint32_t> word{0};
std::atomic<uint64_t> alarms{0};
int queued[4096];
std::atomic<int> queued_count{0};
std::atomic<bool> wrong_origin{false};

void OnQueued(int, siginfo_t* info, void*) {
  if (info->si_code != SI_QUEUE) wrong_origin = true;
  int at = queued_count.load();
  if (at < 4096) queued[at] = info->si_value.sival_int;
  queued_count = at + 1;
}

// ppoll: parked without a time limit; EINTR would show.
int PollMode() {
  Ready();
  std::string line;
  for (;;) {
    pollfd fd{STDIN_FILENO, POLLIN, 0};
    if (ppoll(&fd, 1, nullptr, nullptr) < 0) {
      Print(std::string("ppoll failed: ") + strerror(errno));
      return 1;
    }
    if (!ReadLine(&line)) return 0;
    Answer(line);
  }
}

int AnswerLines() {
  std::string line;
  while (ReadLine(&line)) Answer(line);
  return 0;
}

int ReadMode() {
  Ready();
  return AnswerLines();
}

// nanosleep, futex: parked for 400 ms, then "slept RESULT MS"; then as read.
int SleepMode(bool futex) {
  Ready();
  timespec start, time{0, 400'000'000};
  clock_gettime(CLOCK_MONOTONIC, &start);
  int err = 0;
  if (futex) {
    if (syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &time, nullptr, 0) != 0) err = errno;
  } else if (syscall(SYS_nanosleep, &time, nullptr) != 0) {
    err = errno;
  }
  Print("slept " + std::to_string(err) + " " + std::to_string(ElapsedMs(start)));
  return AnswerLines();
}

// busy: the main thread computes in user mode until another thread has read a line; then says whether it is right.
int BusyMode() {
  std::atomic<bool> stop{false};
  std::thread listener([&] {
    std::string line;
    ReadLine(&line);
    stop = true;
  });
  Ready();
  uint64_t want = 0;
  bool same = true;
  do {
    uint64_t got = Chain(100000);
    same = same && (want == 0 || got == want);
    want = got;
  } while (!stop);
  listener.join();
  Print(same ? "right" : "wrong");
  return 0;
}

// signals: an interval timer of 1 ms, threads that compute, and real-time signals that must all arrive, in order and
// with their origin.
int SignalMode() {
  struct sigaction action {};
  action.sa_flags = SA_RESTART;
  action.sa_handler = [](int) { alarms++; };
  sigaction(SIGALRM, &action, nullptr);
  action = {};
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  action.sa_sigaction = OnQueued;
  sigaction(SIGRTMIN, &action, nullptr);
  // SIGTRAP and SIGUSR1 of the program's own must survive, too
  struct sigaction trap {};
  trap.sa_handler = [](int) { wrong_origin = true; };
  sigaction(SIGTRAP, &trap, nullptr);
  sigset_t others;
  sigemptyset(&others);
  sigaddset(&others, SIGRTMIN);
  pthread_sigmask(SIG_BLOCK, &others, nullptr);  // threads inherit: queued signals are the main thread's alone
  std::atomic<bool> stop{false}, right{true};
  std::vector<std::thread> threads;
  uint64_t want = Chain(20000);
  for (int i = 0; i < 4; i++) {
    threads.emplace_back([&] {
      while (!stop) {
        if (Chain(20000) != want) right = false;
        timespec nap{0, 200'000};
        nanosleep(&nap, nullptr);
      }
    });
  }
  pthread_sigmask(SIG_UNBLOCK, &others, nullptr);
  itimerval every{{0, 1000}, {0, 1000}};
  setitimer(ITIMER_REAL, &every, nullptr);
  Ready();
  std::string line;
  while (ReadLine(&line)) {
    int expected;
    if (sscanf(line.c_str(), "queued %d", &expected) == 1) {
      timespec start;
      clock_gettime(CLOCK_MONOTONIC, &start);
      while (queued_count < expected && ElapsedMs(start) < 5000) sched_yield();
      std::string verdict = "all";
      for (int i = 0; i < expected && i < 4096; i++) {
        if (queued[i] != i) verdict = "signal " + std::to_string(i) + " is " + std::to_string(queued[i]);
      }
      if (queued_count != expected) verdict = std::to_string(queued_count) + " signals";
      if (wrong_origin) verdict = "wrong origin";
      if (!right) verdict = "wrong sum";
      if (alarms == 0) verdict = "no alarms";
      struct sigaction now {};
      sigaction(SIGTRAP, nullptr, &now);
      if (now.sa_handler != trap.sa_handler) verdict = "SIGTRAP handler lost";
      Print(verdict);
    } else {
      Answer(line);
    }
  }
  stop = true;
  for (auto& thread : threads) thread.join();
  return 0;
}

}  // namespace

int HelperMain(const std::string& mode) {
  if (mode.rfind("writer-", 0) == 0) return WriterMain(mode);
  memory = static_cast<uint8_t*>(
      mmap(nullptr, kHelperFrames * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (memory == MAP_FAILED) return 1;
  madvise(memory, kHelperFrames * 4096, MADV_NOHUGEPAGE);
  if (mode == "ppoll") return PollMode();
  if (mode == "read") return ReadMode();
  if (mode == "nanosleep") return SleepMode(false);
  if (mode == "futex") return SleepMode(true);
  if (mode == "busy") return BusyMode();
  if (mode == "signals") return SignalMode();
  return 2;
}

Helper::Helper(const std::string& mode) {
  int to[2], from[2];
  CHECK(pipe2(to, O_CLOEXEC) == 0);
  CHECK(pipe2(from, O_CLOEXEC) == 0);
  int child = fork();
  if (child == 0) {
    if (fork() != 0) _exit(0);
    setsid();
    alarm(0);
    dup2(to[0], STDIN_FILENO);
    dup2(from[1], STDOUT_FILENO);
    execl("/proc/self/exe", "native-tests", "--helper", mode.c_str(), nullptr);
    _exit(127);
  }
  CHECK(waitpid(child, nullptr, 0) == child);
  close(to[0]);
  close(from[1]);
  to_ = to[1];
  from_ = from[0];
  std::string line = Hear();
  CHECK(sscanf(line.c_str(), "ready %d %" SCNx64, &pid_, &address_) == 2);
}

Helper::~Helper() {
  Kill();
  close(to_);
  close(from_);
}

void Helper::Say(const std::string& line) {
  std::string text = line + "\n";
  CHECK(write(to_, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
}

std::string Helper::Hear() {
  std::string line;
  char c;
  for (;;) {
    ssize_t n = read(from_, &c, 1);
    if (n <= 0) Fail(__FILE__, __LINE__, "the helper ended");
    if (c == '\n') return line;
    line += c;
  }
}

bool Helper::Heard() const {
  pollfd fd{from_, POLLIN, 0};
  return poll(&fd, 1, 0) == 1;
}

void Helper::Kill() {
  if (pid_ <= 0) return;
  auto pidfd = PidfdOpen(pid_);
  if (pidfd.ok()) {
    kill(pid_, SIGKILL);
    pollfd fd{pidfd.value, POLLIN, 0};
    poll(&fd, 1, -1);
    close(pidfd.value);
  }
  pid_ = -1;
}

void Helper::WaitParkedIn(long number) const {
  for (;;) {
    std::ifstream file("/proc/" + std::to_string(pid_) + "/syscall");
    std::string text;
    long in = -1;
    if (file >> text && text != "running") in = strtol(text.c_str(), nullptr, 10);
    if (in == number) return;
    std::this_thread::yield();
  }
}

}  // namespace pagetide::test
