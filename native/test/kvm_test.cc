// A virtual machine of KVM's, the smallest there is: a few bytes of real-mode code that read and write pages. Its
// processor's touches come through the kernel's own mapping of guest memory, not through page tables of the process.
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <set>
#include <vector>

#include "core/userfault.h"
#include "core/write_tracking.h"
#include "test/guest.h"

namespace pagetide::test {

namespace {

// All that real mode reaches; frame 0 holds the code.
constexpr uint64_t kFrames = 256;
constexpr uint64_t kPage = 4096;
constexpr uint16_t kParagraphs = kPage / 16;  // of a page, the unit of segments

// For CX pages from segment BX, DX paragraphs apart: adds 1 to the first byte of each.
constexpr uint8_t kWriteCode[] = {
    0x8e, 0xc3,              // mov es, bx
    0x26, 0xa0, 0x00, 0x00,  // mov al, es:[0]
    0x04, 0x01,              // add al, 1
    0x26, 0xa2, 0x00, 0x00,  // mov es:[0], al
    0x01, 0xd3,              // add bx, dx
    0xe2, 0xf0,              // loop
    0xf4,                    // hlt
};
constexpr uint16_t kWrite = 0;
// The same, but reads only.
constexpr uint8_t kReadCode[] = {
    0x8e, 0xc3,              // mov es, bx
    0x26, 0xa0, 0x00, 0x00,  // mov al, es:[0]
    0x01, 0xd3,              // add bx, dx
    0xe2, 0xf6,              // loop
    0xf4,                    // hlt
};
constexpr uint16_t kRead = 0x100;

void PutCode(uint8_t* page) {
  memset(page, 0, kPage);
  memcpy(page + kWrite, kWriteCode, sizeof kWriteCode);
  memcpy(page + kRead, kReadCode, sizeof kReadCode);
}

// A machine of one processor, whose memory is `memory`.
class Machine {
 public:
  explicit Machine(const Memory& memory) {
    kvm_ = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm_ < 0) Skip(std::string("/dev/kvm: ") + strerror(errno));
    vm_ = ioctl(kvm_, KVM_CREATE_VM, 0);
    if (vm_ < 0) Skip(std::string("KVM makes no machine: ") + strerror(errno));
    ioctl(vm_, KVM_SET_TSS_ADDR, 0xfffbd000);  // Intel's wants it; outside our memory
    kvm_userspace_memory_region region = {};
    region.memory_size = memory.size();
    region.userspace_addr = memory.address();
    CHECK_EQ(ioctl(vm_, KVM_SET_USER_MEMORY_REGION, &region), 0);
    vcpu_ = ioctl(vm_, KVM_CREATE_VCPU, 0);
    CHECK(vcpu_ >= 0);
    run_size_ = static_cast<size_t>(ioctl(kvm_, KVM_GET_VCPU_MMAP_SIZE, 0));
    run_ = static_cast<kvm_run*>(mmap(nullptr, run_size_, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_, 0));
    CHECK(run_ != MAP_FAILED);
  }
  ~Machine() {
    munmap(run_, run_size_);
    for (int fd : {vcpu_, vm_, kvm_}) close(fd);
  }
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  // Runs the code at `entry` over `count` frames from `first`, `stride` apart, to its end.
  void Run(uint16_t entry, uint64_t first, uint64_t count, uint64_t stride) {
    kvm_sregs segments;
    CHECK_EQ(ioctl(vcpu_, KVM_GET_SREGS, &segments), 0);
    segments.cs.base = 0;
    segments.cs.selector = 0;
    CHECK_EQ(ioctl(vcpu_, KVM_SET_SREGS, &segments), 0);
    kvm_regs registers = {};
    registers.rip = entry;
    registers.rflags = 2;
    registers.rbx = first * kParagraphs;
    registers.rcx = count;
    registers.rdx = stride * kParagraphs;
    CHECK_EQ(ioctl(vcpu_, KVM_SET_REGS, &registers), 0);
    for (;;) {
      int came = ioctl(vcpu_, KVM_RUN, 0);
      if (came == -1 && (errno == EINTR || errno == EAGAIN)) continue;
      CHECK_EQ(came, 0);
      CHECK_EQ(run_->exit_reason, static_cast<uint32_t>(KVM_EXIT_HLT));
      return;
    }
  }

