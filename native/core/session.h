// A fault session: one guest's memory and its page table, shared by the threads that bring its pages. The memory is
// either registered with a userfaultfd, while the guest runs or waits for it, or written in its files, before that.
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
//
// And of a session over files (session_files.cc):
//  * Pages are written by pwrite, never through a mapping: a full tmpfs is an errno, not SIGBUS.
//  * A frame is Present only once its whole page is written. What a write that failed half-way leaves is in a frame
//    that is not: it is written anew, or punched (PunchAbsent), before anybody looks.
//  * A frame that is Zero is a hole.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/gate.h"
#include "core/layout.h"
#include "core/page_table.h"

namespace pagetide {

class PageCache;
class ResidentIndex;

// What one call may move while a fault may be waiting behind it: 64 KiB take about 30 µs.
inline constexpr uint64_t kMaxRunBytes = 64 * 1024;
inline constexpr uint32_t kMaxRunFrames = kMaxRunBytes / 4096;

// Where the page of a frame came from. Keep equal to `Origin` in src/memory/native.ts.
enum class Origin : uint8_t { None = 0, Source = 1, Cache = 2, Resident = 3, Duplicate = 4, Peer = 5 };

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
  uint64_t total, outstanding, wanted, present, zero, removed, installed, zero_installed, skipped, faults, removes,
      foreign;
};

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
  // A session over memory files, of which no page is there: descriptors of its own are made of theirs, and every frame
  // is Missing. Nothing that needs a userfaultfd works on it: Register, Unregister, Wait, InstallZero, Wake.
  static Result<std::shared_ptr<FaultSession>> CreateOverFiles(const std::vector<TargetFile>& files,
                                                               uint64_t page_size);
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

  Installed Install(uint64_t frame, uint64_t count, const uint8_t* pages, Origin origin = Origin::Source);
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
  // What another session has of the same memory: Present and Zero as there, everything else Missing. Not while either
  // is in use.
  Error Adopt(const FaultSession& from);

  // Of a session over files, while nothing is installed. Takes the pages of these frames out of their files, and sets
  // their state; none is changed where it fails.
  Error Punch(uint64_t frame, uint64_t count, FrameState state);
  // Takes out whatever is in frames that are not Present: then the files have exactly those that are.
  Error PunchAbsent();
  // A byte a frame, Origin of the page that was put there last. Null without files.
  const std::shared_ptr<uint8_t[]>& origins() const { return origins_; }
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
  // Puts pages into a claimed run; puts back the states of what was not installed.
  Outcome PutRun(uint64_t frame, uint32_t run, const uint8_t* pages, const FrameState* before, Origin origin,
                 Installed* result);
  // The two ways: a UFFDIO_COPY loop, a pwrite loop. `done`: frames that are Present now.
  Outcome CopyRun(uint64_t frame, uint32_t run, const uint8_t* pages, uint32_t* done, Installed* result);
  Outcome WriteRun(uint64_t frame, uint32_t run, const uint8_t* pages, Origin origin, uint32_t* done,
                   Installed* result);
  // Frees the space of `count` frames; the errno.
  int PunchFiles(uint64_t frame, uint64_t count);
  // Of a frame that needs content: it is zero. False where it needs none, or its file can't be punched.
  bool ZeroInFile(uint64_t frame);
  Error SetUp(const std::string& table_path, bool recover);
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
  std::vector<Region> regions_;  // by offset; of files, their `host` is 0
  std::vector<int> files_;       // those of the regions, as many; none with a userfaultfd
  std::shared_ptr<uint8_t[]> origins_;
  std::vector<const Region*> by_host_;
  std::shared_ptr<PageTable> table_;
  Gate gate_;
  std::atomic<bool> stopped_{false};
  std::atomic<bool> waiting_{false};
  std::atomic<bool> reading_{false};  // one thread in ReadEvents: the one in Wait, or the one that unregisters
  std::atomic<int64_t> outstanding_{0};
};

}  // namespace pagetide
