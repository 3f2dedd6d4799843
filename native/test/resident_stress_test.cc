// Guests that write their memory all the time, are listed anew, come and go, while threads install from them: every
// page that anybody gets is the one that was asked for.
#include <sys/mman.h>

#include <thread>
#include <vector>

#include "core/page_hash.h"
#include "core/session.h"
#include "test/resident_support.h"

namespace pagetide::test {

namespace {

constexpr uint64_t kPages = 64;   // different ones
constexpr uint64_t kFrames = 96;  // of each guest
constexpr uint32_t kGuests = 4;
constexpr uint32_t kDomains = 2;

struct Shared {
  Shared() : index(OpenResident(8 * 1024)) {
    for (uint32_t d = 0; d < kDomains; d++) {
      keys.push_back(ResidentKey(static_cast<uint8_t>(20 + d)));
      std::vector<Tag> of_domain;
      for (uint64_t n = 0; n < kPages; n++) of_domain.push_back(ResidentTag(*keys[d], n));
      flat.push_back(Flat(of_domain));
      tags.push_back(std::move(of_domain));
    }
  }
  std::shared_ptr<ResidentIndex> index;
  std::vector<std::shared_ptr<DomainKey>> keys;
  std::vector<std::vector<Tag>> tags;
  std::vector<std::vector<uint8_t>> flat;
  std::atomic<bool> over{false};
  std::atomic<uint64_t> got{0}, lives{0};
};

// With the hash of the page that has the tag, as it is when the page was read before the guest wrote it again; or with
// another one's.
void ListHashed(Shared& s, uint32_t number, uint64_t frame, uint32_t domain, uint64_t n) {
  uint64_t of = frame % 8 == 0 ? (n + 1) % kPages : n;
  auto page = Pages(of, 1);
  uint64_t hash = PageHash(*s.keys[domain], page.get(), s.flat[domain].data() + of * sizeof(Tag));
  CHECK_OK(
      s.index->Set(number, frame, 1, s.flat[domain].data() + n * sizeof(Tag), reinterpret_cast<const uint8_t*>(&hash)));
}

// A guest: writes its frames half by half through a mapping, lists them rightly or wrongly, shrinks, punches, goes.
void Guest(Shared& s, uint64_t seed) {
  Random random(seed);
  uint32_t domain = static_cast<uint32_t>(seed % kDomains);
  while (!s.over) {
    s.lives++;
    GuestFile file(kFrames);
    auto* memory =
        static_cast<uint8_t*>(mmap(nullptr, kFrames * kTagPage, PROT_READ | PROT_WRITE, MAP_SHARED, file.fd(), 0));
    CHECK(memory != MAP_FAILED);
    uint32_t number = AddFile(*s.index, file, kFrames, s.keys[domain], domain);
    uint64_t turns = 200 + random.Below(400);
    for (uint64_t turn = 0; turn < turns && !s.over; turn++) {
      uint64_t frame = random.Below(kFrames), n = random.Below(kPages);
      auto page = Pages(n, 1);
      memcpy(memory + frame * kTagPage, page.get(), kTagPage / 2);
      if (random.Below(4) == 0) List(*s.index, number, frame, s.tags[domain][n]);  // too early
      memcpy(memory + frame * kTagPage + kTagPage / 2, page.get() + kTagPage / 2, kTagPage / 2);
      if (random.Below(4) != 0) ListHashed(s, number, frame, domain, n);
      if (random.Below(16) == 0) List(*s.index, number, random.Below(kFrames), s.tags[domain][n]);  // wrong
      if (random.Below(64) == 0) List(*s.index, number, frame, Tag{});
    }
    munmap(memory, kFrames * kTagPage);
    if (random.Below(2) == 0) CHECK(ftruncate(file.fd(), static_cast<off_t>(random.Below(kFrames * kTagPage))) == 0);
    if (random.Below(8) == 0) s.index->RemoveDomain(domain);
    s.index->Remove(number);
  }
}

void Reader(Shared& s, uint64_t seed) {
  Random random(seed);
  uint8_t page[kTagPage];
  while (!s.over) {
    uint32_t domain = static_cast<uint32_t>(random.Below(kDomains));
    uint64_t n = random.Below(kPages);
    if (!s.index->Copy(domain, s.tags[domain][n], page)) continue;
    CHECK(HasContent(page, n, kTagPage));
    s.got++;
    // the same page goes by another name there
    CHECK(!s.index->Copy(1 - domain, s.tags[domain][n], page));
  }
}

void Installer(Shared& s, uint64_t seed) {
  Random random(seed);
  auto scratch = Pages(0, 1);
  while (!s.over) {
    uint32_t domain = static_cast<uint32_t>(random.Below(kDomains));
    Memory memory(Kind::Private, kPages);
    auto session = Serve(memory);
    for (int turn = 0; turn < 30; turn++) {
      uint64_t frame = random.Below(kPages);
      Installed result = session->InstallFromResident(frame, 1 + random.Below(kPages - frame), s.flat[domain].data(),
                                                      *s.index, domain, scratch.get(), kTagPage);
      CHECK(result.outcome == Outcome::Done || result.outcome == Outcome::Absent);
      s.got += result.installed;
    }
    CHECK_OK(session->Unregister(true));
    for (uint64_t f = 0; f < kPages; f++) {
      bool present = session->table()->Get(f) == FrameState::Present;
      CHECK(present ? HasContent(memory.at(f), f, kTagPage) : IsAllZero(memory.at(f), kTagPage));
    }
  }
}

}  // namespace

TEST_SECONDS(resident_stress_of_everything, 60) {
  Shared s;
  std::vector<std::thread> threads;
  uint64_t n = Seed() * 31;
  for (uint32_t g = 0; g < kGuests; g++) threads.emplace_back([&s, n = ++n] { Guest(s, n); });
  for (auto* work : {Reader, Reader, Installer}) threads.emplace_back([&s, work, n = ++n] { work(s, n); });
  uint64_t end = NowNs() + 4'000'000'000;
  while (NowNs() < end || s.got < 100 || s.lives < 2 * kGuests) std::this_thread::yield();
  s.over = true;
  for (std::thread& thread : threads) thread.join();
  ResidentStats stats = s.index->Stats();
  CHECK_EQ(stats.files, 0u);
  CHECK_EQ(stats.listed, 0u);
  CHECK_EQ(stats.different, 0u);
  CHECK(stats.hits > 0 && stats.misses > 0 && stats.stale > 0);
  printf("        %llu lives, %llu hits, %llu stale\n", static_cast<unsigned long long>(s.lives.load()),
         static_cast<unsigned long long>(stats.hits), static_cast<unsigned long long>(stats.stale));
  // no slot was lost: the whole room is there
  GuestFile file(1);
  for (uint64_t i = 0; i < 8; i++) AddFile(*s.index, file, 1024, s.keys[0]);
}

// Lists that are split and joined under readers: what stays listed all the time is found, however often the rest moves.
TEST_SECONDS(resident_stress_of_moving_lists, 60) {
  constexpr uint32_t kSlots = 1 << 14;
  ResidentTags lists;
  CHECK_OK(lists.Make(kSlots));
  auto make = [](uint64_t n) { return Tag{(n + 1) * 0x9e3779b97f4a7c15ull, n}; };
  for (uint32_t slot = 0; slot < 64; slot++) lists.Set(slot, make(slot));
  std::atomic<bool> over{false};
  std::atomic<uint64_t> found{0}, lost{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; i++)
    threads.emplace_back([&, i] {
      Random random(Seed() + static_cast<uint64_t>(i));
      while (!over) {
        uint64_t n = random.Below(64), changes = lists.Changes();
        uint32_t slot = lists.First(make(n));
        if (slot == n) {
          found++;
        } else if (changes % 2 == 0 && lists.Changes() == changes) {
          lost++;  // nothing moved, and it was not there
        }
      }
    });
  uint64_t end = NowNs() + 2'000'000'000;
  while (NowNs() < end || found < 1000) {
    for (uint32_t slot = 64; slot < kSlots; slot++) lists.Set(slot, make(slot));
    for (uint32_t slot = 64; slot < kSlots; slot++) lists.Drop(slot);
  }
  over = true;
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(lost.load(), 0u);
}

}  // namespace pagetide::test
