// Creating userfaultfds, and what a session refuses before it takes one.
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/uffd_abi.h"
#include "core/userfault.h"
#include "test/guest.h"

namespace pagetide::test {

namespace {

bool Exists(const std::string& path) {
  struct stat info {};
  return lstat(path.c_str(), &info) == 0;
}

bool IsOpen(int fd) {
  return fcntl(fd, F_GETFD) >= 0;
}

// Refused with Argument, saying `part`; the descriptor stays open and no table is left.
void ExpectRefused(FaultSession::Options options, const char* part) {
  std::string table = Folder() + "/refused";
  if (options.table_path.empty() && !options.recover) options.table_path = table;
  auto session = FaultSession::Create(options);
  CHECK(!session.ok());
  CHECK_EQ(session.error.kind, ErrorKind::Argument);
  CHECK_CONTAINS(session.error.Message(), part);
  CHECK(!Exists(table));
  CHECK(IsOpen(options.uffd));
}

}  // namespace

TEST(create_works_in_a_permitted_way) {
  auto made = CreateUserfault(kFeatures, true);
  if (!made.ok()) Skip(made.error.Message());
  CHECK(fcntl(made.value.fd, F_GETFD) & FD_CLOEXEC);
  CHECK(fcntl(made.value.fd, F_GETFL) & O_NONBLOCK);
  CHECK_EQ(made.value.features, kFeatures);
  if (IsRoot()) CHECK(!made.value.user_mode_only);
  close(made.value.fd);
}

TEST(create_negotiates_once_only) {
  int fd = Uffd();
  Error again = NegotiateApi(fd, kFeatures);
  CHECK_EQ(again.err, EINVAL);
  CHECK_CONTAINS(again.Message(), "UFFDIO_API: EINVAL");
  CHECK_CONTAINS(again.Message(), "negotiated before");
  close(fd);
}

TEST(create_names_missing_features) {
  auto made = CreateUserfault(kFeatures | 1ull << 62, true);
  CHECK(!made.ok());
  if (made.error.kind == ErrorKind::Permission) Skip(made.error.Message());
  CHECK_EQ(made.error.kind, ErrorKind::Unsupported);
  CHECK_CONTAINS(made.error.Message(), "0x4000000000000000");
}

TEST(create_unprivileged_gets_user_mode_only) {
  AsNobody([] {
    auto made = CreateUserfault(kFeatures, true);
    CHECK_OK(made.error);
    close(made.value.fd);
    auto strict = CreateUserfault(kFeatures, false);
    if (strict.ok()) Skip("this host permits userfaultfd to everybody");
    CHECK(made.value.user_mode_only);
    CHECK_EQ(strict.error.kind, ErrorKind::Permission);
    CHECK_CONTAINS(strict.error.Message(), "syscall: EPERM");
    CHECK_CONTAINS(strict.error.Message(), "device: ");
    CHECK(strict.error.Message().find("user-mode-only") == std::string::npos);
    // and it serves faults of user mode
    Memory memory(Kind::Private, 4);
    auto session = Serve(memory);
    Vcpu vcpu([&] { CHECK_EQ(Touch(memory, 2), Word(2, 0)); });
    ExpectFault(*session, 2);
    auto page = Pages(2, 1);
    CHECK_EQ(session->Install(2, 1, page.get()).installed, 1u);
    vcpu.Join();
  });
}

TEST(create_probe_agrees_with_what_works) {
  UserfaultProbe probe = ProbeUserfault();
  CHECK_EQ(probe.ways.size(), size_t{3});
  CHECK_EQ(std::string(probe.ways[0].name), std::string("syscall"));
  auto made = CreateUserfault(0, true);
  CHECK_EQ(made.ok(), probe.any);
  if (made.ok()) {
    close(made.value.fd);
    CHECK(probe.shmem && probe.hugetlbfs);
    CHECK((probe.features & kFeatures) == kFeatures);
  }
  AsNobody([] {
    UserfaultProbe mine = ProbeUserfault();
    CHECK_EQ(mine.ways[2].err, 0);
    CHECK(mine.any);
  });
}

TEST(options_refuse_bad_regions) {
  Memory memory(Kind::Private, 16);
  uint64_t at = memory.address();
  FaultSession::Options good;
  good.uffd = Uffd();
  good.regions = {{at, 8 * 4096, 0}, {at + 8 * 4096, 8 * 4096, 8 * 4096}};
  auto with = [&](auto change) {
    FaultSession::Options options = good;
    change(options);
    return options;
  };
  ExpectRefused(with([](auto& o) { o.regions.clear(); }), "at least one region");
  ExpectRefused(with([](auto& o) { o.regions[0].host += 1; }), "aligned");
  ExpectRefused(with([](auto& o) { o.regions[0].size -= 1; }), "aligned");
  ExpectRefused(with([](auto& o) { o.regions[0].size = 0; }), "aligned");
  ExpectRefused(with([](auto& o) { o.regions[1].offset += 8; }), "aligned");
  ExpectRefused(with([](auto& o) { o.regions[1].host -= 4096; }), "overlap in memory");
  ExpectRefused(with([](auto& o) { o.regions[1].host = o.regions[0].host; }), "overlap in memory");
  ExpectRefused(with([](auto& o) { o.regions[1].offset -= 4096; }), "overlap or leave a gap at offset 32768");
  ExpectRefused(with([](auto& o) { o.regions[1].offset += 4096; }), "overlap or leave a gap at offset 32768");
  ExpectRefused(with([](auto& o) { o.regions[0].offset = 4096; }), "gap at offset 0");
  ExpectRefused(with([](auto& o) { o.regions[1].host = 1ull << 47; }), "outside user memory");
  ExpectRefused(with([](auto& o) { o.regions[1].host = (1ull << 47) - 4096; }), "outside user memory");
  ExpectRefused(with([](auto& o) { o.regions[1].host = 0; }), "outside user memory");
  ExpectRefused(with([](auto& o) { o.regions[1].size = ~0ull << 12; }), "outside user memory");
  for (uint64_t size : {0ull, 1ull, 3ull, 2048ull, 8192ull, 1ull << 30, ~0ull})
    ExpectRefused(with([=](auto& o) { o.page_size = size; }), "page size");
  ExpectRefused(with([](auto& o) { o.page_size = 2 << 20; }), "aligned");
  ExpectRefused(with([](auto& o) { o.recover = true; }), "cannot be recovered");
  close(good.uffd);
}

TEST(options_refuse_what_is_no_userfaultfd) {
  Memory memory(Kind::Private, 1);
  FaultSession::Options options;
  options.regions = {{memory.address(), 4096, 0}};
  options.uffd = eventfd(0, EFD_CLOEXEC);
  ExpectRefused(options, "is no userfaultfd");
  close(options.uffd);
  // the device that makes them is none itself
  options.uffd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  if (options.uffd >= 0) {
    ExpectRefused(options, "is no userfaultfd");
    close(options.uffd);
  }
  options.uffd = -1;
  CHECK_EQ(FaultSession::Create(options).error.kind, ErrorKind::Argument);
  // nor is one of use that nobody has negotiated
  options.uffd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY));
  CHECK(options.uffd >= 0);
  ExpectRefused(options, "UFFDIO_API");
  close(options.uffd);
}

