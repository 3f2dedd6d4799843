// How long the touching thread was stopped by first touches of pages: a log-linear histogram and a set of pages.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <memory>

namespace guest {

inline uint64_t NowNs(clockid_t clock) {
  struct timespec t = {};
  clock_gettime(clock, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1'000'000'000ull + static_cast<uint64_t>(t.tv_nsec);
}
inline int64_t UnixMicros() {
  return static_cast<int64_t>(NowNs(CLOCK_REALTIME) / 1000);
}

// Durations from 2 µs (shorter ones are no stalls but ordinary page table work) to over an hour; 32 steps a power of
// two, so a percentile is at most 3% off. Any thread may record and read at any time.
class StallHistogram {
 public:
  static constexpr uint64_t kShortestNs = 2000;

  void Record(uint64_t ns) {
    if (ns < kShortestNs) return;
    buckets_[Bucket(ns)].fetch_add(1, std::memory_order_relaxed);
    uint64_t max = max_.load(std::memory_order_relaxed);
    while (ns > max && !max_.compare_exchange_weak(max, ns, std::memory_order_relaxed)) {
    }
  }

  void Reset() {
    for (auto& bucket : buckets_) bucket.store(0, std::memory_order_relaxed);
    max_.store(0, std::memory_order_relaxed);
  }

  struct Summary {
    uint64_t count;
    double p50_us, p99_us, max_us;
  };
  Summary Summarise() const {
    uint64_t counts[kBuckets];
    uint64_t total = 0;
    for (int i = 0; i < kBuckets; i++) total += counts[i] = buckets_[i].load(std::memory_order_relaxed);
    const double max = static_cast<double>(max_.load(std::memory_order_relaxed)) / 1000;
    const auto at = [&](double fraction) {
      uint64_t seen = 0;
      for (int i = 0; i < kBuckets; i++) {
        seen += counts[i];
        if (seen > 0 && static_cast<double>(seen) >= fraction * static_cast<double>(total)) {
          const double middle = static_cast<double>(Low(i) + Low(i + 1)) / 2000;
          return middle < max ? middle : max;
        }
      }
      return 0.0;
    };
    return {total, at(0.50), at(0.99), max};
  }

 private:
  static constexpr int kFirst = 10;  // 2^10 ns
  static constexpr int kLast = 42;
  static constexpr int kSteps = 32;
  static constexpr int kBuckets = (kLast - kFirst) * kSteps;

  static int Bucket(uint64_t ns) {
    int power = 63 - __builtin_clzll(ns);
    if (power >= kLast) return kBuckets - 1;
    return (power - kFirst) * kSteps + static_cast<int>((ns >> (power - 5)) & (kSteps - 1));
  }
  static uint64_t Low(int bucket) {
    const int power = kFirst + bucket / kSteps;
    return (1ull << power) + (static_cast<uint64_t>(bucket % kSteps) << (power - 5));
  }

  std::atomic<uint64_t> buckets_[kBuckets] = {};
  std::atomic<uint64_t> max_{0};
};

// Which pages were touched since a restore. A byte a page, as several threads set neighbours.
class TouchMap {
 public:
  explicit TouchMap(uint64_t pages) : touched_(new std::atomic<uint8_t>[pages]()) {}

  // Touches `address`, a byte of page `page`, and records how long that took if it is the first time.
  void Touch(uint64_t page, const volatile uint8_t* address, StallHistogram* stalls) {
    if (touched_[page].load(std::memory_order_relaxed) != 0) return;
    const uint64_t before = NowNs(CLOCK_MONOTONIC);
    [[maybe_unused]] const uint8_t byte = *address;
    stalls->Record(NowNs(CLOCK_MONOTONIC) - before);
    touched_[page].store(1, std::memory_order_relaxed);
  }

 private:
  std::unique_ptr<std::atomic<uint8_t>[]> touched_;
};

}  // namespace guest
