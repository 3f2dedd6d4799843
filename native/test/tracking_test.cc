// Write tracking, against another process that writes: what the scans report must be enough to keep a copy of its
// memory byte for byte.
#include <fcntl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <set>
#include <vector>

#include "core/attach.h"
#include "core/userfault.h"
#include "core/write_tracking.h"
#include "test/guest.h"
#include "test/helper.h"
#include "test/writer.h"

namespace pagetide::test {

namespace {

int AttachTracking(const Helper& helper, uint64_t features = kTrackingFeatures) {
  auto attached = AttachUserfault(helper.pid(), features, -1);
  if (!attached.ok() && (attached.error.kind == ErrorKind::Permission ||
                         attached.error.kind == ErrorKind::Unsupported || attached.error.err == EINVAL))
    Skip(attached.error.Message());
  CHECK_OK(attached.error);
  return attached.value.fd;
}

void Order(Helper& helper, const std::string& line) {
  helper.Say(line);
  CHECK_EQ(helper.Hear(), std::string("done"));
}

// Three regions, whose order in guest memory is not that of their addresses.
std::vector<Region> Regions(const Helper& helper) {
  constexpr uint64_t kQuarter = kWriterBytes / 4;
  return {{helper.address(), 2 * kQuarter, kQuarter},
          {helper.address() + 2 * kQuarter, kQuarter, 3 * kQuarter},
          {helper.address() + 3 * kQuarter, kQuarter, 0}};
}

struct Tracked {
  explicit Tracked(const char* mode, uint64_t page_size = 4096, bool one_region = false)
      : helper(mode),
        page(page_size),
        regions(one_region ? std::vector<Region>{{helper.address(), kWriterBytes, 0}} : Regions(helper)) {
    uffd = AttachTracking(helper);
    Start();
  }
  void Start() {
    WriteTracker::Options options;
    options.pid = helper.pid();
    options.uffd = uffd;
    options.regions = regions;
    options.page_size = page;
    auto made = WriteTracker::Create(options);
    CHECK_OK(made.error);
    tracker = made.value;
    CHECK_EQ(tracker->frames(), kWriterBytes / page);
  }
  uint64_t AddressOf(uint64_t frame) const {
    for (const Region& region : regions)
      if (frame * page >= region.offset && frame * page < region.offset + region.size)
        return region.host + frame * page - region.offset;
    Fail(__FILE__, __LINE__, "frame " + std::to_string(frame) + " is outside");
  }
  uint64_t FrameOf(uint64_t offset_in_helper) const {
    for (const Region& region : regions) {
      uint64_t start = region.host - helper.address();
      if (offset_in_helper >= start && offset_in_helper < start + region.size)
        return (region.offset + offset_in_helper - start) / page;
    }
    Fail(__FILE__, __LINE__, "offset outside");
  }
  std::vector<uint8_t> Read(uint64_t frame) const {
    std::vector<uint8_t> bytes(page);
    iovec here{bytes.data(), page}, there{reinterpret_cast<void*>(AddressOf(frame)), page};
    CHECK_EQ(process_vm_readv(helper.pid(), &here, 1, &there, 1, 0), static_cast<ssize_t>(page));
    return bytes;
  }
  // One whole pass, `capacity` runs a call.
  std::set<uint64_t> Pass(size_t capacity = 100000) {
    std::vector<uint32_t> runs(2 * capacity + 1, 0xeeeeeeee);
    std::set<uint64_t> frames;
    Scanned scanned;
    calls = 0;
    do {
      CHECK_OK(tracker->Scan(runs.data(), capacity, &scanned));
      CHECK(scanned.runs <= capacity && runs[2 * capacity] == 0xeeeeeeee);
      calls++;
      for (uint32_t i = 0; i < scanned.runs; i++) {
        CHECK(runs[2 * i + 1] > 0 && uint64_t{runs[2 * i]} + runs[2 * i + 1] <= tracker->frames());
        // frames larger than the kernel's pages can begin in one call and go on in the next
        for (uint32_t n = 0; n < runs[2 * i + 1]; n++) CHECK(frames.insert(runs[2 * i] + n).second || page != 4096);
      }
    } while (!scanned.complete);
    return frames;
  }
  // A pass, and the copy brought up to date by it: scan first, read then.
  uint64_t Refresh(size_t capacity = 100000) {
    if (copy.empty()) copy.resize(tracker->frames());
    auto frames = Pass(capacity);
    for (uint64_t frame : frames) copy[frame] = Read(frame);
    return frames.size();
  }
  void Compare() const {
    for (uint64_t frame = 0; frame < copy.size(); frame++)
      if (copy[frame] != Read(frame)) Fail(__FILE__, __LINE__, "frame " + std::to_string(frame) + " was missed");
  }

