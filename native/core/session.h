// A fault session: one guest's userfaultfd, its memory regions and its page table, shared by the threads that serve it.
//
// Threads: one at a time in Wait (the fault worker); any number in the install calls (fault worker, fill). The gate and
// the claims in the page table are what orders them; see gate.h and page_table.h. Nothing here blocks but Wait, and
// nothing on the way of a fault allocates.
//
// Rules it keeps, by userfaultfd(2), ioctl_userfaultfd(2) and experiment:
//  * EEXIST leaves sleepers asleep: UFFDIO_WAKE follows.
//  * EAGAIN means that an event waits to be read: the frame goes back to what it was, the caller drains and tries
//  again.
//  * A partial copy tells how far it came: that much is present, the rest goes on.
//  * A fault on a frame that is present is either late (the page is there: wake) or the guest dropped the page since
//    (zero page): UFFDIO_ZEROPAGE decides between the two atomically, it never replaces a page that is there.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/gate.h"
#include "core/page_table.h"

namespace pagetide {

class PageCache;
class ResidentIndex;

struct Region {
  uint64_t host;    // address in the guest's process
  uint64_t size;    // bytes
  uint64_t offset;  // bytes in guest memory space
};

// What an install came to. Keep equal to `Outcome` in src/memory/native.ts.
enum class Outcome : int {
  Done = 0,     // every frame is dealt with
  Again = 1,    // EAGAIN: drain events, go on from `next`
  Gone = 2,     // ESRCH: the guest's process is gone
  Foreign = 3,  // EEXIST on a frame that nobody here installed; it is `next`, and it is not woken
  Short = 4,    // the source did not give the whole page of frame `next`
  Failed = 5,   // any other errno, in `err`
  Absent = 6,   // cache or resident index lack the page of frame `next`: ask elsewhere
};

struct Installed {
  Outcome outcome = Outcome::Done;
  uint32_t installed = 0;  // frames that got their page by this call
  uint32_t skipped = 0;    // frames that needed none any more
  uint64_t next = 0;       // where to go on; frame + count when done
  int err = 0;
};

enum WaitFlags : int { kWaitStop = 1, kWaitLoop = 2, kWaitRemoved = 4, kWaitHangup = 8, kWaitSocket = 16 };

struct Waited {
  uint32_t faults = 0;
  int flags = 0;
  uint32_t removes = 0;     // frames that removes touched
  uint64_t entered_ns = 0;  // CLOCK_MONOTONIC when the wait began: what was served before it was done by then
  uint64_t read_ns = 0;     // and when the faults had been read
};

uint64_t MonotonicNanos();

struct SessionCounts {
  uint64_t total, outstanding, present, zero, removed, installed, zero_installed, skipped, faults, removes, foreign;
};

// Checks a userfaultfd and the memory that it is to be registered for: a negotiated descriptor, the page size,
// alignment, overlap, cover without gaps from offset 0. Changes nothing. Returns the regions by offset.
Result<std::vector<Region>> CheckLayout(int uffd, std::vector<Region> regions, uint64_t page_size);

// Counters in the page table's header; their order is part of its version.
enum TableCounter : size_t { kInstalled, kZeroInstalled, kSkipped, kFaults, kRemoves, kForeign };

class FaultSession {
 public:
  struct Options {
    int uffd = -1;
    std::vector<Region> regions;
    uint64_t page_size = 4096;
    bool shared = false;
    std::string table_path;
    bool recover = false;
  };

  // Checks everything (descriptor is a userfaultfd that was negotiated, page size, alignment, overlap, cover without
  // gaps from offset 0) before it takes `uffd` over. On failure the descriptor stays the caller's, and there is no
  // table.
  static Result<std::shared_ptr<FaultSession>> Create(Options options);
  ~FaultSession();

  uint64_t frames() const { return table_->frames(); }
  uint64_t page_size() const { return page_size_; }
  const std::shared_ptr<PageTable>& table() const { return table_; }
  int uffd() const { return uffd_; }

  // All regions or none. Refuses memory whose own page size is not the session's.
  Error Register();
  // Refused while content is outstanding, unless `force`. Reads the events that are under way, so that no thread of the
  // guest waits for that for ever. A guest whose process is gone has nothing registered: no error.
  Error Unregister(bool force);

  // One thread at a time. `loop_fd`: a descriptor that interrupts the wait (the thread's event loop), or -1.
  // `socket_fd`: another one (the demand connection), which is told apart from it.
  Error Wait(uint32_t* frames, uint32_t capacity, int timeout_ms, int spin_us, int loop_fd, Waited* waited,
             int socket_fd = -1);
  void Stop();
  bool stopped() const { return stopped_.load(std::memory_order_acquire); }

