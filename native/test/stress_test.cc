// Everything at once, against a model: guest threads that read, write and drop, a fault server, fillers whose content
// comes late. Seeded; the order of threads is the machine's.
#include <sys/mman.h>

#include <algorithm>
#include <deque>
#include <mutex>

#include "test/guest.h"

namespace pagetide::test {

namespace {

constexpr uint64_t kFrames = 512;
constexpr uint64_t kPage = 4096;

// By frame number: what the guest may see there.
bool IsWriters(uint64_t f) {
  return f % 16 == 7;
}  // written by the writer, never dropped
bool IsZeroed(uint64_t f) {
  return f % 16 == 11;
}  // its content is zero
bool IsDropped(uint64_t f) {
  return !IsWriters(f) && f % 4 != 1;
}

struct World {
  std::unique_ptr<Memory> memory;
  std::shared_ptr<FaultSession> session;
  std::atomic<bool> dropping[kFrames] = {};   // set before a madvise
  std::atomic<bool> dropped[kFrames] = {};    // set after one
  std::atomic<bool> seen_zero[kFrames] = {};  // a guest thread has read zero
  std::atomic<bool> over{false};
  std::atomic<int> guests{0};
  std::unique_ptr<uint8_t, void (*)(void*)> pages = Pages(0, kFrames);
  std::mutex lock;
  std::deque<uint32_t> fetches;  // demand fetches whose content is on its way