  Helper helper;
  uint64_t page;
  std::vector<Region> regions;
  int uffd = -1;
  int calls = 0;
  std::shared_ptr<WriteTracker> tracker;
  std::vector<std::vector<uint8_t>> copy;
};

// Random writes between scans: a superset of what was written is reported, and a copy kept by it is right.
void RandomWrites(const char* mode, uint64_t page_size = 4096) {
  Tracked guest(mode, page_size);
  CHECK_EQ(guest.Refresh(), guest.tracker->frames());  // the first pass reports everything, holes too
  if (page_size != 4096) guest.Pass();                 // reading a hole of huge pages has allocated it
  CHECK_EQ(guest.Pass().size(), 0u);
  Random random(Seed());
  for (int round = 0; round < 25; round++) {
    uint64_t seed = random.Next(), count = 1ull << random.Below(11);
    Order(guest.helper, "write " + std::to_string(seed) + " " + std::to_string(count));
    std::set<uint64_t> written;
    Random same(seed);
    for (uint64_t i = 0; i < count; i++) written.insert(guest.FrameOf(NextWrite(same).offset));
    auto reported = guest.Pass(1 + random.Below(round % 2 == 0 ? 3 : 2000));
    for (uint64_t frame : written) CHECK(reported.count(frame) == 1);
    for (uint64_t frame : reported) guest.copy[frame] = guest.Read(frame);
    guest.Compare();
    CHECK_EQ(guest.Pass().size(), 0u);
  }
  CHECK_OK(guest.tracker->Close());
}

// Scans while another thread writes without a pause.
void WritesAllTheTime(const char* mode, size_t capacity, int rounds) {
  Tracked guest(mode);
  guest.Refresh();
  Order(guest.helper, "run " + std::to_string(Seed()));
  uint64_t seen = 0;
  for (int i = 0; i < rounds || seen == 0; i++) seen += guest.Refresh(capacity);
  Order(guest.helper, "halt");
  guest.Refresh(capacity);
  guest.Compare();
  CHECK_EQ(guest.Pass(capacity).size(), 0u);
}

void ExpectRefused(const WriteTracker::Options& options, ErrorKind kind, const char* what) {
  auto made = WriteTracker::Create(options);
  CHECK_EQ(made.error.kind, kind);
  CHECK_CONTAINS(made.error.Message(), what);
}

}  // namespace

TEST(tracking_sees_writes_to_private_memory) {
  RandomWrites("writer-private");
}

TEST(tracking_sees_writes_to_shared_memory) {
  RandomWrites("writer-shared");
}

TEST(tracking_sees_writes_to_transparent_huge_pages) {
  RandomWrites("writer-thp");
}

TEST(tracking_sees_writes_to_huge_pages) {
  if (!HugePages()) Skip("no 2 MiB huge pages to be had (nr_hugepages)");
  RandomWrites("writer-huge", 2 << 20);
}

TEST(tracking_reports_frames_larger_than_the_pages) {
  Tracked guest("writer-shared", 2 << 20);
  guest.Refresh();
  Order(guest.helper, "write 1 3");
  guest.Refresh(1);
  guest.Compare();
}

TEST(tracking_arms_again_without_a_gap_private) {
  WritesAllTheTime("writer-private", 100000, 40);
}

TEST(tracking_arms_again_without_a_gap_shared) {
  WritesAllTheTime("writer-shared", 100000, 40);
}

TEST(tracking_loses_nothing_when_runs_do_not_fit) {
  WritesAllTheTime("writer-private", 7, 6);
  Tracked guest("writer-shared");
  guest.Refresh();
  Order(guest.helper, "write 5 4000");
  auto reported = guest.Pass(1);
  CHECK(guest.calls > 100);
  Random same(5);
  for (int i = 0; i < 4000; i++) CHECK(reported.count(guest.FrameOf(NextWrite(same).offset)) == 1);
}

TEST(tracking_loses_nothing_when_many_ranges_are_written_meanwhile) {
  Tracked guest("writer-shared", 4096, true);
  guest.Refresh();
  Random random(Seed());
  for (int round = 0; round < 30; round++) {
    // While these writes are made, a scan finds many ranges, and pages that it has armed are written again.
    guest.helper.Say("write " + std::to_string(random.Next()) + " 4000");
    for (int scan = 0; scan < 4; scan++) guest.Refresh();
    CHECK_EQ(guest.helper.Hear(), std::string("done"));
    guest.Refresh();
    guest.Compare();
  }
}

TEST(tracking_reports_private_memory_that_was_dropped) {
  Tracked guest("writer-private");
  guest.Refresh();
  Order(guest.helper, "drop 40960 8192");
  auto reported = guest.Pass();
  CHECK(reported.count(guest.FrameOf(40960)) == 1 && reported.count(guest.FrameOf(45056)) == 1);
  for (uint64_t frame : reported) guest.copy[frame] = guest.Read(frame);
  guest.Compare();
}

TEST(tracking_ends_with_the_process) {
  Tracked guest("writer-private");
  guest.Refresh();
  Order(guest.helper, "write 1 10");
  guest.helper.Kill();
  uint32_t runs[8];
  Scanned scanned;
  for (int i = 0; i < 2; i++) {
    Error error = guest.tracker->Scan(runs, 4, &scanned);
    CHECK_EQ(error.err, ESRCH);
    CHECK_EQ(scanned.runs, 0u);
  }
  CHECK_OK(guest.tracker->Close());
  CHECK_OK(guest.tracker->Close());
  CHECK_EQ(guest.tracker->Scan(runs, 4, &scanned).kind, ErrorKind::Internal);
}

TEST(tracking_of_a_process_that_is_gone) {
  Helper helper("writer-private");
  int uffd = AttachTracking(helper);
  WriteTracker::Options options{helper.pid(), uffd, Regions(helper), 4096};
  helper.Kill();
  auto made = WriteTracker::Create(options);
  CHECK_EQ(made.error.err, ESRCH);
  close(uffd);
}

TEST(tracking_fails_for_good_when_memory_is_mapped_anew) {
  Tracked guest("writer-private");
  guest.Refresh();
  Order(guest.helper, "remap");
  uint32_t runs[64];
  Scanned scanned;
  for (int i = 0; i < 2; i++) {
    Error error = guest.tracker->Scan(runs, 32, &scanned);
    CHECK_EQ(error.err, EPERM);
    CHECK_CONTAINS(error.Message(), "mapped anew");
  }
  CHECK_OK(guest.tracker->Close());
  guest.uffd = AttachTracking(guest.helper);
  guest.Start();
  CHECK_EQ(guest.Refresh(), guest.tracker->frames());
  guest.Compare();
}

TEST(tracking_reports_everything_after_a_tracker_that_died) {
  Helper helper("writer-shared");
  int uffd = AttachTracking(helper);
  WriteTracker::Options options{helper.pid(), uffd, Regions(helper), 4096};
  int child = fork();
  if (child == 0) {
    auto made = WriteTracker::Create(options);
    uint32_t runs[16];
    Scanned scanned;
    _exit(made.ok() && made.value->Scan(runs, 8, &scanned).ok() && scanned.complete ? 0 : 1);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  auto made = WriteTracker::Create(options);
  CHECK_OK(made.error);
  uint32_t runs[16];
  Scanned scanned;
  uint64_t frames = 0;
  CHECK_OK(made.value->Scan(runs, 8, &scanned));
  CHECK(scanned.complete);
  for (uint32_t i = 0; i < scanned.runs; i++) frames += runs[2 * i + 1];
  CHECK_EQ(frames, made.value->frames());
}

TEST(tracking_refuses_what_it_cannot_track) {
  Helper helper("writer-private"), other("writer-private");
  int uffd = AttachTracking(helper);
  WriteTracker::Options good{helper.pid(), uffd, Regions(helper), 4096};
  auto with = [&](auto change) {
    WriteTracker::Options options = good;
    change(options);
    return options;
  };
  ExpectRefused(with([](auto& o) { o.pid = 0; }), ErrorKind::Argument, "no process");
  ExpectRefused(with([](auto& o) { o.uffd = 0; }), ErrorKind::Argument, "no userfaultfd");
  ExpectRefused(with([](auto& o) { o.regions.clear(); }), ErrorKind::Argument, "at least one region");
  ExpectRefused(with([](auto& o) { o.regions[0].host++; }), ErrorKind::Argument, "aligned");
  ExpectRefused(with([](auto& o) { o.page_size = 8192; }), ErrorKind::Argument, "page size");
  ExpectRefused(with([](auto& o) { o.regions.pop_back(); }), ErrorKind::Argument, "gap");
  // another process: one that has memory elsewhere, one that has no memory there
  ExpectRefused(with([&](auto& o) { o.pid = other.pid(); }), ErrorKind::Argument, "process");
  ExpectRefused(with([&](auto& o) { o.pid = getpid(); }), ErrorKind::Argument, "process");
  // memory that isn't there
  ExpectRefused(with([](auto& o) { o.regions = {{0x1000'0000, 4096, 0}}; }), ErrorKind::Syscall, "UFFDIO_REGISTER");
  // a userfaultfd that was made for something else
  int plain = AttachTracking(helper, kFeatures);
  ExpectRefused(with([&](auto& o) { o.uffd = plain; }), ErrorKind::Argument, "features");
  close(plain);
  // nothing of all that left anything registered
  auto made = WriteTracker::Create(good);
  CHECK_OK(made.error);
  // and what one tracks, another can't take
  int second = AttachTracking(helper);
  auto busy = WriteTracker::Create(with([&](auto& o) { o.uffd = second; }));
  CHECK_EQ(busy.error.err, EBUSY);
  close(second);
  uint32_t runs[8];
  Scanned scanned;
  CHECK_OK(made.value->Scan(runs, 4, &scanned));
  CHECK_EQ(made.value->Scan(runs, 0, &scanned).kind, ErrorKind::Argument);
}

}  // namespace pagetide::test