  // as Wanted: Missing|InFlight → Wanted for each of the frames; as InFlight: the leading run of Missing frames.
  uint64_t Claim(uint64_t frame, uint64_t count, FrameState as);
  uint64_t Release(uint64_t frame, uint64_t count, FrameState from);
  // First Missing frame at or after `frame`, or frames().
  uint64_t NextMissing(uint64_t frame) const;

  Installed Install(uint64_t frame, uint64_t count, const uint8_t* pages);
  // `scratch` holds a page at least, and up to 64 KiB are used: each thread its own.
  Installed InstallFromFile(uint64_t frame, uint64_t count, int fd, uint64_t offset, uint8_t* scratch,
                            size_t scratch_size);
  Installed InstallFromSlots(uint64_t frame, uint64_t count, const uint8_t* arena, uint64_t slots_in_arena,
                             const uint32_t* slots);
  // From the shared-page cache, up to the first frame that it lacks (Absent). The tag of frame n is at tags + 16 n; one
  // that is all zero makes its frame Zero, and counts as skipped: the page of zeros comes when the frame faults. Pages
  // of 4096 bytes only.
  Installed InstallFromCache(uint64_t frame, uint64_t count, const uint8_t* tags, PageCache& cache);
  // The same from the guests of `domain` that run here. `scratch` holds a page at least: each thread its own.
  Installed InstallFromResident(uint64_t frame, uint64_t count, const uint8_t* tags, ResidentIndex& index,
                                uint32_t domain, uint8_t* scratch, size_t scratch_size);
  Installed InstallZero(uint64_t frame, uint64_t count);
  uint64_t MarkZero(uint64_t frame, uint64_t count);
  Error Wake(uint64_t frame, uint64_t count);

  // The initial map. Not while faults are served.
  void Reset(uint64_t frame, uint64_t count, FrameState state);
  // After a crash: `present` are sorted, disjoint (first, count) pairs of the frames that the kernel has. Returns how
  // many of them nobody here installed.
  uint64_t Reconcile(const uint32_t* present, size_t pairs);

  SessionCounts Counts() const;
  bool CheckFrames(uint64_t frame, uint64_t count) const {
    return count > 0 && frame < frames() && count <= frames() - frame;
  }

 private:
  FaultSession() = default;
  const Region* RegionOfFrame(uint64_t frame) const;
  const Region* RegionOfAddress(uint64_t address) const;
  // Takes a run of frames that need content, from `frame`, not over a region's end nor `limit`; their earlier states go
  // to `before`. Must be inside the gate.
  uint32_t ClaimRun(uint64_t frame, uint64_t limit, FrameState* before);
  // One UFFDIO_COPY loop over a claimed run; puts back what was not installed.
  Outcome CopyRun(uint64_t frame, uint32_t run, const uint8_t* pages, const FrameState* before, Installed* result);
  Outcome ZeroOne(uint64_t frame, Installed* result);
  void ApplyRemove(uint64_t start, uint64_t end, Waited* waited);
  // One read of the userfaultfd, with its removes applied. Returns the errno, 0 where something was read.
  int ReadEvents(uint32_t* frames, uint32_t capacity, Waited* waited);
  // What UFFDIO_COPY says to a copy that cannot succeed: EAGAIN while an event is under way, ESRCH when the guest's
  // process is gone, something else otherwise.
  int Probe() const;
  void UnregisterRegions(size_t count);
  void EnterInstall() {
    if (gated_) gate_.EnterInstall();
  }
  void LeaveInstall() {
    if (gated_) gate_.LeaveInstall();
  }

  int uffd_ = -1;
  int stop_fd_ = -1;
  uint64_t page_size_ = 0;
  uint32_t page_shift_ = 0;
  uint32_t max_run_ = 1;  // frames a COPY
  bool shared_ = false;
  bool gated_ = false;
  std::vector<Region> regions_;  // by offset
  std::vector<const Region*> by_host_;
  std::shared_ptr<PageTable> table_;
  Gate gate_;
  std::atomic<bool> stopped_{false};
  std::atomic<bool> waiting_{false};
  std::atomic<bool> reading_{false};  // one thread in ReadEvents: the one in Wait, or the one that unregisters
  std::atomic<int64_t> outstanding_{0};
};

}  // namespace pagetide