  volatile uint64_t* WordAt(uint64_t frame, uint64_t i) const {
    return reinterpret_cast<volatile uint64_t*>(memory->at(frame)) + i;
  }
};

// What a read of a frame may give, by what was known before it.
void CheckRead(World& w, uint64_t f, uint64_t i) {
  bool was_dropped = w.dropped[f].load(), was_zero = w.seen_zero[f].load();
  uint64_t value = *w.WordAt(f, i);
  if (value == 0) {
    CHECK(IsZeroed(f) || w.dropping[f].load());
    w.seen_zero[f].store(true);
    return;
  }
  CHECK(!IsZeroed(f));
  CHECK_EQ(value, Word(f, i));
  CHECK(!was_dropped);  // what the guest gave up came back
  CHECK(!was_zero);
}

void Reader(World& w, uint64_t seed) {
  Random random(seed);
  for (int n = 0; n < 3000; n++) {
    uint64_t f = random.Below(kFrames);
    if (!IsWriters(f)) CheckRead(w, f, random.Below(512));
  }
  w.guests--;
}

// Owns its frames: writes a generation, and finds it again. A second install would undo it.
void Writer(World& w, uint64_t seed) {
  Random random(seed);
  uint64_t generation[kFrames] = {};
  for (int n = 0; n < 2000; n++) {
    uint64_t f = random.Below(kFrames / 16) * 16 + 7;
    if (generation[f] != 0) CHECK_EQ(*w.WordAt(f, 5), generation[f]);
    generation[f] = random.Next() | 1;
    *w.WordAt(f, 5) = generation[f];
    CHECK_EQ(*w.WordAt(f, 6), Word(f, 6));
  }
  w.guests--;
}

void Dropper(World& w, uint64_t seed) {
  Random random(seed);
  for (int n = 0; n < 60; n++) {
    uint64_t f = random.Below(kFrames), count = 1 + random.Below(6);
    uint64_t end = f;
    while (end < kFrames && end < f + count && IsDropped(end)) end++;
    if (end == f) continue;
    for (uint64_t i = f; i < end; i++) w.dropping[i].store(true);
    CHECK(madvise(w.memory->at(f), (end - f) * kPage, MADV_DONTNEED) == 0);
    for (uint64_t i = f; i < end; i++) w.dropped[i].store(true);
    for (uint64_t i = f; i < end; i++) CHECK_EQ(*w.WordAt(i, 3), 0u);
  }
  w.guests--;
}

// Again until it isn't, as the fill does: the fault server reads the events.
void InstallRun(World& w, uint64_t f, uint64_t n, uint64_t way) {
  uint32_t slots[64];
  for (uint64_t i = 0; i < n; i++) slots[i] = static_cast<uint32_t>(f + i);
  for (uint64_t at = f; at < f + n;) {
    Installed result = way == 0 ? w.session->Install(at, f + n - at, w.pages.get() + at * kPage)
                                : w.session->InstallFromSlots(at, f + n - at, w.pages.get(), kFrames, slots + (at - f));
    at = result.next;
    if (result.outcome == Outcome::Again) {
      std::this_thread::yield();
      continue;
    }
    CHECK_EQ(result.outcome, Outcome::Done);
  }
}

void Filler(World& w, uint64_t seed) {
  Random random(seed);
  while (!w.over) {
    uint64_t next = w.session->NextMissing(random.Below(kFrames));
    if (next == w.session->frames()) next = w.session->NextMissing(0);
    if (next == w.session->frames()) {
      std::this_thread::yield();
      continue;
    }
    uint64_t n = 1 + random.Below(std::min<uint64_t>(48, kFrames - next));
    n = w.session->Claim(next, n, FrameState::InFlight);
    if (n == 0) continue;
    if (random.Below(3) == 0) std::this_thread::yield();  // the content is on its way
    if (random.Below(8) == 0) {
      w.session->Release(next, n, FrameState::InFlight);  // the connection was lost
      continue;
    }
    for (uint64_t i = next; i < next + n; i++)
      if (IsZeroed(i)) w.session->MarkZero(i, 1);
    InstallRun(w, next, n, random.Below(2));
  }
}

// The demand connection: answers some time after it was asked.
void Fetcher(World& w, uint64_t seed) {
  Random random(seed);
  while (!w.over) {
    uint32_t f = 0;
    bool got = false;
    {
      std::lock_guard<std::mutex> hold(w.lock);
      if (!w.fetches.empty()) {
        size_t at = random.Below(w.fetches.size());
        f = w.fetches[at];
        w.fetches.erase(w.fetches.begin() + static_cast<ptrdiff_t>(at));
        got = true;
      }
    }
    if (!got) {
      std::this_thread::yield();
      continue;
    }
    if (IsZeroed(f)) {
      w.session->MarkZero(f, 1);
    } else {
      InstallRun(w, f, 1, random.Below(2));
    }
  }
}

// The fault worker: each fault stays parked until its frame needs nothing any more.
void Server(World& w) {
  std::vector<uint32_t> parked;
  uint32_t frames[32];
  Waited waited;
  while (!w.over) {
    CHECK_OK(w.session->Wait(frames, 32, 1, 20, -1, &waited));
    parked.insert(parked.end(), frames, frames + waited.faults);
    std::erase_if(parked, [&](uint32_t f) {
      FrameState state = w.session->table()->Get(f);
      if (NeedsContent(state)) {
        if (w.session->Claim(f, 1, FrameState::Wanted) == 1) {
          std::lock_guard<std::mutex> hold(w.lock);
          w.fetches.push_back(f);
        }
        return false;
      }
      if (state == FrameState::Installing || state == FrameState::InstallingZero) return false;
      Installed result = w.session->InstallZero(f, 1);
      CHECK(result.outcome == Outcome::Done || result.outcome == Outcome::Again);
      return result.outcome == Outcome::Done;
    });
  }
}

void Round(uint64_t seed) {
  World w;
  w.memory = std::make_unique<Memory>(Kind::Private, kFrames);
  w.session = Serve(*w.memory, [&](auto& o) {
    // two regions, the later one first
    uint64_t half = w.memory->size() / 2;
    o.regions = {{w.memory->address() + half, half, half}, {w.memory->address(), half, 0}};
  });
  {
    std::vector<std::unique_ptr<Vcpu>> pager, guest;
    auto start = [&](auto& list, auto work, uint64_t n) {
      list.push_back(std::make_unique<Vcpu>([&w, work, n, seed] { work(w, seed * 31 + n); }));
    };
    w.guests = 5;
    pager.push_back(std::make_unique<Vcpu>([&w] { Server(w); }));
    start(pager, Filler, 1);
    start(pager, Fetcher, 2);
    start(guest, Reader, 3);
    start(guest, Reader, 4);
    start(guest, Reader, 5);
    start(guest, Writer, 6);
    start(guest, Dropper, 7);
    guest.clear();  // joins: nobody hangs
    CHECK_EQ(w.guests.load(), 0);
    while (w.session->Counts().outstanding > 0) std::this_thread::yield();
    w.over = true;
  }
  SessionCounts counts = w.session->Counts();
  CHECK_EQ(counts.foreign, 0u);
  CHECK_EQ(counts.present + counts.zero + counts.removed, kFrames);
  CHECK(counts.installed <= kFrames);
  CHECK(counts.removes > 0 && counts.faults > 0 && counts.installed > 0);
  CHECK_OK(w.session->Unregister(false));
  for (uint64_t f = 0; f < kFrames; f++) {
    if (IsZeroed(f) || w.dropped[f])
      CHECK(IsAllZero(w.memory->at(f), kPage));
    else if (!IsWriters(f))
      CHECK(HasContent(w.memory->at(f), f, kPage));
  }
}

}  // namespace

TEST_SECONDS(stress_faults_fills_and_removes, 60) {
  uint64_t end = NowNs() + 4'000'000'000;
  int rounds = 0;
  while (NowNs() < end || rounds < 2) Round(Seed() + static_cast<uint64_t>(rounds++));
  printf("        %d rounds\n", rounds);
}

}  // namespace pagetide::test
