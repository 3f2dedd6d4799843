// Changes of memory files by other ways than a mapping: each is told, and none that wasn't.
#include "core/file_changes.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <functional>
#include <string>

#include "core/memory.h"
#include "test/harness.h"

namespace pagetide::test {

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kBytes = 16 * kPage;

// On tmpfs, removed with its object.
struct Mapped {
  explicit Mapped(const char* name) : path("/dev/shm/pagetide-changes-" + std::to_string(getpid()) + name) {
    fd = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    CHECK(ftruncate(fd, kBytes) == 0);
    void* mapped = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(mapped != MAP_FAILED);
    memory = static_cast<volatile uint8_t*>(mapped);
  }
  ~Mapped() {
    munmap(const_cast<uint8_t*>(memory), kBytes);
    close(fd);
    unlink(path.c_str());
  }
  void* At(size_t offset) const { return const_cast<uint8_t*>(memory) + offset; }

  std::string path;
  int fd = -1;
  volatile uint8_t* memory = nullptr;
};

uint64_t CountOf(FileChanges& changes, int watch) {
  auto count = changes.Count(watch);
  CHECK_OK(count.error);
  return count.value;
}

int WatchOf(FileChanges& changes, int fd) {
  auto watch = changes.Watch(fd);
  CHECK_OK(watch.error);
  return watch.value;
}

TEST(file_changes_each_way_is_told) {
  Mapped file("ways");
  FileChanges changes;
  int watch = WatchOf(changes, file.fd);
  uint64_t known = CountOf(changes, watch);
  auto told = [&](const std::function<void()>& work) {
    work();
    uint64_t count = CountOf(changes, watch);
    bool more = count > known;
    known = count;
    return more;
  };
  CHECK(!told([&] { file.memory[5] = 1; }));
  CHECK(!told([&] { CHECK(file.memory[8 * kPage] == 0); }));
  CHECK(!told([&] { CHECK(madvise(file.At(0), kPage, MADV_DONTNEED) == 0); }));
  CHECK(told([&] { CHECK(fallocate(file.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kPage) == 0); }));
  CHECK(told([&] { CHECK(madvise(file.At(kPage), kPage, MADV_REMOVE) == 0); }));
  CHECK(told([&] { CHECK(pwrite(file.fd, "x", 1, 3) == 1); }));
  CHECK(told([&] { CHECK(ftruncate(file.fd, kBytes + kPage) == 0); }));
  // through another description of the same file
  int again = open(file.path.c_str(), O_RDWR | O_CLOEXEC);
  CHECK(again >= 0);
  CHECK(told([&] { CHECK(fallocate(again, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kPage) == 0); }));
  close(again);
  CHECK(!told([] {}));
  changes.Unwatch(watch);
}

TEST(file_changes_of_several_files) {
  Mapped one("one"), other("other");
  FileChanges changes;
  int first = WatchOf(changes, one.fd);
  int second = WatchOf(changes, one.fd);
  int third = WatchOf(changes, other.fd);
  CHECK(first != second);
  // unlinked files are watched like others
  unlink(other.path.c_str());
  uint64_t before = CountOf(changes, third);
  CHECK(pwrite(one.fd, "x", 1, 3) == 1);
  CHECK(CountOf(changes, first) > 0);
  CHECK(CountOf(changes, second) > 0);
  CHECK_EQ(CountOf(changes, third), before);
  CHECK(pwrite(other.fd, "x", 1, 3) == 1);
  CHECK(CountOf(changes, third) > before);
  // one watch ends, the other goes on
  changes.Unwatch(first);
  changes.Unwatch(first);
  CHECK(!changes.Count(first).ok());
  before = CountOf(changes, second);
  CHECK(pwrite(one.fd, "x", 1, 3) == 1);
  CHECK(CountOf(changes, second) > before);
  changes.Unwatch(second);
  // and begins anew
  int fourth = WatchOf(changes, one.fd);
  before = CountOf(changes, fourth);
  CHECK(pwrite(one.fd, "x", 1, 3) == 1);
  CHECK(CountOf(changes, fourth) > before);
  changes.Unwatch(third);
  changes.Unwatch(fourth);
}

TEST(file_changes_more_than_the_queue_holds) {
  Mapped one("one"), other("other");
  FileChanges changes;
  int first = WatchOf(changes, one.fd);
  int second = WatchOf(changes, other.fd);
  // events of two files in turn are not merged; 16384 is the usual limit of the queue
  for (int i = 0; i < 20000; i++) CHECK(pwrite(i % 2 == 0 ? one.fd : other.fd, "x", 1, 0) == 1);
  CHECK(CountOf(changes, first) > 0);
  CHECK(CountOf(changes, second) > 0);
  uint64_t known = CountOf(changes, second);
  CHECK(pwrite(other.fd, "x", 1, 0) == 1);
  CHECK(CountOf(changes, second) > known);
}

TEST(file_changes_of_what_cannot_tell) {
  FileChanges changes;
  int memfd = memfd_create("pagetide-changes", MFD_CLOEXEC);
  CHECK(memfd >= 0);
  auto refused = changes.Watch(memfd);
  CHECK(!refused.ok());
  CHECK(refused.error.kind == ErrorKind::Unsupported);
  close(memfd);
  CHECK(!changes.Watch(-1).ok());
  CHECK(!changes.Count(1).ok());
}

}  // namespace

}  // namespace pagetide::test
