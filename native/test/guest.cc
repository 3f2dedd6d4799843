#include "test/guest.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>

#include "core/memory.h"
#include "core/uffd_abi.h"

namespace pagetide::test {

const uint64_t kFeatures = UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MISSING_HUGETLBFS;

Memory::Memory(Kind kind, uint64_t frames) {
  bool huge = kind == Kind::HugePrivate || kind == Kind::HugeShared;
  bool shared = kind == Kind::Shared || kind == Kind::HugeShared;
  if (huge && !HugePages()) Skip("no 2 MiB huge pages to be had (nr_hugepages)");
  page_size_ = huge ? 2 << 20 : 4096;
  size_ = frames * page_size_;
  if (shared) {
    fd_ = memfd_create("pagetide-test", MFD_CLOEXEC | (huge ? MFD_HUGETLB : 0));
    CHECK(fd_ >= 0);
    CHECK(ftruncate(fd_, static_cast<off_t>(size_)) == 0);
  }
  int flags = shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS | (huge ? MAP_HUGETLB : 0);
  void* p = mmap(nullptr, size_, PROT_READ | PROT_WRITE, flags, fd_, 0);
  CHECK(p != MAP_FAILED);
  base_ = static_cast<uint8_t*>(p);
  if (!huge) madvise(base_, size_, MADV_NOHUGEPAGE);
}

Memory::~Memory() {
  munmap(base_, size_);
  if (alias_ != nullptr) munmap(alias_, size_);
  if (fd_ >= 0) close(fd_);
}

uint8_t* Memory::alias() {
  if (alias_ == nullptr) {
    void* p = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
    CHECK(p != MAP_FAILED);
    alias_ = static_cast<uint8_t*>(p);
  }
  return alias_;
}

void Fill(uint8_t* page, uint64_t frame, uint64_t page_size) {
  auto* words = reinterpret_cast<uint64_t*>(page);
  for (uint64_t i = 0; i < page_size / 8; i++) words[i] = Word(frame, i);
}

std::unique_ptr<uint8_t, void (*)(void*)> Pages(uint64_t frame, uint64_t count, uint64_t page_size) {
  void* p = nullptr;
  CHECK(posix_memalign(&p, 4096, count * page_size) == 0);
  auto* bytes = static_cast<uint8_t*>(p);
  for (uint64_t i = 0; i < count; i++) Fill(bytes + i * page_size, frame + i, page_size);
  return {bytes, free};
}

bool HasContent(const uint8_t* page, uint64_t frame, uint64_t page_size) {
  auto* words = reinterpret_cast<const volatile uint64_t*>(page);
  for (uint64_t i = 0; i < page_size / 8; i++) {
    if (words[i] != Word(frame, i)) return false;
  }
  return true;
}

bool IsAllZero(const uint8_t* page, uint64_t page_size) {
  auto* words = reinterpret_cast<const volatile uint64_t*>(page);
  for (uint64_t i = 0; i < page_size / 8; i++) {
    if (words[i] != 0) return false;
  }
  return true;
}

int Uffd(uint64_t features) {
  auto made = CreateUserfault(features, true);
  if (!made.ok()) Skip(made.error.Message());
  return made.value.fd;
}

std::shared_ptr<FaultSession> Serve(const Memory& memory, const std::function<void(FaultSession::Options&)>& more) {
  FaultSession::Options options;
  options.uffd = Uffd();
  options.regions = {{memory.address(), memory.size(), 0}};
  options.page_size = memory.page_size();
  options.shared = memory.fd() >= 0;
  if (more) more(options);
  auto session = FaultSession::Create(options);
  CHECK_OK(session.error);
  CHECK_OK(session.value->Register());
  return session.value;
}

Vcpu::Vcpu(std::function<void()> work)
    : thread_([this, work = std::move(work)] {
        tid_.store(static_cast<int>(syscall(SYS_gettid)));
        work();
        done_.store(true);
      }) {}

void Vcpu::WaitAsleep() const {
  for (;;) {
    CHECK(!done());
    if (int tid = tid_.load()) {
      std::ifstream file("/proc/self/task/" + std::to_string(tid) + "/stat");
      std::string text((std::istreambuf_iterator<char>(file)), {});
      size_t end = text.rfind(')');
      if (end != std::string::npos && (text[end + 2] == 'S' || text[end + 2] == 'D')) return;
    }
    std::this_thread::yield();
  }
}

uint64_t Touch(const Memory& memory, uint64_t frame) {
  return *reinterpret_cast<const volatile uint64_t*>(memory.at(frame));
}

void ExpectFault(FaultSession& session, uint64_t frame) {
  uint32_t got = 0;
  Waited waited;
  while (waited.faults == 0) CHECK_OK(session.Wait(&got, 1, 100, 0, -1, &waited));
  CHECK_EQ(static_cast<uint64_t>(got), frame);
}

uint32_t ExpectRemove(FaultSession& session) {
  Waited waited;
  uint32_t frame;
  while ((waited.flags & kWaitRemoved) == 0) {
    CHECK_OK(session.Wait(&frame, 1, 100, 0, -1, &waited));
    CHECK_EQ(waited.faults, 0u);
  }
  return waited.removes;
}

Waited Drain(FaultSession& session, std::vector<uint32_t>* faults) {
  uint32_t frames[64];
  Waited waited;
  CHECK_OK(session.Wait(frames, 64, 0, 0, -1, &waited));
  if (faults != nullptr) faults->insert(faults->end(), frames, frames + waited.faults);
  return waited;
}

}  // namespace pagetide::test
