// Which frames of a running process were written since the last look: userfaultfd's asynchronous write protection, read
// with PAGEMAP_SCAN (Linux 6.7). The guest never waits for us: its first write to a protected page takes a fault that
// the kernel resolves by itself.
//
//   Create ── UFFDIO_REGISTER(WP) on every region
//   Scan   ── first pass: arms everything, reports every frame
//          ── later: PAGEMAP_SCAN finds the pages that are not protected any more, reports them and protects them
//             again, page by page under the page table's lock
//   Close  ── UFFDIO_UNREGISTER, which takes the protection away
//
// Nothing is lost:
//  * A write before the kernel protects the page again is in what the page holds when it is read after the scan; a
//    write after that is in the next scan. So: scan first, read then. The other way round misses what was written in
//    between.
//  * The kernel protects a page again only when it has room to report it, and says in `walk_end` where it stopped. It
//    gets room for no more ranges than the caller does, and each makes at most one pair for the caller; the next call
//    goes on from there. Nor does it get room for more than it collects in one walk, see kVec; and a range that lies
//    before the last pair is never joined to it.
//  * A scan that fails may have protected pages that it doesn't report. The tracker is worth nothing then: it says so
//    at every later call, and the caller makes a new one, whose first pass reports everything.
//
// What it can't see: writes through another process's mapping or by write(2) to the file, and DMA that was under way
// when the scan ran (see docs/pages.md). Holes that are punched into shared memory are not reported either, nor the
// pages of zeros that reading brings there: see file_changes.h. Every region must stay mapped where it is.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/error.h"
#include "core/session.h"
#include "core/uffd_abi.h"

namespace pagetide {

// The features that a userfaultfd needs for tracking, to be negotiated when it is made.
extern const uint64_t kTrackingFeatures;

struct Scanned {
  uint32_t runs = 0;     // pairs that were written
  bool complete = true;  // false: the pass goes on with the next call
};

class WriteTracker {
 public:
  struct Options {
    int pid = -1;
    int uffd = -1;  // of that process, of the tracker's own: registering takes away whatever else it was registered for
    std::vector<Region> regions;
    uint64_t page_size = 4096;
  };

  // Checks everything before it registers anything; all regions or none. On success it owns `uffd`, on failure the
  // caller keeps it. `pid` must be the process that the userfaultfd belongs to. Unsupported, with what lacks, where
  // kernel or memory can't do it; ESRCH where the process is gone.
  static Result<std::shared_ptr<WriteTracker>> Create(const Options& options);
  ~WriteTracker();
  WriteTracker(const WriteTracker&) = delete;
  WriteTracker& operator=(const WriteTracker&) = delete;

  // Writes up to `capacity` (at least 1) runs to `runs` as (first frame, count) pairs, by region and address, disjoint.
  // A frame is a page of `page_size` in guest memory space. One thread at a time; another is refused. Allocates nothing
  // unless it fails.
  Error Scan(uint32_t* runs, size_t capacity, Scanned* scanned);
  // Ends tracking and closes the descriptor. Idempotent; no error where the process is gone.
  Error Close();

  uint64_t frames() const { return frames_; }

 private:
  WriteTracker() = default;
  Error Register();
  void UnregisterRegions(size_t count);
  // Whether the process whose pagemap is open still has its memory.
  Error CheckAlive() const;
  // That every page of the regions is tracked in the process that is looked at.
  Error CheckCover();
  Error ScanInto(uint32_t* runs, size_t capacity, Scanned* scanned);
  // One PAGEMAP_SCAN from the cursor to the end of its region.
  Error Walk(const Region& region, PagemapScanArg* arg, long* ranges);

  // Ranges a call: as many as the kernel collects in one walk. Asked for more it walks several times, and when the last
  // of them reaches the end `walk_end` still says where the one before stopped (Linux 6.7 to 6.18).
  static constexpr size_t kVec = 512;

  int pid_ = -1;
  int uffd_ = -1;
  int pagemap_ = -1;
  uint64_t page_size_ = 0;
  uint64_t frames_ = 0;
  std::vector<Region> regions_;  // by offset
  bool first_pass_ = true;
  size_t region_ = 0;  // where the pass goes on
  uint64_t at_ = 0;    // bytes into that region
  Error failed_;
  std::atomic<bool> busy_{false};
  PageRegion vec_[kVec];
};

}  // namespace pagetide
