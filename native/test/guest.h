// Guest memory inside the test's process: mapped in every kind that a VMM uses, with known content for every frame, and
// threads that touch it.
#pragma once

#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "core/session.h"
#include "core/userfault.h"
#include "test/harness.h"

namespace pagetide::test {

enum class Kind { Private, Shared, HugePrivate, HugeShared };

// Memory of one region; unmapped at the end.
class Memory {
 public:
  Memory(Kind kind, uint64_t frames);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  uint8_t* at(uint64_t frame) const { return base_ + frame * page_size_; }
  uint64_t address() const { return reinterpret_cast<uint64_t>(base_); }
  uint64_t size() const { return size_; }
  uint64_t frames() const { return size_ / page_size_; }
  uint64_t page_size() const { return page_size_; }
  int fd() const { return fd_; }  // of shared memory
  // Another mapping of the same shared memory, which is not registered.
  uint8_t* alias();

 private:
  uint8_t* base_ = nullptr;
  uint8_t* alias_ = nullptr;
  uint64_t size_, page_size_;
  int fd_ = -1;
};

// The content of a frame: word `i` of it.
inline uint64_t Word(uint64_t frame, uint64_t i) {
  uint64_t z = (frame + 1) * 0x9e3779b97f4a7c15ull + i * 0xbf58476d1ce4e5b9ull;
  return (z ^ (z >> 29)) | 1;  // never zero
}
void Fill(uint8_t* page, uint64_t frame, uint64_t page_size);
// `count` pages of content from `frame` on, page aligned.
std::unique_ptr<uint8_t, void (*)(void*)> Pages(uint64_t frame, uint64_t count, uint64_t page_size = 4096);
bool HasContent(const uint8_t* page, uint64_t frame, uint64_t page_size);
bool IsAllZero(const uint8_t* page, uint64_t page_size);

// Features that a post-copy session uses: remove events, shared memory, huge pages.
extern const uint64_t kFeatures;

// A session over `memory` at offset 0, registered. With `options`, more is set before it is made.
std::shared_ptr<FaultSession> Serve(const Memory& memory, const std::function<void(FaultSession::Options&)>& more = {});
// A userfaultfd of ours; the test is skipped where none is to be had.
int Uffd(uint64_t features = kFeatures);

// A guest thread that does one thing and may fall asleep in a fault.
class Vcpu {
 public:
  explicit Vcpu(std::function<void()> work);
  ~Vcpu() { Join(); }
  bool done() const { return done_.load(); }
  void Join() {
    if (thread_.joinable()) thread_.join();
  }
  // Until the kernel says that the thread sleeps (in a fault, or in madvise).
  void WaitAsleep() const;

 private:
  std::atomic<bool> done_{false};
  std::atomic<int> tid_{0};
  std::thread thread_;
};
// Reads the first word of a frame, without letting the compiler have an opinion.
uint64_t Touch(const Memory& memory, uint64_t frame);

// Waits until a fault comes and checks that it is `frame`.
void ExpectFault(FaultSession& session, uint64_t frame);
// Waits until removes come; returns the frames that they touched.
uint32_t ExpectRemove(FaultSession& session);
// A wait that doesn't sleep: drains events; `faults` gets what was read.
Waited Drain(FaultSession& session, std::vector<uint32_t>* faults = nullptr);

}  // namespace pagetide::test
