#include "guest/workload.h"

#include <algorithm>
#include <chrono>

#include "guest/fill.h"

namespace guest {

namespace {

// Frames that belong together (hot, never touched) come in runs, as in real memory.
constexpr uint64_t kRun = 16;
// One step in this many leaves the working set; so frames that were never touched come into use now and then.
constexpr uint64_t kFarStep = 256;

// A number in [0, 1) that seed, purpose and run of frames decide: the same wherever the guest goes.
double Chance(uint64_t seed, uint64_t purpose, uint64_t unit) {
  uint64_t state = seed ^ Fold(purpose, unit / kRun + 1);
  return static_cast<double>(NextRandom(&state) >> 11) * 0x1p-53;
}

}  // namespace

Workload::Workload(Memory* memory, const Options& options)
    : memory_(memory), groups_((memory->units() + kGroup) / (kGroup + 1)), touched_(memory->frames()) {
  data_units_ = memory->units() - groups_;
  const uint32_t threads = std::min<uint32_t>(options.threads, static_cast<uint32_t>(std::min<uint64_t>(groups_, 64)));
  registers_.seed = options.seed;
  registers_.write_rate = options.write_rate;
  registers_.read_rate = options.read_rate;
  registers_.working_set = options.working_set;
  registers_.zero_fraction = options.zero_fraction;
  registers_.threads.resize(threads);
  registers_.sums.resize(groups_);
  for (uint32_t i = 0; i < threads; i++) registers_.threads[i].random = Fold(options.seed + 1, kSalt[3] + i);
  gap_ = std::vector<std::atomic<int64_t>>(threads);
  beat_ = std::vector<std::atomic<int64_t>>(threads);
  operations_ = std::vector<std::atomic<uint64_t>>(threads);
}

bool Workload::Fill(const Options& options, std::string* error) {
  FileContent content(options.fill_from);
  std::vector<uint64_t> table(kGroup);
  for (uint64_t group = 0; group < groups_; group++) {
    std::fill(table.begin(), table.end(), 0);
    bool any = false;
    uint64_t sum = 0;
    for (uint64_t i = 0; i < kGroup; i++) {
      const uint64_t unit = group * kGroup + i;
      if (unit < data_units_ && Chance(registers_.seed, 1, unit) >= registers_.zero_fraction) {
        const uint8_t* page = content.Next();
        if (page == nullptr) {
          *error = "no readable files with content below " + options.fill_from;
          return false;
        }
        memcpy(memory_->Unit(unit), page, kUnit);
        table[i] = HashUnit(page);
        any = true;
      }
      sum += Bind(unit, table[i]);
    }
    // A table of untouched frames stays untouched itself.
    if (any) memcpy(memory_->Unit(data_units_ + group), table.data(), kUnit);
    registers_.sums[group] = sum;
    registers_.threads[OwnerOf(group)].root += sum;
  }
  return true;
}

bool Workload::IsHot(uint64_t unit) const {
  const double touched = 1 - registers_.zero_fraction;
  return unit < data_units_ && Chance(registers_.seed, 1, unit) >= registers_.zero_fraction &&
         Chance(registers_.seed, 2, unit) * touched < registers_.working_set;
}

void Workload::PlanWorkingSet() {
  hot_.assign(registers_.threads.size(), {});
  for (uint64_t unit = 0; unit < data_units_; unit++) {
    if (IsHot(unit)) hot_[OwnerOf(unit / kGroup)].push_back(unit);
  }
}

void Workload::Start(bool incoming) {
  if (!incoming) {
    PlanWorkingSet();
    hold_ = false;
    state_ = State::kRunning;
    resumed_at_ = UnixMicros();
  }
  for (uint32_t i = 0; i < threads(); i++) workers_.emplace_back([this, i] { Run(i); });
}

uint64_t Workload::PickUnit(uint32_t thread) {
  uint64_t* random = &registers_.threads[thread].random;
  const uint64_t draw = NextRandom(random);
  const auto& hot = hot_[thread];
  if (draw % kFarStep != 0 && !hot.empty()) return hot[(draw >> 8) % hot.size()];
  const uint64_t threads = registers_.threads.size();
  const uint64_t owned = (groups_ - thread + threads - 1) / threads;
  const uint64_t group = thread + (draw >> 8) % owned * threads;
  const uint64_t units = std::min(kGroup, data_units_ - group * kGroup);
  return group * kGroup + NextRandom(random) % units;
}

void Workload::Run(uint32_t thread) {
  using Clock = std::chrono::steady_clock;
  // Without work the heart still beats.
  constexpr auto kIdle = std::chrono::milliseconds(5);
  // What wasn't done in this long is never made up for: a guest that was stopped doesn't run faster afterwards.
  constexpr auto kBacklog = std::chrono::milliseconds(50);
  auto due = Clock::now();
  for (;;) {
    if (hold_.load(std::memory_order_acquire)) Park();
    const double share = static_cast<double>(registers_.threads.size());
    const double rate = (registers_.write_rate + registers_.read_rate) / share;
    const auto now = Clock::now();
    Beat(thread);
    if (rate > 0 && due <= now) {
      uint64_t* random = &registers_.threads[thread].random;
      const double draw = static_cast<double>(NextRandom(random) >> 11) * 0x1p-53;
      Step(thread, draw * (registers_.write_rate + registers_.read_rate) < registers_.write_rate, PickUnit(thread));
      due = std::max(due, now - kBacklog) + std::chrono::nanoseconds(static_cast<int64_t>(1e9 / rate));
      continue;
    }
    const auto wake = rate > 0 ? std::min<Clock::time_point>(due, now + kIdle) : now + kIdle;
    std::unique_lock lock(park_mutex_);
    hold_changed_.wait_until(lock, wake, [this] { return hold_.load(std::memory_order_relaxed); });
  }
}

void Workload::Beat(uint32_t thread) {
  ThreadRegisters& r = registers_.threads[thread];
  const int64_t now = UnixMicros();
  const int64_t gap = r.last_beat == 0 ? 0 : now - r.last_beat;
  if (gap > gap_[thread].load(std::memory_order_relaxed)) gap_[thread].store(gap, std::memory_order_relaxed);
  r.last_beat = now;
  beat_[thread].store(now, std::memory_order_relaxed);
}

uint64_t Workload::SumOf(uint64_t group) const {
  const uint64_t* table = Table(group);
  uint64_t sum = 0;
  for (uint64_t i = 0; i < kGroup; i++) sum += Bind(group * kGroup + i, table[i]);
  return sum;
}

bool Workload::PageIsRight(uint64_t unit, uint64_t expected, uint64_t* actual) const {
  const uint8_t* page = memory_->Unit(unit);
  if (expected == 0) {
    *actual = IsZeroUnit(page) ? 0 : HashUnit(page);
  } else {
    *actual = HashUnit(page);
  }
  return *actual == expected;
}

void Workload::SetEntry(uint32_t thread, uint64_t unit, uint64_t hash) {
  uint64_t* entry = &Table(unit / kGroup)[unit % kGroup];
  const uint64_t change = Bind(unit, hash) - Bind(unit, *entry);
  *entry = hash;
  registers_.sums[unit / kGroup] += change;
  registers_.threads[thread].root += change;
}

void Workload::Step(uint32_t thread, bool write, uint64_t unit) {
  ThreadRegisters& r = registers_.threads[thread];
  const uint64_t group = unit / kGroup;
  uint8_t* page = memory_->Unit(unit);
  uint64_t* table = Table(group);
  if (measure_.load(std::memory_order_relaxed)) {
    touched_.Touch(PageOf(data_units_ + group), reinterpret_cast<uint8_t*>(table), &stalls_);
    touched_.Touch(PageOf(unit), page, &stalls_);
  }
  operations_[thread].store(++r.operations, std::memory_order_relaxed);

  // What is wrong stays as it is, as evidence: rewriting it would hide it.
  const uint64_t sum = SumOf(group);
  if (sum != registers_.sums[group]) {
    Fail({Failure::kTable, thread, data_units_ + group, registers_.sums[group], sum, r.operations});
    return;
  }
  const uint64_t expected = table[unit % kGroup];
  uint64_t hash = 0;
  if (!PageIsRight(unit, expected, &hash)) {
    Fail({expected == 0 ? Failure::kHole : Failure::kPage, thread, unit, expected, hash, r.operations});
    return;
  }
  if (write) {
    // One cache line of the page changes: most of the page's content stays, as in real memory.
    uint64_t line[8];
    line[0] = ++r.writes;
    for (int i = 1; i < 8; i++) line[i] = NextRandom(&r.random);
    memcpy(page + (line[1] % (kUnit / sizeof line)) * sizeof line, line, sizeof line);
    hash = HashUnit(page);
    SetEntry(thread, unit, hash);
  }
  r.chain = Fold(r.chain ^ hash, kSalt[0] ^ unit);
}

void Workload::Fail(Failure failure) {
  const std::lock_guard lock(failures_mutex_);
  registers_.failure_count++;
  auto& kept = registers_.failures;
  const bool known = std::any_of(kept.begin(), kept.end(), [&](const Failure& other) {
    return other.kind == failure.kind && other.unit == failure.unit;
  });
  if (!known && kept.size() < kFailuresKept) kept.push_back(failure);
}

}  // namespace guest