TEST(options_shape_of_a_recovered_table) {
  Memory memory(Kind::Private, 16);
  std::string path = Folder() + "/table";
  {
    auto session = Serve(memory, [&](auto& o) { o.table_path = path; });
    session->Reset(0, 3, FrameState::Present);
    session->Reset(5, 2, FrameState::Removed);
    CHECK_OK(session->Unregister(true));
  }
  struct stat info {};
  CHECK(stat(path.c_str(), &info) == 0);
  CHECK_EQ(info.st_mode & 0777, 0600u);
  FaultSession::Options options;
  options.uffd = Uffd();
  options.regions = {{memory.address(), memory.size(), 0}};
  options.table_path = path;
  // a table that is there is never overwritten
  auto session = FaultSession::Create(options);
  CHECK_EQ(session.error.err, EEXIST);
  options.recover = true;
  auto wrong = options;
  wrong.regions[0].size -= 4096;
  ExpectRefused(wrong, "another size");
  auto write_at = [&](off_t offset, uint8_t byte) {
    int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
    uint8_t before = 0;
    CHECK(pread(fd, &before, 1, offset) == 1 && pwrite(fd, &byte, 1, offset) == 1);
    close(fd);
    return before;
  };
  uint8_t version = write_at(8, 99);
  ExpectRefused(options, "another version");
  write_at(8, version);
  write_at(4096 + 4, 0x33);
  ExpectRefused(options, "damaged");
  write_at(4096 + 4, 0);
  CHECK(Exists(path));  // a refused recovery takes nothing away
  session = FaultSession::Create(options);
  CHECK_OK(session.error);
  CHECK_EQ(session.value->Counts().present, 3u);
  CHECK_EQ(session.value->Counts().removed, 2u);
  CHECK_EQ(session.value->Counts().outstanding, 11u);
}