 private:
  int kvm_ = -1, vm_ = -1, vcpu_ = -1;
  size_t run_size_ = 0;
  kvm_run* run_ = nullptr;
};

std::set<uint64_t> Frames(uint64_t first, uint64_t count, uint64_t stride) {
  std::set<uint64_t> frames;
  for (uint64_t i = 0; i < count; i++) frames.insert(first + i * stride);
  return frames;
}

// What the processor touches and nobody has put there yet faults, is served, and is what it works with.
void Served(Kind kind) {
  Memory memory(kind, kFrames);
  auto session = Serve(memory);
  Machine machine(memory);
  std::set<uint64_t> asked;
  auto serve = [&](uint16_t entry, uint64_t first, uint64_t count, uint64_t stride) {
    Vcpu vcpu([&] { machine.Run(entry, first, count, stride); });
    while (!vcpu.done()) {
      uint32_t frames[16];
      Waited waited;
      CHECK_OK(session->Wait(frames, 16, 10, 0, -1, &waited));
      for (uint32_t i = 0; i < waited.faults; i++) {
        uint32_t frame = frames[i];
        if (session->Claim(frame, 1, FrameState::Wanted) == 0) continue;  // asked for twice
        asked.insert(frame);
        auto page = Pages(frame, 1);
        if (frame == 0) PutCode(page.get());
        CHECK_EQ(session->Install(frame, 1, page.get()).outcome, Outcome::Done);
      }
    }
  };
  serve(kWrite, 2, 64, 2);
  std::set<uint64_t> touched = Frames(2, 64, 2);
  touched.insert(0);
  CHECK(asked == touched);
  serve(kRead, 3, 64, 2);
  touched.merge(Frames(3, 64, 2));
  CHECK(asked == touched);
  serve(kWrite, 2, 129, 1);  // all of it there by now, but for one
  touched.insert(130);
  CHECK(asked == touched);
  for (uint64_t frame : touched) {
    if (frame == 0) continue;
    auto page = Pages(frame, 1);
    page.get()[0] += frame % 2 == 0 && frame <= 128 ? 2 : 1;
    CHECK_EQ(memcmp(memory.at(frame), page.get(), kPage), 0);
  }
  SessionCounts counts = session->Counts();
  CHECK_EQ(counts.installed, touched.size());
  CHECK_EQ(counts.foreign, 0u);
  CHECK_OK(session->Unregister(true));
}

std::set<uint64_t> Pass(WriteTracker& tracker) {
  std::vector<uint32_t> runs(2 * kFrames);
  std::set<uint64_t> frames;
  Scanned scanned;
  do {
    CHECK_OK(tracker.Scan(runs.data(), kFrames, &scanned));
    for (uint32_t i = 0; i < scanned.runs; i++)
      for (uint32_t n = 0; n < runs[2 * i + 1]; n++) frames.insert(runs[2 * i] + n);
  } while (!scanned.complete);
  return frames;
}

// Each scan reports the pages that the processor has written since the last, and no others.
void Tracked(Kind kind) {
  Memory memory(kind, kFrames);
  for (uint64_t frame = 0; frame < kFrames; frame++) Fill(memory.at(frame), frame, kPage);
  PutCode(memory.at(0));
  Machine machine(memory);
  WriteTracker::Options options;
  options.pid = getpid();
  options.uffd = Uffd(kTrackingFeatures);
  options.regions = {{memory.address(), memory.size(), 0}};
  auto made = WriteTracker::Create(options);
  if (made.error.kind == ErrorKind::Unsupported) Skip(made.error.Message());
  CHECK_OK(made.error);
  WriteTracker& tracker = *made.value;
  CHECK_EQ(Pass(tracker).size(), kFrames);
  CHECK(Pass(tracker).empty());
  for (int round = 0; round < 3; round++) {
    machine.Run(kWrite, 2, 64, 2);
    CHECK(Pass(tracker) == Frames(2, 64, 2));
    machine.Run(kRead, 1, 255, 1);
    CHECK(Pass(tracker).empty());
    machine.Run(kWrite, 128, 128, 1);
    machine.Run(kWrite, 130, 1, 1);
    CHECK(Pass(tracker) == Frames(128, 128, 1));
  }
  CHECK_OK(tracker.Close());
}

}  // namespace

TEST(kvm_faults_private) {
  Served(Kind::Private);
}
TEST(kvm_faults_shared) {
  Served(Kind::Shared);
}
TEST(kvm_tracking_private) {
  Tracked(Kind::Private);
}
TEST(kvm_tracking_shared) {
  Tracked(Kind::Shared);
}

}  // namespace pagetide::test
