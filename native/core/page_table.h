// The page table of a session: one byte a frame, in a file on tmpfs, so that it outlives the agent.
//
//            claim(wanted)              install begins              installed
//   Missing ───────────────► Wanted ───────────────► Installing ───────────────► Present
//      │  ╲                    ▲  ╲                      ▲   │ EAGAIN: back to          │
//      │   ╲ claim(in flight)  │   ╲ content is zero     │   ╰ what it was before       │
//      │    ╲──────────────► InFlight ───────────────────╯                              │ remove event
//      │                       │                                                        ▼
//      ╰──────── content is zero: Zero ──► InstallingZero ──► Present               Removed
//                                               ▲                                       │
//                                               ╰──────────── it faults again ──────────╯
//
// From Removed and Zero no way leads back to a state in which content may be installed: what the guest gave up never
// comes back, however late an answer arrives. Whoever takes a frame to Installing (compare-and-swap) is the only one to
// issue UFFDIO_COPY for it: no page is installed twice, and EEXIST there means that somebody else wrote to the guest.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "core/error.h"

namespace pagetide {

enum class FrameState : uint8_t {
  Missing = 0,
  Wanted = 1,
  InFlight = 2,
  Installing = 3,
  Present = 4,
  Removed = 5,
  Zero = 6,
  InstallingZero = 7,
};

inline constexpr uint8_t kFrameStates = 8;

// True where content from outside may still be installed.
inline bool NeedsContent(FrameState s) {
  return s == FrameState::Missing || s == FrameState::Wanted || s == FrameState::InFlight;
}

// True where the frame's content may still be lacking: whatever is here, unregistering would make the frame zero.
inline bool IsOutstanding(FrameState s) {
  return NeedsContent(s) || s == FrameState::Installing;
}

class PageTable {
 public:
  // path empty: anonymous. Otherwise a new file (an old one is refused unless `recover`), a header page and then a byte
  // a frame; with `recover` the file must be of this version and of the same shape, and every byte a state.
  static Result<std::shared_ptr<PageTable>> Open(const std::string& path, uint64_t frames, uint64_t page_size,
                                                 bool recover);
  ~PageTable();
  PageTable(const PageTable&) = delete;
  PageTable& operator=(const PageTable&) = delete;

  uint64_t frames() const { return frames_; }
  uint8_t* bytes() { return bytes_; }
  // Counters that outlive the agent with the table.
  std::atomic_ref<uint64_t> counter(size_t index) { return std::atomic_ref<uint64_t>(counters_[index]); }

  FrameState Get(uint64_t frame) const {
    return static_cast<FrameState>(std::atomic_ref<uint8_t>(bytes_[frame]).load(std::memory_order_acquire));
  }
  void Set(uint64_t frame, FrameState to) {
    std::atomic_ref<uint8_t>(bytes_[frame]).store(static_cast<uint8_t>(to), std::memory_order_release);
  }
  // Compare-and-swap; on failure `from` gets what is there.
  bool Move(uint64_t frame, FrameState& from, FrameState to) {
    uint8_t expected = static_cast<uint8_t>(from);
    bool moved = std::atomic_ref<uint8_t>(bytes_[frame])
                     .compare_exchange_strong(expected, static_cast<uint8_t>(to), std::memory_order_acq_rel);
    from = static_cast<FrameState>(expected);
    return moved;
  }

 private:
  PageTable() = default;
  uint8_t* base_ = nullptr;
  uint8_t* bytes_ = nullptr;
  uint64_t* counters_ = nullptr;
  size_t mapped_ = 0;
  uint64_t frames_ = 0;
};

}  // namespace pagetide
