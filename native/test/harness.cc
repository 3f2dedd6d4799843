#include "test/harness.h"

#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <vector>

#include "test/helper.h"

#if defined(__SANITIZE_THREAD__)
#define PAGETIDE_TSAN 1
#endif

namespace pagetide::test {

namespace {

constexpr int kSkipped = 77;
constexpr const char* kHugeFile = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
constexpr long kHugePagesWanted = 16;

struct Case {
  const char* name;
  int seconds;
  TestBody body;
};

std::vector<Case>& Cases() {
  static std::vector<Case> cases;
  return cases;
}

std::string folder;
long huge_before = -1;
bool huge_pages = false;

int Entries(const char* path) {
  DIR* dir = opendir(path);
  if (dir == nullptr) return -1;
  int n = 0;
  while (readdir(dir) != nullptr) n++;
  closedir(dir);
  return n;
}

void RemoveTree(const std::string& path) {
  DIR* dir = opendir(path.c_str());
  if (dir != nullptr) {
    while (dirent* entry = readdir(dir)) {
      std::string name = entry->d_name;
      if (name != "." && name != "..") RemoveTree(path + "/" + name);
    }
    closedir(dir);
    rmdir(path.c_str());
  } else {
    unlink(path.c_str());
  }
}

std::vector<int> Children() {
  std::vector<int> found;
  DIR* dir = opendir("/proc");
  if (dir == nullptr) return found;
  while (dirent* entry = readdir(dir)) {
    int pid = atoi(entry->d_name);
    if (pid <= 0) continue;
    std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
    std::string text((std::istreambuf_iterator<char>(file)), {});
    size_t end = text.rfind(')');
    char state;
    int parent;
    if (end != std::string::npos && sscanf(text.c_str() + end + 1, " %c %d", &state, &parent) == 2 &&
        parent == getpid())
      found.push_back(pid);
  }
  closedir(dir);
  return found;
}

// Kills and reaps whatever the test left to us; its own children become ours in turn.
void ReapAll() {
  for (;;) {
    std::vector<int> children = Children();
    if (children.empty()) return;
    for (int pid : children) kill(pid, SIGKILL);
    for (int pid : children) waitpid(pid, nullptr, 0);
  }
}

bool WriteHuge(long pages) {
  std::ofstream file(kHugeFile);
  file << pages << std::endl;
  return static_cast<bool>(file);
}

void ReserveHuge() {
  std::ifstream file(kHugeFile);
  if (!IsRoot() || !(file >> huge_before)) return;
  if (huge_before < kHugePagesWanted && !WriteHuge(kHugePagesWanted)) return;
  long now = 0;
  std::ifstream again(kHugeFile);
  huge_pages = (again >> now) && now >= kHugePagesWanted;
}

void RestoreHuge() {
  if (huge_before >= 0 && huge_before < kHugePagesWanted) WriteHuge(huge_before);
}

volatile sig_atomic_t interrupted = 0;

// 0 passed, 1 failed, 2 skipped
int RunCase(const Case& test) {
  const char* base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
  folder = std::string(base) + "/pagetide-test-XXXXXX";
  if (mkdtemp(folder.data()) == nullptr) {
    perror("mkdtemp");
    return 1;
  }
  fflush(nullptr);
  uint64_t start = NowNs();
  int pid = fork();
  if (pid == 0) {
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    signal(SIGPIPE, SIG_DFL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(static_cast<unsigned>(test.seconds));
    int fds = Entries("/proc/self/fd");
    [[maybe_unused]] int threads = Entries("/proc/self/task");
    test.body();
    CHECK_EQ(Entries("/proc/self/fd"), fds);
#ifndef PAGETIDE_TSAN  // has a thread of its own
    CHECK_EQ(Entries("/proc/self/task"), threads);
#endif
    exit(0);  // not _exit: the leak check runs at exit
  }
  int status = 0;
  // Looked at every 5 ms, not slept on: a signal between a look at `interrupted` and a sleep would be missed.
  while (waitpid(pid, &status, WNOHANG) == 0) {
    if (interrupted) kill(pid, SIGKILL);
    timespec nap{0, 5'000'000};
    nanosleep(&nap, nullptr);
  }
  ReapAll();
  RemoveTree(folder);
  double ms = static_cast<double>(NowNs() - start) / 1e6;
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
    printf("ok      %s (%.0f ms)\n", test.name, ms);
    return 0;
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == kSkipped) return 2;
  if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM) {
    printf("FAILED  %s: not done after %d s\n", test.name, test.seconds);
  } else if (WIFSIGNALED(status)) {
    printf("FAILED  %s: %s\n", test.name, strsignal(WTERMSIG(status)));
  } else {
    printf("FAILED  %s (exit code %d)\n", test.name, WEXITSTATUS(status));
  }
  return 1;
}

}  // namespace

