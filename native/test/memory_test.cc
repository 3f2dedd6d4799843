// Memory seen from outside, and arenas.
#include "core/memory.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "test/guest.h"

namespace pagetide::test {

TEST(memory_data_extents_of_a_file_with_holes) {
  int fd = memfd_create("holes", MFD_CLOEXEC);
  CHECK(ftruncate(fd, 100 * 4096) == 0);
  auto none = DataExtents(fd, 0, 100 * 4096);
  CHECK_OK(none.error);
  CHECK(none.value.empty());
  uint8_t page[4096] = {1};
  for (int p : {0, 1, 7, 50, 51, 52, 99}) CHECK(pwrite(fd, page, 4096, p * 4096) == 4096);
  auto same = [&](uint64_t offset, uint64_t length, std::vector<std::pair<uint64_t, uint64_t>> pages) {
    auto got = DataExtents(fd, offset, length);
    CHECK_OK(got.error);
    CHECK_EQ(got.value.size(), pages.size());
    for (size_t i = 0; i < pages.size(); i++) {
      CHECK_EQ(got.value[i].offset, pages[i].first * 4096);
      CHECK_EQ(got.value[i].length, pages[i].second * 4096);
    }
  };
  same(0, 100 * 4096, {{0, 2}, {7, 1}, {50, 3}, {99, 1}});
  same(4096, 50 * 4096, {{1, 1}, {7, 1}, {50, 1}});
  same(2 * 4096, 5 * 4096, {});
  same(0, 1000 * 4096, {{0, 2}, {7, 1}, {50, 3}, {99, 1}});  // beyond the end: what there is
  same(200 * 4096, 4096, {});
  same(0, 0, {});
  // a range that wraps around must not look like "nothing there"
  CHECK_EQ(DataExtents(fd, 4096, ~0ull).error.kind, ErrorKind::Argument);
  CHECK_EQ(DataExtents(fd, ~0ull, 4096).error.kind, ErrorKind::Argument);
  close(fd);
  CHECK_EQ(DataExtents(fd, 0, 4096).error.err, EBADF);
}

TEST(memory_present_extents_of_private_memory) {
  Memory memory(Kind::Private, 1200);  // more than one read of the pagemap
  for (uint64_t f : {0, 1, 511, 512, 1199}) memory.at(f)[0] = 1;
  auto got = PresentExtents(getpid(), memory.address(), memory.size());
  CHECK_OK(got.error);
  uint64_t want[][2] = {{0, 2}, {511, 2}, {1199, 1}};
  CHECK_EQ(got.value.size(), size_t{3});
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(got.value[i].offset, want[i][0] * 4096);
    CHECK_EQ(got.value[i].length, want[i][1] * 4096);
  }
  // a page that was only read is the zero page: there, and it won't fault
  CHECK_EQ(Touch(memory, 700), 0u);
  CHECK_EQ(PresentExtents(getpid(), memory.address() + 700 * 4096, 4096).value.size(), size_t{1});
  CHECK_EQ(PresentExtents(getpid(), memory.address() + 1, 4096).error.kind, ErrorKind::Argument);
  CHECK_EQ(PresentExtents(getpid(), 1ull << 47, 4096).error.kind, ErrorKind::Argument);
  CHECK_EQ(PresentExtents(getpid(), 4096, ~0ull << 12).error.kind, ErrorKind::Argument);
}

TEST(memory_is_zero_at_any_length) {
  std::vector<uint8_t> data(4200);
  for (size_t length = 0; length < 4200; length += length < 70 ? 1 : 257) {
    CHECK(IsZero(data.data() + 3, length));
    for (size_t at : {size_t{0}, size_t{15}, size_t{16}, length / 2, length - 1}) {
      if (at >= length) continue;
      data[3 + at] = 1;
      CHECK(!IsZero(data.data() + 3, length));
      data[3 + at] = 0;
    }
    // what lies around doesn't matter
    data[2] = data[3 + length] = 9;
    CHECK(IsZero(data.data() + 3, length));
    data[2] = data[3 + length] = 0;
  }
}

TEST(memory_arena_is_kept_and_its_size_checked) {
  std::string path = Folder() + "/arena";
  {
    auto arena = Arena::Open(path, 4096, 10);
    CHECK_OK(arena.error);
    CHECK_EQ(arena.value->size(), size_t{40960});
    Fill(arena.value->data() + 3 * 4096, 3, 4096);
    struct stat info {};
    CHECK(stat(path.c_str(), &info) == 0);
    CHECK_EQ(info.st_mode & 0777, 0600u);
    CHECK_EQ(info.st_size, 40960);
    CHECK(info.st_blocks * 512 >= 40960);  // allocated: no SIGBUS later
  }
  for (uint64_t slots : {9ull, 11ull}) {
    auto other = Arena::Open(path, 4096, slots);
    CHECK_EQ(other.error.kind, ErrorKind::Argument);
    CHECK_CONTAINS(other.error.Message(), "another size");
  }
  auto again = Arena::Open(path, 4096, 10);
  CHECK_OK(again.error);
  CHECK(HasContent(again.value->data() + 3 * 4096, 3, 4096));
  for (auto [size, slots] : {std::pair<uint64_t, uint64_t>{0, 1},
                             {4095, 1},
                             {4096, 0},
                             {4096, 1ull << 33},
                             {1ull << 40, 1ull << 30},
                             {1ull << 62, 4}}) {
    std::string bad = Folder() + "/bad";
    CHECK_EQ(Arena::Open(bad, size, slots).error.kind, ErrorKind::Argument);
    CHECK(access(bad.c_str(), F_OK) != 0);
  }
}

TEST(memory_without_space_leaves_nothing) {
  if (!IsRoot()) Skip("needs root, to mount a small tmpfs");
  if (unshare(CLONE_NEWNS) != 0 || mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0)
    Skip("no mount namespace to be had");
  CHECK(mount("tmpfs", Folder().c_str(), "tmpfs", 0, "size=64k") == 0);
  std::string path = Folder() + "/arena";
  auto arena = Arena::Open(path, 4096, 64);
  CHECK_EQ(arena.error.err, ENOSPC);
  CHECK_CONTAINS(arena.error.Message(), "fallocate: ENOSPC");
  CHECK_CONTAINS(arena.error.Message(), path);
  CHECK(access(path.c_str(), F_OK) != 0);
  // the page table likewise
  Memory memory(Kind::Private, 100000);
  FaultSession::Options options;
  options.uffd = Uffd();
  options.regions = {{memory.address(), memory.size(), 0}};
  options.table_path = Folder() + "/table";
  auto session = FaultSession::Create(options);
  CHECK_EQ(session.error.err, ENOSPC);
  CHECK(access(options.table_path.c_str(), F_OK) != 0);
  CHECK(fcntl(options.uffd, F_GETFD) >= 0);
  close(options.uffd);
  // an arena that fits takes what the failed one didn't keep
  CHECK_OK(Arena::Open(path, 4096, 12).error);
  umount2(Folder().c_str(), MNT_DETACH);
}

}  // namespace pagetide::test
