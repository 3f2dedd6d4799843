// The workload and its proof: what it keeps in memory, what it keeps in registers, and how a wrong page shows.
//
//   guest memory, in units of 4 KiB                                    registers ("device state", never in memory)
//   ┌──────────── data units ────────────┬──── table units ────┐
//   │ group 0 │ group 1 │ … (512 each)   │ table 0 │ table 1 │ │      sums[g] = Σ Bind(unit, hash) over table g
//   └─────────────────────────────────────┴─────────────────────┘      per thread: random state, operations, chain,
//        table g holds the expected hash of every unit of group g      generation, root share, last beat
//        (0: the unit was never touched, and reads as zero)            Σ root shares = Σ sums
//
// Each step checks sums[g] against table g, and the table against the unit, before it rewrites the unit. So a stale,
// lost or zero data unit is noticed at its next use, because it differs from the table; a stale or zero table unit
// because it differs from sums[g]; and a *consistent* stale pair of both too, because sums[g] is in the registers.
// `Verify` makes the same comparison for every unit, and the roots on top.
//
// Threads own whole groups (g % threads), so they share no unit and no register.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "guest/memory.h"
#include "guest/options.h"
#include "guest/stalls.h"
#include "guest/state.h"

namespace guest {

class Workload {
 public:
  enum class State { kIncoming, kPaused, kRunning };
  static constexpr size_t kFailuresKept = 16;

  Workload(Memory* memory, const Options& options);

  // Fills memory with content and sets the registers up. Through a bounce buffer: guest memory is no system call's
  // buffer.
  bool Fill(const Options& options, std::string* error);
  // Starts the threads, running or (incoming) parked.
  void Start(bool incoming);

  // The control side. These take turns (one mutex); each waits until every thread is parked, or runs again.
  // All return false with `error` where the state doesn't allow it.
  bool Pause(int64_t* unix_micros, std::string* error);
  bool Resume(int64_t* unix_micros, std::string* error);
  bool Save(std::vector<uint8_t>* bytes, std::string* error);
  // Checks the state, touches a few pages (as restoring devices does) and takes the registers over. All or nothing.
  bool Load(const std::vector<uint8_t>& bytes, std::string* error);

  struct Verdict {
    bool verified;
    std::vector<uint64_t> bad;  // pages, the first few
    uint64_t bad_count;
    std::string detail;
  };
  bool Verify(Verdict* verdict, std::string* error);
  bool Give(uint64_t frame, uint64_t count, Memory::Remove how, std::string* error);
  // One write by the workload's rules, now.
  bool Poke(uint64_t frame, uint64_t* hash, std::string* error);
  // Makes `count` frames from `frame` on the same as those from `from` on, all at once.
  bool Copy(uint64_t frame, uint64_t from, uint64_t count, std::string* error);

  // Any time, without waiting for the threads.
  State state() const { return state_.load(std::memory_order_acquire); }
  struct Snapshot {
    uint64_t operations;
    uint64_t root;   // as of the last stop
    uint64_t chain;  // likewise
    int64_t last_beat;
    int64_t longest_gap;
    uint64_t failure_count;
    std::vector<Failure> failures;
    uint64_t seed;
    double write_rate, read_rate, working_set, zero_fraction;
  };
  Snapshot Look() const;
  StallHistogram::Summary Stalls() const { return stalls_.Summarise(); }
  void ResetStats();
  bool IsHot(uint64_t unit) const;
  uint32_t threads() const { return static_cast<uint32_t>(beat_.size()); }
  uint64_t data_units() const { return data_units_; }
  // What the table says about a data unit. Touches memory.
  uint64_t Expected(uint64_t unit) const { return Table(unit / kGroup)[unit % kGroup]; }

 private:
  void Run(uint32_t thread);
  void Step(uint32_t thread, bool write, uint64_t unit);
  void Beat(uint32_t thread);
  void Park();
  void Hold();
  void Release();
  void Fail(Failure failure);
  void PlanWorkingSet();
  bool CheckTable(uint64_t group);
  void SetEntry(uint32_t thread, uint64_t unit, uint64_t hash);
  uint64_t* Table(uint64_t group) const { return reinterpret_cast<uint64_t*>(memory_->Unit(data_units_ + group)); }
  uint64_t SumOf(uint64_t group) const;
  uint64_t PageOf(uint64_t unit) const { return unit * kUnit / memory_->page_size(); }
  uint32_t OwnerOf(uint64_t group) const { return static_cast<uint32_t>(group % registers_.threads.size()); }
  bool PageIsRight(uint64_t unit, uint64_t expected, uint64_t* actual) const;
  uint64_t PickUnit(uint32_t thread);
  void Publish();

  Memory* memory_;
  uint64_t data_units_;
  uint64_t groups_;
  Registers registers_;
  std::vector<std::vector<uint64_t>> hot_;  // by thread: the units of its working set

  std::vector<std::thread> workers_;
  std::atomic<State> state_{State::kIncoming};
  std::mutex command_mutex_;
  int64_t paused_at_ = 0;
  int64_t resumed_at_ = 0;

  // Parking. `hold_` is read without the mutex at every step, and changed under it.
  std::mutex park_mutex_;
  std::condition_variable park_changed_;  // for the control side
  std::condition_variable hold_changed_;  // for the threads
  std::atomic<bool> hold_{true};
  size_t parked_ = 0;

  mutable std::mutex failures_mutex_;      // for the failures, and for the move of the registers as a whole
  std::vector<std::atomic<int64_t>> gap_;  // by thread; mirrors of registers that others read while it runs
  std::vector<std::atomic<int64_t>> beat_;
  std::vector<std::atomic<uint64_t>> operations_;
  std::atomic<uint64_t> published_root_{0};
  std::atomic<uint64_t> published_chain_{0};
  std::atomic<bool> measure_{false};  // memory came from elsewhere: first touches may stall
  StallHistogram stalls_;
  TouchMap touched_;
};

}  // namespace guest
