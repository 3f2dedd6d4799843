// Keeps page installs and the reading of remove events apart.
//
// Why: on private memory, MADV_DONTNEED in the guest's process waits until its REMOVE event has been read, then drops
// the pages. From the read on, an install of old content would bring back what the guest gave up. So a reader of events
// must (1) have no install under way, (2) read, (3) mark the frames as removed, before (4) installs go on, which look
// at the frame's state inside the gate:
//
//   installer:  enter ─ state? claim ─ UFFDIO_COPY ─ mark ─ leave
//   reader:                                                 enter ─ read(uffd) ─ mark removed ─ leave
//   guest:                                                               └─ madvise goes on, drops the page
//
// The reader goes first: installers stand back as soon as one waits, and what they hold the gate for is one bounded
// ioctl, so that a fault waits for bulk at most that long.
#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>

namespace pagetide {

class Gate {
 public:
  void EnterInstall() {
    for (;;) {
      while (reader_.load(std::memory_order_acquire)) Relax();
      installers_.fetch_add(1, std::memory_order_seq_cst);
      if (!reader_.load(std::memory_order_seq_cst)) return;
      installers_.fetch_sub(1, std::memory_order_release);
    }
  }
  void LeaveInstall() { installers_.fetch_sub(1, std::memory_order_release); }

  // One reader at a time: the session admits one thread to `Wait`.
  void EnterRead() {
    reader_.store(true, std::memory_order_seq_cst);
    while (installers_.load(std::memory_order_seq_cst) != 0) Relax();
  }
  void LeaveRead() { reader_.store(false, std::memory_order_release); }

 private:
  // Two cores may be all there is: give the CPU away instead of burning the other side's slice.
  static void Relax() { sched_yield(); }

  alignas(64) std::atomic<bool> reader_{false};
  alignas(64) std::atomic<uint32_t> installers_{0};
};

}  // namespace pagetide
