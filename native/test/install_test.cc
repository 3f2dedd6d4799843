// Faults served from every source of content, on every kind of memory.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "core/memory.h"
#include "test/guest.h"

namespace pagetide::test {

namespace {

enum class Source { Buffer, File, Slots };

// A file with the content of `frames` frames at `offset`.
int ContentFile(uint64_t frames, uint64_t page_size, uint64_t offset) {
  int fd = memfd_create("pagetide-content", MFD_CLOEXEC);
  CHECK(fd >= 0);
  auto pages = Pages(0, frames, page_size);
  CHECK(pwrite(fd, pages.get(), frames * page_size, static_cast<off_t>(offset)) ==
        static_cast<ssize_t>(frames * page_size));
  return fd;
}

Installed InstallFrom(Source source, FaultSession& session, uint64_t frame, uint64_t count, int file, uint64_t offset) {
  uint64_t page = session.page_size();
  switch (source) {
    case Source::Buffer:
      return session.Install(frame, count, Pages(frame, count, page).get());
    case Source::File: {
      std::unique_ptr<uint8_t, void (*)(void*)> scratch = Pages(0, 1, std::max<uint64_t>(page, 32768));
      return session.InstallFromFile(frame, count, file, offset + frame * page, scratch.get(),
                                     std::max<uint64_t>(page, 32768));
    }
    case Source::Slots: {
      // slots in reverse order: scattered
      auto slots = Pages(0, count, page);
      std::vector<uint32_t> numbers;
      for (uint64_t i = 0; i < count; i++) {
        Fill(slots.get() + (count - 1 - i) * page, frame + i, page);
        numbers.push_back(static_cast<uint32_t>(count - 1 - i));
      }
      return session.InstallFromSlots(frame, count, slots.get(), count, numbers.data());
    }
  }
  return {};
}

// Every frame of a small guest: two by fault, one run by fill, a zero one by fault, all checked.
void ServeAll(Kind kind, Source source) {
  constexpr uint64_t kFrames = 8;
  Memory memory(kind, kFrames);
  auto session = Serve(memory);
  int file = ContentFile(kFrames, memory.page_size(), 4096);
  CHECK_EQ(session->MarkZero(7, 1), 1u);
  for (uint64_t f : {3ull, 5ull}) {
    std::atomic<uint64_t> saw{0};
    Vcpu vcpu([&] { saw = Touch(memory, f); });
    ExpectFault(*session, f);
    CHECK(!vcpu.done());
    CHECK_EQ(session->Claim(f, 1, FrameState::Wanted), 1u);
    Installed result = InstallFrom(source, *session, f, 1, file, 4096);
    CHECK_EQ(result.outcome, Outcome::Done);
    CHECK_EQ(result.installed, 1u);
    CHECK_EQ(result.next, f + 1);
    vcpu.Join();
    CHECK_EQ(saw.load(), Word(f, 0));
  }
  Installed result = InstallFrom(source, *session, 0, 8, file, 4096);
  CHECK_EQ(result.outcome, Outcome::Done);
  CHECK_EQ(result.installed, 5u);
  CHECK_EQ(result.skipped, 3u);
  CHECK_EQ(result.next, kFrames);
  {
    Vcpu vcpu([&] { CHECK_EQ(Touch(memory, 7), 0u); });
    ExpectFault(*session, 7);
    CHECK_EQ(session->InstallZero(7, 1).installed, 1u);
  }
  SessionCounts counts = session->Counts();
  CHECK_EQ(counts.outstanding, 0u);
  CHECK_EQ(counts.present, kFrames);
  CHECK_EQ(counts.installed, 7u);
  CHECK_EQ(counts.zero_installed, 1u);
  CHECK_EQ(counts.skipped, 3u);
  CHECK_EQ(counts.faults, 3u);
  CHECK_EQ(counts.foreign, 0u);
  CHECK_OK(session->Unregister(false));
  for (uint64_t f = 0; f < 7; f++) CHECK(HasContent(memory.at(f), f, memory.page_size()));
  CHECK(IsAllZero(memory.at(7), memory.page_size()));
  close(file);
}

}  // namespace

TEST(install_private_from_buffer) {
  ServeAll(Kind::Private, Source::Buffer);
}
TEST(install_private_from_file) {
  ServeAll(Kind::Private, Source::File);
}
TEST(install_private_from_slots) {
  ServeAll(Kind::Private, Source::Slots);
}
TEST(install_shared_from_buffer) {
  ServeAll(Kind::Shared, Source::Buffer);
}
TEST(install_shared_from_file) {
  ServeAll(Kind::Shared, Source::File);
}
TEST(install_shared_from_slots) {
  ServeAll(Kind::Shared, Source::Slots);
}
TEST(install_huge_private_from_buffer) {
  ServeAll(Kind::HugePrivate, Source::Buffer);
}
TEST(install_huge_private_from_file) {
  ServeAll(Kind::HugePrivate, Source::File);
}
TEST(install_huge_shared_from_slots) {
  ServeAll(Kind::HugeShared, Source::Slots);
}

TEST(install_into_shuffled_regions_with_a_gap) {
  Memory memory(Kind::Private, 64);
  Random random(Seed());
  // offset → address, in pages: neighbours in guest memory that are none in the process, and the other way round
  std::vector<Region> regions = {{memory.address() + 40 * 4096, 16 * 4096, 0},
                                 {memory.address() + 0, 8 * 4096, 16 * 4096},
                                 {memory.address() + 20 * 4096, 20 * 4096, 24 * 4096},
                                 {memory.address() + 8 * 4096, 4 * 4096, 44 * 4096}};
  auto address = [&](uint64_t frame) -> uint8_t* {
    const Region* in = nullptr;
    for (const Region& r : regions)
      if (frame * 4096 >= r.offset && frame * 4096 < r.offset + r.size) in = &r;
    return reinterpret_cast<uint8_t*>(in->host + frame * 4096 - in->offset);
  };
  std::vector<Region> shuffled = regions;
  for (size_t i = shuffled.size() - 1; i > 0; i--) std::swap(shuffled[i], shuffled[random.Below(i + 1)]);
  auto session = Serve(memory, [&](auto& o) { o.regions = shuffled; });
  CHECK_EQ(session->frames(), 48u);
  for (uint64_t f : {0ull, 15ull, 16ull, 23ull, 24ull, 43ull, 44ull, 47ull}) {
    Vcpu vcpu([&] { CHECK_EQ(*reinterpret_cast<volatile uint64_t*>(address(f) + 8), Word(f, 1)); });
    ExpectFault(*session, f);
    CHECK_EQ(session->Install(f, 1, Pages(f, 1).get()).installed, 1u);
  }
  Installed result = session->Install(0, 48, Pages(0, 48).get());  // one call over all borders
  CHECK_EQ(result.outcome, Outcome::Done);
  CHECK_EQ(result.installed, 40u);
  CHECK_EQ(result.skipped, 8u);
  CHECK_OK(session->Wake(0, 48));
  for (uint64_t f = 0; f < 48; f++) CHECK(HasContent(address(f), f, 4096));
  // what lies between the regions was never registered
  CHECK_EQ(Touch(memory, 13), 0u);
  CHECK_EQ(Touch(memory, 60), 0u);
  CHECK_OK(session->Unregister(false));
}

TEST(install_runs_longer_than_one_copy) {
  constexpr uint64_t kFrames = 100;  // 16 frames are one copy
  Memory memory(Kind::Private, kFrames);
  auto session = Serve(memory);
  // holes in the run: dealt with already
  CHECK_EQ(session->Install(17, 1, Pages(17, 1).get()).installed, 1u);
  CHECK_EQ(session->MarkZero(40, 2), 2u);
  CHECK_EQ(session->Claim(60, 3, FrameState::InFlight), 3u);
  CHECK_EQ(session->Claim(70, 1, FrameState::Wanted), 1u);
  Installed result = session->Install(1, 99, Pages(1, 99).get());
  CHECK_EQ(result.outcome, Outcome::Done);
  CHECK_EQ(result.installed, 96u);
  CHECK_EQ(result.skipped, 3u);
  CHECK_EQ(result.next, 100u);
  CHECK_EQ(session->Counts().outstanding, 1u);
  CHECK_EQ(session->NextMissing(0), 0u);
  CHECK_EQ(session->NextMissing(1), kFrames);
  CHECK_OK(session->Unregister(true));
  for (uint64_t f = 1; f < kFrames; f++) {
    if (f == 40 || f == 41)
      CHECK(IsAllZero(memory.at(f), 4096));
    else
      CHECK(HasContent(memory.at(f), f, 4096));
  }
}

TEST(install_from_a_file_that_shrank_is_short) {
  Memory memory(Kind::Private, 32);
  auto session = Serve(memory);
  int file = ContentFile(32, 4096, 0);
  CHECK(ftruncate(file, 20 * 4096 + 100) == 0);
  auto scratch = Pages(0, 16);
  Installed result = session->InstallFromFile(0, 32, file, 0, scratch.get(), 16 * 4096);
  CHECK_EQ(result.outcome, Outcome::Short);
  CHECK_EQ(result.next, 20u);  // the 100 bytes that are there are not padded
  CHECK_EQ(result.installed, 20u);
  CHECK_EQ(session->table()->Get(20), FrameState::Missing);
  close(file);
  result = session->InstallFromFile(20, 1, file, 0, scratch.get(), 16 * 4096);
  CHECK_EQ(result.outcome, Outcome::Failed);
  CHECK_EQ(result.err, EBADF);
  // a scratch buffer that holds no page
  result = session->InstallFromFile(20, 1, 0, 0, scratch.get(), 4095);
  CHECK_EQ(result.outcome, Outcome::Failed);
  CHECK_EQ(result.err, EINVAL);
}

TEST(install_counts_what_was_skipped_before_a_failure) {
  Memory memory(Kind::Private, 8);
  auto session = Serve(memory);
  auto pages = Pages(0, 8);
  CHECK_EQ(session->Install(0, 2, pages.get()).installed, 2u);
  uint32_t slots[3] = {0, 1, 9};
  Installed result = session->InstallFromSlots(0, 3, pages.get(), 8, slots);
  CHECK_EQ(result.outcome, Outcome::Short);
  CHECK_EQ(result.next, 2u);
  CHECK_EQ(result.skipped, 2u);
  CHECK_EQ(session->Counts().skipped, 2u);
  int empty = memfd_create("empty", MFD_CLOEXEC);
  auto scratch = Pages(0, 1);
  result = session->InstallFromFile(0, 3, empty, 0, scratch.get(), 4096);
  CHECK_EQ(result.outcome, Outcome::Short);
  CHECK_EQ(result.skipped, 2u);
  CHECK_EQ(session->Counts().skipped, 4u);
  close(empty);
}

// The source of a copy is gone: nothing is installed, the frames are as before.
TEST(install_from_unmapped_memory_fails_whole) {
  Memory memory(Kind::Private, 8);
  auto session = Serve(memory);
  CHECK_EQ(session->Claim(1, 1, FrameState::Wanted), 1u);
  CHECK_EQ(session->Claim(2, 1, FrameState::InFlight), 1u);
  auto* source = static_cast<uint8_t*>(mmap(nullptr, 3 * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  Installed result = session->Install(0, 3, source);
  CHECK_EQ(result.outcome, Outcome::Failed);
  CHECK_EQ(result.err, EFAULT);
  CHECK_EQ(result.next, 0u);
  CHECK_EQ(session->table()->Get(0), FrameState::Missing);
  CHECK_EQ(session->table()->Get(1), FrameState::Wanted);
  CHECK_EQ(session->table()->Get(2), FrameState::InFlight);
  CHECK_EQ(session->Counts().outstanding, 8u);
  // half of it is there: that much is installed, then it fails
  CHECK(mprotect(source, 4096, PROT_READ | PROT_WRITE) == 0);
  Fill(source, 0, 4096);
  result = session->Install(0, 3, source);
  CHECK_EQ(result.outcome, Outcome::Failed);
  CHECK_EQ(result.installed, 1u);
  CHECK_EQ(result.next, 1u);
  CHECK_EQ(session->table()->Get(1), FrameState::Wanted);
  munmap(source, 3 * 4096);
}

// Two threads install the same frames: each frame once.
TEST(install_by_many_threads_once_each) {
  constexpr uint64_t kFrames = 512;
  Memory memory(Kind::Private, kFrames);
  auto session = Serve(memory);
  std::atomic<uint64_t> installed{0}, skipped{0};
  {
    std::vector<std::unique_ptr<Vcpu>> threads;
    for (int t = 0; t < 4; t++) {
      threads.push_back(std::make_unique<Vcpu>([&, t] {
        Random random(Seed() + static_cast<uint64_t>(t));
        auto pages = Pages(0, kFrames);
        for (int i = 0; i < 200; i++) {
          uint64_t f = random.Below(kFrames), n = 1 + random.Below(std::min<uint64_t>(40, kFrames - f));
          Installed result = session->Install(f, n, pages.get() + f * 4096);
          CHECK_EQ(result.outcome, Outcome::Done);
          installed += result.installed;
          skipped += result.skipped;
        }
        Installed rest = session->Install(0, kFrames, pages.get());
        CHECK_EQ(rest.outcome, Outcome::Done);
        installed += rest.installed;
        skipped += rest.skipped;
      }));
    }
  }
  CHECK_EQ(installed.load(), kFrames);
  CHECK_EQ(session->Counts().installed, kFrames);
  CHECK_EQ(session->Counts().skipped, skipped.load());
  CHECK_EQ(session->Counts().foreign, 0u);
  CHECK_OK(session->Unregister(false));
  for (uint64_t f = 0; f < kFrames; f++) CHECK(HasContent(memory.at(f), f, 4096));
}

}  // namespace pagetide::test