TEST(register_rolls_back_when_another_has_the_memory) {
  Memory first(Kind::Private, 4), second(Kind::Private, 4);
  auto owner = Serve(second);
  FaultSession::Options options;
  options.uffd = Uffd();
  options.regions = {{first.address(), first.size(), 0}, {second.address(), second.size(), first.size()}};
  auto session = FaultSession::Create(options);
  CHECK_OK(session.error);
  Error error = session.value->Register();
  CHECK_EQ(error.err, EBUSY);
  CHECK_CONTAINS(error.Message(), "another userfaultfd");
  CHECK_EQ(error.start, second.address());
  CHECK_EQ(error.length, second.size());
  // the first region is free again: another can have it, and without one it doesn't fault
  CHECK_EQ(Touch(first, 0), 0u);
  auto other = Serve(first);
}

TEST(register_refuses_another_page_size) {
  {
    FaultSession::Options options;  // 4 KiB pages under a session of 2 MiB frames: removes would tear frames
    options.uffd = Uffd();
    uint64_t size = 4 << 20;
    void* p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    uint64_t at = (reinterpret_cast<uint64_t>(p) + (2 << 20) - 1) & ~((2ull << 20) - 1);
    options.regions = {{at, 2 << 20, 0}};
    options.page_size = 2 << 20;
    auto session = FaultSession::Create(options);
    CHECK_OK(session.error);
    Error error = session.value->Register();
    CHECK_EQ(error.kind, ErrorKind::Argument);
    CHECK_CONTAINS(error.Message(), "page size");
    CHECK_EQ(*reinterpret_cast<volatile uint64_t*>(at), 0u);  // not registered any more
    munmap(p, size);
  }
  Memory huge(Kind::HugePrivate, 1);
  FaultSession::Options options;
  options.uffd = Uffd();
  options.regions = {{huge.address(), huge.size(), 0}};
  auto session = FaultSession::Create(options);
  CHECK_OK(session.error);
  Error error = session.value->Register();
  CHECK_EQ(error.kind, ErrorKind::Argument);
  CHECK_CONTAINS(error.Message(), "page size");
}

TEST(register_says_where_nothing_is_mapped) {
  Memory memory(Kind::Private, 1);
  FaultSession::Options options;
  options.uffd = Uffd();
  options.regions = {{memory.address(), 4096, 0}, {0x1000'0000, 4096, 4096}};
  auto session = FaultSession::Create(options);
  CHECK_OK(session.error);
  Error error = session.value->Register();
  CHECK(!error.ok());
  CHECK_CONTAINS(error.Message(), "UFFDIO_REGISTER: EINVAL at [0x10000000, +4096)");
}

}  // namespace pagetide::test
