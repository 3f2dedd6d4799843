// The control side of the workload: stopping, saving, loading, verifying.
#include <algorithm>
#include <cstring>

#include "guest/workload.h"

namespace guest {

void Workload::Park() {
  std::unique_lock lock(park_mutex_);
  parked_++;
  park_changed_.notify_all();
  hold_changed_.wait(lock, [this] { return !hold_.load(std::memory_order_relaxed); });
  parked_--;
  park_changed_.notify_all();
}

// Waits until every thread stands at a step boundary. A thread that waits for a page comes there when the page does.
void Workload::Hold() {
  std::unique_lock lock(park_mutex_);
  hold_.store(true, std::memory_order_release);
  hold_changed_.notify_all();
  park_changed_.wait(lock, [this] { return parked_ == workers_.size(); });
}

void Workload::Release() {
  std::unique_lock lock(park_mutex_);
  hold_.store(false, std::memory_order_release);
  hold_changed_.notify_all();
  park_changed_.wait(lock, [this] { return parked_ == 0; });
}

void Workload::Publish() {
  uint64_t root = 0;
  uint64_t chain = 0;
  for (const auto& r : registers_.threads) {
    root += r.root;
    chain = Fold(chain ^ r.chain, kSalt[1]);
  }
  published_root_.store(root, std::memory_order_relaxed);
  published_chain_.store(chain, std::memory_order_relaxed);
}

bool Workload::Pause(int64_t* unix_micros, std::string* error) {
  const std::lock_guard lock(command_mutex_);
  if (state_ == State::kIncoming) {
    *error = "the guest has no state yet";
    return false;
  }
  if (state_ == State::kRunning) {
    Hold();
    paused_at_ = UnixMicros();
    Publish();
    state_ = State::kPaused;
  }
  *unix_micros = paused_at_;
  return true;
}

bool Workload::Resume(int64_t* unix_micros, std::string* error) {
  const std::lock_guard lock(command_mutex_);
  if (state_ == State::kIncoming) {
    *error = "the guest has no state yet";
    return false;
  }
  if (state_ == State::kPaused) {
    Release();
    resumed_at_ = UnixMicros();
    state_ = State::kRunning;
  }
  *unix_micros = resumed_at_;
  return true;
}

bool Workload::Save(std::vector<uint8_t>* bytes, std::string* error) {
  const std::lock_guard lock(command_mutex_);
  if (state_ != State::kPaused) {
    *error = "the guest must be paused";
    return false;
  }
  for (uint32_t i = 0; i < threads(); i++) registers_.threads[i].longest_gap = gap_[i];
  *bytes = EncodeState(registers_, {memory_->size(), groups_, threads()});
  return true;
}

bool Workload::Load(const std::vector<uint8_t>& bytes, std::string* error) {
  const std::lock_guard lock(command_mutex_);
  if (state_ != State::kIncoming) {
    *error = "the guest isn't incoming";
    return false;
  }
  Registers loaded;
  if (!DecodeState(bytes, {memory_->size(), groups_, threads()}, &loaded, error)) return false;
  // Devices that are restored look at memory, and so does this guest: two tables must fit the state. Whoever serves
  // the memory has to do so before the state is loaded, or this waits.
  for (const uint64_t group : {uint64_t{0}, groups_ - 1}) {
    if (SumOf(group) != loaded.sums[group]) {
      *error =
          "memory doesn't belong to this state: frame " + std::to_string(PageOf(data_units_ + group)) + " is wrong";
      return false;
    }
  }
  {
    const std::lock_guard failures(failures_mutex_);
    registers_ = std::move(loaded);
  }
  for (uint32_t i = 0; i < threads(); i++) {
    const ThreadRegisters& r = registers_.threads[i];
    gap_[i] = r.longest_gap;
    beat_[i] = r.last_beat;
    operations_[i] = r.operations;
  }
  PlanWorkingSet();
  measure_ = true;
  Publish();
  paused_at_ = UnixMicros();
  state_ = State::kPaused;
  return true;
}

bool Workload::Verify(Verdict* verdict, std::string* error) {
  const std::lock_guard lock(command_mutex_);
  const State state = state_;
  if (state == State::kIncoming) {
    *error = "the guest has no state yet";
    return false;
  }
  if (state == State::kRunning) Hold();

  constexpr size_t kBadKept = 64;
  *verdict = {};
  const auto bad = [&](uint64_t unit) {
    const uint64_t page = PageOf(unit);
    const bool known = std::find(verdict->bad.begin(), verdict->bad.end(), page) != verdict->bad.end();
    if (known) return;
    verdict->bad_count++;
    if (verdict->bad.size() < kBadKept) verdict->bad.push_back(page);
  };
  uint64_t root = 0;
  uint64_t expected_root = 0;
  for (const auto& r : registers_.threads) expected_root += r.root;
  for (uint64_t group = 0; group < groups_; group++) {
    const uint64_t sum = SumOf(group);
    root += sum;
    if (sum != registers_.sums[group]) bad(data_units_ + group);
    const uint64_t end = std::min(data_units_, (group + 1) * kGroup);
    for (uint64_t unit = group * kGroup; unit < end; unit++) {
      uint64_t actual = 0;
      if (!PageIsRight(unit, Expected(unit), &actual)) bad(unit);
    }
  }
  if (verdict->bad_count > 0) verdict->detail = std::to_string(verdict->bad_count) + " frames are wrong";
  const auto also = [&](const std::string& text) { verdict->detail += (verdict->detail.empty() ? "" : "; ") + text; };
  if (root != expected_root) also("the root checksum is wrong");
  {
    const std::lock_guard failures(failures_mutex_);
    if (registers_.failure_count > 0) {
      also("the workload met wrong memory " + std::to_string(registers_.failure_count) + " times");
    }
    verdict->verified = verdict->bad_count == 0 && root == expected_root && registers_.failure_count == 0;
  }

  if (state == State::kRunning) {
    // The silence of this check is the checker's own, no migration's.
    const int64_t now = UnixMicros();
    for (uint32_t i = 0; i < threads(); i++) registers_.threads[i].last_beat = now;
    Publish();
    Release();
  }
  return true;
}

bool Workload::Give(uint64_t frame, uint64_t count, Memory::Remove how, std::string* error) {
  const std::lock_guard lock(command_mutex_);
  const uint64_t units_per_frame = memory_->page_size() / kUnit;
  if (count == 0 || frame > memory_->frames() || count > memory_->frames() - frame ||
      (frame + count) * units_per_frame > data_units_) {
    *error = "frames out of range: the last frames of memory hold the guest's tables";
    return false;
  }
  const State state = state_;
  // Whoever paused it relies on memory that stands still; what is incoming may go, as a balloon's that starts empty.
  if (state == State::kPaused) {
    *error = "the guest is paused";
    return false;
  }
  if (state == State::kRunning) Hold();
  bool good = memory_->Give(frame, count, how, error);
  // Shared memory keeps its content when it is only not needed by this mapping.
  const bool gone = memory_->is_private() || how != Memory::Remove::kDontNeed;
  if (good && gone && state != State::kIncoming) {
    for (uint64_t unit = frame * units_per_frame; unit < (frame + count) * units_per_frame; unit++) {
      const uint64_t group = unit / kGroup;
      if (SumOf(group) != registers_.sums[group]) {
        Fail({Failure::kTable, 0, data_units_ + group, registers_.sums[group], SumOf(group), 0});
        *error = "the table of these frames is wrong";
        good = false;
        break;
      }
      if (Expected(unit) != 0) SetEntry(OwnerOf(group), unit, 0);
    }
  }
  if (state == State::kRunning) Release();
  return good;
}

bool Workload::Poke(uint64_t frame, uint64_t* hash, std::string* error) {
  const std::lock_guard lock(command_mutex_);
  const State state = state_;
  const uint64_t unit = frame * (memory_->page_size() / kUnit);
  if (state == State::kIncoming || frame >= memory_->frames() || unit >= data_units_) {
    *error = state == State::kIncoming ? "the guest has no state yet" : "frame out of range";
    return false;
  }
  if (state == State::kRunning) Hold();
  Step(OwnerOf(unit / kGroup), true, unit);
  *hash = Expected(unit);
  if (state == State::kRunning) Release();
  return true;
}

bool Workload::Copy(uint64_t frame, uint64_t from, uint64_t count, std::string* error) {
  const std::lock_guard lock(command_mutex_);
  const State state = state_;
  const uint64_t units_per_frame = memory_->page_size() / kUnit;
  const uint64_t first = frame * units_per_frame;
  const uint64_t source = from * units_per_frame;
  const uint64_t units = count * units_per_frame;
  if (state == State::kIncoming || std::max(frame, from) >= memory_->frames() ||
      count > memory_->frames() - std::max(frame, from) || std::max(first, source) + units > data_units_) {
    *error = state == State::kIncoming ? "the guest has no state yet" : "frames out of range";
    return false;
  }
  // Whoever paused it relies on memory that stands still.
  if (state == State::kPaused) {
    *error = "the guest is paused";
    return false;
  }
  Hold();
  bool good = true;
  for (uint64_t i = 0; good && i < units; i++) {
    // As in a step: what is wrong is recorded, and neither passed on nor hidden.
    for (const uint64_t unit : {source + i, first + i}) {
      const uint64_t group = unit / kGroup;
      const uint64_t sum = SumOf(group);
      uint64_t actual = 0;
      if (sum != registers_.sums[group]) {
        Fail({Failure::kTable, 0, data_units_ + group, registers_.sums[group], sum, 0});
        good = false;
      } else if (!PageIsRight(unit, Expected(unit), &actual)) {
        Fail({Expected(unit) == 0 ? Failure::kHole : Failure::kPage, 0, unit, Expected(unit), actual, 0});
        good = false;
      }
    }
    if (!good) {
      *error = "frame " + std::to_string(PageOf(first + i)) + " or the one it is copied from is wrong";
      break;
    }
    memmove(memory_->Unit(first + i), memory_->Unit(source + i), kUnit);
    SetEntry(OwnerOf((first + i) / kGroup), first + i, HashUnit(memory_->Unit(first + i)));
  }
  Release();
  return good;
}

Workload::Snapshot Workload::Look() const {
  Snapshot snapshot = {};
  snapshot.root = published_root_;
  snapshot.chain = published_chain_;
  const bool running = state() == State::kRunning;
  const int64_t now = UnixMicros();
  for (size_t i = 0; i < beat_.size(); i++) {
    const int64_t beat = beat_[i];
    snapshot.operations += operations_[i];
    snapshot.last_beat = std::max(snapshot.last_beat, beat);
    // A silence that still lasts counts.
    const int64_t silent = running && beat != 0 ? now - beat : 0;
    snapshot.longest_gap = std::max({snapshot.longest_gap, gap_[i].load(), silent});
  }
  const std::lock_guard lock(failures_mutex_);
  snapshot.failure_count = registers_.failure_count;
  snapshot.failures = registers_.failures;
  snapshot.seed = registers_.seed;
  snapshot.write_rate = registers_.write_rate;
  snapshot.read_rate = registers_.read_rate;
  snapshot.working_set = registers_.working_set;
  snapshot.zero_fraction = registers_.zero_fraction;
  return snapshot;
}

void Workload::ResetStats() {
  for (auto& gap : gap_) gap = 0;
  stalls_.Reset();
}

}  // namespace guest