Registration::Registration(const char* name, int seconds, TestBody body) {
  Cases().push_back({name, seconds, body});
}

void Fail(const char* file, int line, const std::string& what) {
  fprintf(stdout, "        %s:%d: %s\n", file, line, what.c_str());
  fflush(stdout);
  _exit(1);
}

void Skip(const std::string& why) {
  const char* require = getenv("PAGETIDE_REQUIRE_ALL_TESTS");
  if (require != nullptr && strcmp(require, "1") == 0) Fail("skipped", 0, why);
  fprintf(stdout, "skipped %s\n", why.c_str());
  fflush(stdout);
  _exit(kSkipped);
}

const std::string& Folder() {
  return folder;
}
bool IsRoot() {
  return geteuid() == 0;
}
bool HugePages() {
  return huge_pages;
}

uint64_t Seed() {
  static uint64_t seed = [] {
    const char* text = getenv("PAGETIDE_TEST_SEED");
    return text != nullptr ? strtoull(text, nullptr, 0) : NowNs();
  }();
  return seed;
}

void AsNobody(TestBody body) {
  fflush(nullptr);
  int pid = fork();
  if (pid == 0) {
    alarm(15);
    if (IsRoot() && (setgroups(0, nullptr) != 0 || setgid(65534) != 0 || setuid(65534) != 0)) {
      Fail(__FILE__, __LINE__, "cannot become another user");
    }
    // setuid made /proc/self root's; as after an exec it is our own again
    prctl(PR_SET_DUMPABLE, 1);
    body();
    fflush(nullptr);
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(pid, &status, 0) == pid);
  if (WIFEXITED(status) && WEXITSTATUS(status) == kSkipped) _exit(kSkipped);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

uint64_t NowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000ull + static_cast<uint64_t>(now.tv_nsec);
}

}  // namespace pagetide::test

// native-tests [--list] [PART]...: the tests whose name contains one of the parts, or all.
int main(int argc, char** argv) {
  using namespace pagetide::test;
  if (argc > 2 && strcmp(argv[1], "--helper") == 0) return HelperMain(argv[2]);
  bool list = argc > 1 && strcmp(argv[1], "--list") == 0;
  setvbuf(stdout, nullptr, _IOLBF, 0);
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  struct sigaction stop {};
  stop.sa_handler = [](int) { interrupted = 1; };  // no SA_RESTART: the wait for the test ends
  sigaction(SIGINT, &stop, nullptr);
  sigaction(SIGTERM, &stop, nullptr);
  // Whoever started us may be killed: then too, the test ends and the huge pages go back.
  sigaction(SIGPIPE, &stop, nullptr);
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  Seed();
  if (!list) {
    ReserveHuge();
    printf("seed %llu\n", static_cast<unsigned long long>(Seed()));
  }
  int passed = 0, failed = 0, skipped = 0;
  for (const Case& test : Cases()) {
    bool chosen = argc == 1 || list;
    for (int i = 1; i < argc; i++) chosen = chosen || strstr(test.name, argv[i]) != nullptr;
    if (!chosen || interrupted) continue;
    if (list) {
      puts(test.name);
      continue;
    }
    int result = RunCase(test);
    if (result == 2) printf("skipped %s\n", test.name);
    (result == 0 ? passed : result == 1 ? failed : skipped)++;
  }
  if (list) return 0;
  RestoreHuge();
  if (interrupted) puts("interrupted");
  if (skipped > 0) printf("%d skipped\n", skipped);
  printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 && passed + skipped > 0 && !interrupted ? 0 : 1;
}
