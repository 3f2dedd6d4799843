// Sessions over memory files: what is written, what a failed write leaves, what is punched.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>

#include "core/memory.h"
#include "test/guest.h"

namespace pagetide::test {

namespace {

using S = FrameState;
constexpr uint64_t kPage = 4096;

// An empty file on tmpfs.
int EmptyFile(uint64_t frames) {
  int fd = memfd_create("pagetide-files", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  CHECK(fd >= 0);
  CHECK(ftruncate(fd, static_cast<off_t>(frames * kPage)) == 0);
  return fd;
}

std::shared_ptr<FaultSession> Over(const std::vector<TargetFile>& files) {
  auto session = FaultSession::CreateOverFiles(files, kPage);
  CHECK_OK(session.error);
  return session.value;
}

bool FileHas(int fd, uint64_t at, uint64_t frame) {
  auto page = Pages(0, 1);
  CHECK(pread(fd, page.get(), kPage, static_cast<off_t>(at * kPage)) == static_cast<ssize_t>(kPage));
  return HasContent(page.get(), frame, kPage);
}

bool FileIsZero(int fd, uint64_t at) {
  auto page = Pages(0, 1);
  CHECK(pread(fd, page.get(), kPage, static_cast<off_t>(at * kPage)) == static_cast<ssize_t>(kPage));
  return IsAllZero(page.get(), kPage);
}

// Pages that the kernel has for the file.
uint64_t Allocated(int fd) {
  struct stat info {};
  CHECK(fstat(fd, &info) == 0);
  return static_cast<uint64_t>(info.st_blocks) * 512 / kPage;
}

}  // namespace

TEST(files_install_over_several_files) {
  int a = EmptyFile(8), b = EmptyFile(24);
  // given out of order
  auto session = Over({{b, 24 * kPage, 8 * kPage}, {a, 8 * kPage, 0}});
  CHECK_EQ(session->frames(), 32u);
  CHECK_EQ(session->Counts().outstanding, 32u);
  CHECK_EQ(session->Claim(5, 6, S::InFlight), 6u);
  CHECK_EQ(session->Claim(20, 1, S::Wanted), 1u);
  CHECK_EQ(session->Counts().wanted, 1u);
  Installed result = session->Install(4, 28, Pages(4, 28).get(), Origin::Peer);
  CHECK_EQ(result.outcome, Outcome::Done);
  CHECK_EQ(result.installed, 28u);
  CHECK_EQ(result.next, 32u);
  CHECK_EQ(session->Counts().present, 28u);
  CHECK_EQ(session->Counts().outstanding, 4u);
  for (uint64_t f = 4; f < 32; f++) {
    CHECK(f < 8 ? FileHas(a, f, f) : FileHas(b, f - 8, f));
    CHECK_EQ(session->origins()[f], static_cast<uint8_t>(Origin::Peer));
  }
  CHECK_EQ(session->origins()[0], static_cast<uint8_t>(Origin::None));
  CHECK_EQ(Allocated(a) + Allocated(b), 28u);
  // again: nothing needs it
  result = session->Install(4, 4, Pages(100, 4).get());
  CHECK_EQ(result.skipped, 4u);
  CHECK(FileHas(a, 4, 4));
  // changed: written anew, by somebody else
  session->Reset(4, 2, S::Missing);
  CHECK_EQ(session->Install(4, 4, Pages(100, 4).get(), Origin::Cache).installed, 2u);
  CHECK(FileHas(a, 5, 101));
  CHECK(FileHas(a, 6, 6));
  CHECK_EQ(session->origins()[5], static_cast<uint8_t>(Origin::Cache));
  CHECK_EQ(session->origins()[6], static_cast<uint8_t>(Origin::Peer));
  close(a);
  close(b);
}

TEST(files_from_every_source) {
  int fd = EmptyFile(12), content = EmptyFile(4);
  auto session = Over({{fd, 12 * kPage, 0}});
  auto pages = Pages(0, 4), scratch = Pages(0, 4);
  CHECK(pwrite(content, pages.get(), 4 * kPage, 0) == static_cast<ssize_t>(4 * kPage));
  CHECK_EQ(session->InstallFromFile(0, 4, content, 0, scratch.get(), 4 * kPage).installed, 4u);
  uint32_t slots[4] = {3, 1, 0, 2};
  CHECK_EQ(session->InstallFromSlots(4, 4, pages.get(), 4, slots).installed, 4u);
  for (uint64_t f = 0; f < 4; f++) {
    CHECK(FileHas(fd, f, f));
    CHECK(FileHas(fd, 4 + f, slots[f]));
  }
  close(fd);
  close(content);
}

// Whoever asks a session over files for what only a userfaultfd can do is told, and nothing happens.
TEST(files_have_no_userfaultfd) {
  int fd = EmptyFile(4);
  auto session = Over({{fd, 4 * kPage, 0}});
  CHECK_CONTAINS(session->Register().Message(), "no userfaultfd");
  CHECK_CONTAINS(session->Unregister(true).Message(), "no userfaultfd");
  CHECK_CONTAINS(session->Wake(0, 4).Message(), "no userfaultfd");
  uint32_t frame;
  Waited waited;
  CHECK_CONTAINS(session->Wait(&frame, 1, 0, 0, -1, &waited).Message(), "no userfaultfd");
  CHECK_EQ(session->MarkZero(1, 1), 1u);
  Installed result = session->InstallZero(1, 1);
  CHECK_EQ(result.outcome, Outcome::Failed);
  CHECK_EQ(result.err, EINVAL);
  CHECK_EQ(session->table()->Get(1), S::Zero);
  close(fd);
}

TEST(files_that_do_not_fit_are_refused) {
  int fd = EmptyFile(4);
  auto refused = [&](std::vector<TargetFile> files, uint64_t page = kPage) {
    return !FaultSession::CreateOverFiles(std::move(files), page).ok();
  };
  CHECK(refused({}));
  CHECK(refused({{fd, 4 * kPage, kPage}}));                          // a gap
  CHECK(refused({{fd, 4 * kPage, 0}, {fd, 4 * kPage, 2 * kPage}}));  // an overlap
  CHECK(refused({{fd, 5 * kPage, 0}}));                              // it ends before
  CHECK(refused({{fd, 100, 0}}));
  CHECK(refused({{fd, 0, 0}}));
  CHECK(refused({{fd, 4 * kPage, 0}}, 8192));
  CHECK(refused({{-1, 4 * kPage, 0}}));
  int reader = open(("/proc/self/fd/" + std::to_string(fd)).c_str(), O_RDONLY | O_CLOEXEC);
  CHECK(reader >= 0);
  CHECK(refused({{reader, 4 * kPage, 0}}));
  int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  CHECK(refused({{null, 4 * kPage, 0}}));
  close(reader);
  close(null);
  close(fd);
}

// The file can't grow beyond a limit in the middle of a page and of a run: what is whole is present, the rest as it
// was.
TEST(files_write_that_comes_short) {
  int fd = EmptyFile(16);
  auto session = Over({{fd, 16 * kPage, 0}});
  CHECK_EQ(session->Claim(5, 1, S::Wanted), 1u);
  CHECK_EQ(session->Claim(6, 2, S::InFlight), 2u);
  signal(SIGXFSZ, SIG_IGN);
  rlimit limit{5 * kPage + 100, RLIM_INFINITY};
  CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
  Installed result = session->Install(2, 6, Pages(2, 6).get());
  CHECK_EQ(result.outcome, Outcome::Failed);
  CHECK_EQ(result.err, EFBIG);
  CHECK_EQ(result.installed, 3u);
  CHECK_EQ(result.next, 5u);
  CHECK_EQ(session->table()->Get(4), S::Present);
  CHECK_EQ(session->table()->Get(5), S::Wanted);
  CHECK_EQ(session->table()->Get(6), S::InFlight);
  CHECK_EQ(session->Counts().outstanding, 13u);
  CHECK(!FileIsZero(fd, 5));  // torn
  limit.rlim_cur = RLIM_INFINITY;
  CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
  // nobody looks at it before it is written anew, or gone
  CHECK_OK(session->PunchAbsent());
  CHECK(FileIsZero(fd, 5));
  CHECK_EQ(Allocated(fd), 3u);
  CHECK_EQ(session->Install(5, 1, Pages(5, 1).get()).installed, 1u);
  CHECK(FileHas(fd, 5, 5));
  close(fd);
}

TEST(files_no_space) {
  if (!IsRoot()) Skip("mounting a small tmpfs takes root");
  std::string mount = Folder() + "/small";
  CHECK(mkdir(mount.c_str(), 0700) == 0);
  if (system(("mount -t tmpfs -o size=64k none " + mount).c_str()) != 0) Skip("a tmpfs cannot be mounted here");
  int fd = open((mount + "/ram").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  // gone with its last descriptor, whatever becomes of this test
  CHECK(system(("umount -l " + mount).c_str()) == 0);
  CHECK(fd >= 0);
  CHECK(ftruncate(fd, 64 * kPage) == 0);
  auto session = Over({{fd, 64 * kPage, 0}});
  Installed result = session->Install(0, 64, Pages(0, 64).get());
  CHECK_EQ(result.outcome, Outcome::Failed);
  CHECK_EQ(result.err, ENOSPC);
  CHECK_EQ(result.installed, 16u);
  CHECK_EQ(session->Counts().present, 16u);
  CHECK_EQ(session->Counts().outstanding, 48u);
  for (uint64_t f = 0; f < 16; f++) CHECK(FileHas(fd, f, f));
  // room again
  CHECK_OK(session->Punch(0, 8, S::Zero));
  CHECK_EQ(session->Install(16, 8, Pages(16, 8).get()).installed, 8u);
  CHECK_EQ(Allocated(fd), 16u);
  close(fd);
}

TEST(files_that_may_not_be_written) {
  int fd = EmptyFile(4);
  auto session = Over({{fd, 4 * kPage, 0}});
  CHECK_EQ(session->Install(0, 1, Pages(0, 1).get()).installed, 1u);
  CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0);
  Installed result = session->Install(1, 2, Pages(1, 2).get());
  CHECK_EQ(result.outcome, Outcome::Failed);
  CHECK_EQ(result.err, EPERM);
  CHECK_EQ(session->Counts().outstanding, 3u);
  // neither can it be punched: nothing is called zero that may not be
  CHECK_EQ(session->Claim(1, 1, S::InFlight), 1u);
  CHECK_EQ(session->MarkZero(1, 1), 0u);
  CHECK_EQ(session->table()->Get(1), S::Missing);
  CHECK(!session->Punch(0, 1, S::Zero).ok());
  CHECK_EQ(session->table()->Get(0), S::Present);
  CHECK(!session->PunchAbsent().ok());
  close(fd);
}

TEST(files_zero_is_a_hole) {
  int a = EmptyFile(8), b = EmptyFile(8);
  auto session = Over({{a, 8 * kPage, 0}, {b, 8 * kPage, 8 * kPage}});
  CHECK_EQ(session->Install(0, 16, Pages(0, 16).get()).installed, 16u);
  CHECK_OK(session->Punch(6, 4, S::Zero));  // over the border of the two
  CHECK_EQ(Allocated(a), 6u);
  CHECK_EQ(Allocated(b), 6u);
  CHECK_EQ(session->Counts().zero, 4u);
  CHECK(FileHas(a, 5, 5));
  CHECK(FileIsZero(a, 6));
  CHECK(FileIsZero(b, 1));
  CHECK(FileHas(b, 2, 10));
  // of a frame that is to come and is zero after all
  session->Reset(3, 2, S::Missing);
  CHECK_EQ(session->Claim(3, 1, S::InFlight), 1u);
  CHECK_EQ(session->MarkZero(2, 3), 2u);
  CHECK(FileIsZero(a, 3));
  CHECK(FileIsZero(a, 4));
  CHECK(FileHas(a, 2, 2));
  CHECK_EQ(session->Counts().outstanding, 0u);
  // stale content of what is missing
  session->Reset(12, 4, S::Missing);
  CHECK_EQ(Allocated(b), 6u);
  CHECK_OK(session->PunchAbsent());
  CHECK_EQ(Allocated(a) + Allocated(b), session->Counts().present);
  for (uint64_t f = 12; f < 16; f++) CHECK(FileIsZero(b, f - 8));
  CHECK(!session->Punch(0, 17, S::Zero).ok());
  close(a);
  close(b);
}

// What was copied before is what the guest's own session begins with.
TEST(files_are_adopted_by_a_userfaultfd) {
  Memory memory(Kind::Shared, 8);
  auto files = Over({{memory.fd(), 8 * kPage, 0}});
  auto session = Serve(memory);
  CHECK_EQ(files->Install(0, 5, Pages(0, 5).get()).installed, 5u);
  files->Reset(2, 1, S::Missing);  // stale
  CHECK_EQ(files->Claim(5, 1, S::Wanted), 1u);
  CHECK_EQ(files->Claim(6, 1, S::InFlight), 1u);
  CHECK_EQ(files->MarkZero(7, 1), 1u);
  CHECK_OK(files->PunchAbsent());
  CHECK_OK(session->Adopt(*files));
  S expected[8] = {S::Present, S::Present, S::Missing, S::Present, S::Present, S::Missing, S::Missing, S::Zero};
  for (uint64_t f = 0; f < 8; f++) CHECK_EQ(session->table()->Get(f), expected[f]);
  CHECK_EQ(session->Counts().outstanding, 3u);
  CHECK(!session->Unregister(false).ok());
  for (uint64_t f : {0ull, 1ull, 3ull, 4ull}) CHECK(HasContent(memory.at(f), f, kPage));  // no fault
  Vcpu vcpu([&] { CHECK_EQ(Touch(memory, 2), Word(2, 0)); });
  ExpectFault(*session, 2);
  CHECK_EQ(session->Install(2, 1, Pages(2, 1).get()).installed, 1u);
  vcpu.Join();
  CHECK_EQ(session->Install(0, 8, Pages(0, 8).get()).installed, 2u);
  CHECK_OK(session->Unregister(false));
  CHECK(IsAllZero(memory.at(7), kPage));
  auto other = Over({{memory.fd(), 4 * kPage, 0}});
  CHECK(!session->Adopt(*other).ok());
}

// Several threads write the same frames, others give them up: every frame that is present is whole.
TEST(files_stress_of_many_installers) {
  constexpr uint64_t kFrames = 256;
  int fd = EmptyFile(kFrames);
  auto session = Over({{fd, kFrames * kPage, 0}});
  std::atomic<uint64_t> installed{0};
  {
    std::vector<std::unique_ptr<Vcpu>> threads;
    for (int t = 0; t < 4; t++) {
      threads.push_back(std::make_unique<Vcpu>([&, t] {
        Random random(Seed() + static_cast<uint64_t>(t));
        auto pages = Pages(0, kFrames);
        for (int i = 0; i < 300; i++) {
          uint64_t f = random.Below(kFrames), n = 1 + random.Below(std::min<uint64_t>(40, kFrames - f));
          switch (random.Below(4)) {
            case 0: {
              uint64_t claimed = session->Claim(f, n, S::InFlight);
              if (claimed > 0) session->Release(f, claimed, S::InFlight);
              break;
            }
            case 1:
              session->Claim(f, n, S::Wanted);
              break;
            default: {
              Installed result = session->Install(f, n, pages.get() + f * kPage, Origin::Source);
              CHECK_EQ(result.outcome, Outcome::Done);
              installed += result.installed;
            }
          }
        }
        Installed rest = session->Install(0, kFrames, pages.get());
        CHECK_EQ(rest.outcome, Outcome::Done);
        installed += rest.installed;
      }));
    }
  }
  CHECK_EQ(installed.load(), kFrames);
  CHECK_EQ(session->Counts().outstanding, 0u);
  CHECK_EQ(Allocated(fd), kFrames);
  for (uint64_t f = 0; f < kFrames; f++) CHECK(FileHas(fd, f, f));
  close(fd);
}

}  // namespace pagetide::test
