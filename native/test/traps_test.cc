// The traps of userfaultfd, each provoked: pages that are there already, a layout that changes, removes in every order.
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/memory.h"
#include "test/guest.h"

namespace pagetide::test {

namespace {

void Drop(const Memory& memory, uint64_t frame, uint64_t count) {
  CHECK(madvise(memory.at(frame), count * memory.page_size(), MADV_DONTNEED) == 0);
}

void Punch(const Memory& memory, uint64_t frame, uint64_t count) {
  CHECK(fallocate(memory.fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  static_cast<off_t>(frame * memory.page_size()), static_cast<off_t>(count * memory.page_size())) == 0);
}

// Drops frames as a guest does, with somebody reading the event.
void DropAndRead(FaultSession& session, const Memory& memory, uint64_t frame, uint64_t count, uint32_t touched) {
  Vcpu guest([&] { Drop(memory, frame, count); });
  CHECK_EQ(ExpectRemove(session), touched);
  guest.Join();
}

}  // namespace

TEST(foreign_page_is_an_alarm_and_not_woken) {
  Memory memory(Kind::Shared, 32);
  auto session = Serve(memory);
  memset(memory.alias() + 5 * 4096, 0x55, 4096);  // somebody else writes to the guest's memory
  auto pages = Pages(0, 32);
  Installed result = session->Install(5, 1, pages.get() + 5 * 4096);
  CHECK_EQ(result.outcome, Outcome::Foreign);
  CHECK_EQ(result.next, 5u);
  CHECK_EQ(result.installed, 0u);
  CHECK_EQ(session->table()->Get(5), FrameState::Missing);
  // In the middle of a run, as a partial copy: what comes before is installed, and the call ends there.
  CHECK_EQ(session->Claim(6, 3, FrameState::InFlight), 3u);
  result = session->Install(0, 32, pages.get());
  CHECK_EQ(result.outcome, Outcome::Foreign);
  CHECK_EQ(result.next, 5u);
  CHECK_EQ(result.installed, 5u);
  CHECK_EQ(session->table()->Get(4), FrameState::Present);
  CHECK_EQ(session->table()->Get(5), FrameState::Missing);
  CHECK_EQ(session->table()->Get(6), FrameState::InFlight);
  CHECK_EQ(session->table()->Get(9), FrameState::Missing);
  CHECK_EQ(session->Counts().foreign, 2u);
  CHECK_EQ(session->Counts().outstanding, 27u);
  for (uint64_t f = 0; f < 5; f++) CHECK(HasContent(memory.at(f), f, 4096));
  CHECK_EQ(Touch(memory, 5), 0x5555555555555555ull);  // which the alarm is about: it doesn't fault
  result = session->Install(6, 26, pages.get() + 6 * 4096);
  CHECK_EQ(result.installed, 26u);
}

TEST(foreign_zero_page_from_reading_a_hole_through_a_mapping) {
  Memory memory(Kind::Shared, 4);
  auto session = Serve(memory);
  CHECK_EQ(reinterpret_cast<volatile uint64_t*>(memory.alias())[0], 0u);  // makes a page of the hole
  uint64_t word = 1;
  CHECK(pread(memory.fd(), &word, 8, 4096) == 8);  // pread doesn't
  CHECK_EQ(word, 0u);
  auto pages = Pages(0, 4);
  CHECK_EQ(session->Install(0, 1, pages.get()).outcome, Outcome::Foreign);
  CHECK_EQ(session->Install(1, 3, pages.get() + 4096).outcome, Outcome::Done);
  CHECK_EQ(session->Counts().foreign, 1u);
}

// A frame known to be zero, where something else is: reported by the zero install, too.
TEST(foreign_page_where_zero_should_be) {
  Memory memory(Kind::Shared, 2);
  auto session = Serve(memory);
  CHECK_EQ(session->MarkZero(0, 2), 2u);
  memory.alias()[0] = 1;
  Installed result = session->InstallZero(0, 2);
  CHECK_EQ(result.outcome, Outcome::Foreign);
  CHECK_EQ(result.next, 0u);
  CHECK_EQ(session->table()->Get(0), FrameState::Zero);
  CHECK_EQ(session->Counts().foreign, 1u);
  CHECK_EQ(session->InstallZero(1, 1).installed, 1u);
}

// tmpfs pages that were only allocated (fallocate): SEEK_DATA calls them a hole, but they never fault and a copy finds
// them in the way. A check for "nothing is present" has to punch first, or count blocks.
TEST(foreign_preallocated_pages_do_not_fault) {
  Memory memory(Kind::Shared, 4);
  CHECK(fallocate(memory.fd(), 0, 0, 4096) == 0);
  auto extents = DataExtents(memory.fd(), 0, memory.size());
  CHECK_OK(extents.error);
  CHECK_EQ(extents.value.size(), size_t{0});
  auto session = Serve(memory);
  auto pages = Pages(0, 1);
  CHECK_EQ(session->Install(0, 1, pages.get()).outcome, Outcome::Foreign);
  Punch(memory, 0, 1);
  CHECK_EQ(session->Install(0, 1, pages.get()).outcome, Outcome::Done);
}

// While a remove event waits to be read, the layout is changing: installs say so, undo their claims, and go on later.
TEST(again_until_events_are_read) {
  Memory memory(Kind::Private, 32);
  auto session = Serve(memory);
  auto pages = Pages(0, 32);
  CHECK_EQ(session->MarkZero(31, 1), 1u);
  std::atomic<uint64_t> saw{0};
  Vcpu vcpu([&] { saw = Touch(memory, 1); });
  ExpectFault(*session, 1);
  CHECK_EQ(session->Claim(1, 1, FrameState::Wanted), 1u);
  CHECK_EQ(session->Claim(2, 2, FrameState::InFlight), 2u);
  Vcpu guest([&] { Drop(memory, 16, 4); });
  guest.WaitAsleep();
  for (int i = 0; i < 3; i++) {
    Installed result = session->Install(0, 8, pages.get());
    CHECK_EQ(result.outcome, Outcome::Again);
    CHECK_EQ(result.next, 0u);
    CHECK_EQ(result.installed, 0u);
    result = session->InstallZero(31, 1);
    CHECK_EQ(result.outcome, Outcome::Again);
  }
  CHECK_EQ(session->table()->Get(0), FrameState::Missing);
  CHECK_EQ(session->table()->Get(1), FrameState::Wanted);
  CHECK_EQ(session->table()->Get(2), FrameState::InFlight);
  CHECK_EQ(session->table()->Get(3), FrameState::InFlight);
  CHECK_EQ(session->table()->Get(31), FrameState::Zero);
  CHECK_EQ(session->Counts().outstanding, 31u);
  CHECK(!vcpu.done() && !guest.done());
  CHECK_EQ(ExpectRemove(*session), 4u);
  guest.Join();
  Installed result = session->Install(0, 32, pages.get());
  CHECK_EQ(result.outcome, Outcome::Done);
  CHECK_EQ(result.installed, 27u);
  CHECK_EQ(result.skipped, 5u);
  vcpu.Join();
  CHECK_EQ(saw.load(), Word(1, 0));
}

// Between the reading of a remove and the guest's going on, EAGAIN still comes: trying again is enough.
TEST(again_ends_when_the_guest_goes_on) {
  Memory memory(Kind::Private, 8);
  auto session = Serve(memory);
  auto pages = Pages(0, 8);
  for (uint64_t f = 0; f < 7; f++) {
    Vcpu guest([&] { Drop(memory, 7, 1); });
    ExpectRemove(*session);
    Installed result;
    do {
      result = session->Install(f, 1, pages.get() + f * 4096);
    } while (result.outcome == Outcome::Again);
    CHECK_EQ(result.installed, 1u);
  }
  CHECK_EQ(session->Counts().removes, 7u);
}

TEST(again_and_removes_on_huge_pages) {
  Memory memory(Kind::HugePrivate, 4);
  auto session = Serve(memory);
  auto pages = Pages(0, 4, memory.page_size());
  CHECK_EQ(session->Install(0, 2, pages.get()).installed, 2u);
  {
    Vcpu guest([&] { Drop(memory, 1, 2); });
    guest.WaitAsleep();
    CHECK_EQ(session->Install(3, 1, pages.get() + 3 * memory.page_size()).outcome, Outcome::Again);
    CHECK_EQ(ExpectRemove(*session), 2u);
  }
  for (uint64_t f : {1ull, 2ull}) {
    CHECK_EQ(session->Install(f, 1, pages.get()).skipped, 1u);
    Vcpu vcpu([&] { CHECK(IsAllZero(memory.at(f), memory.page_size())); });
    ExpectFault(*session, f);
    CHECK_EQ(session->InstallZero(f, 1).installed, 1u);
  }
  CHECK(HasContent(memory.at(0), 0, memory.page_size()));
}

// The content was asked for, the guest dropped the frame, the content came: it is not installed.
TEST(remove_makes_late_content_worthless) {
  Memory memory(Kind::Private, 8);
  auto session = Serve(memory);
  auto pages = Pages(0, 8);
  CHECK_EQ(session->Claim(0, 1, FrameState::Wanted), 1u);
  CHECK_EQ(session->Claim(1, 1, FrameState::InFlight), 1u);
  CHECK_EQ(session->Install(3, 1, pages.get() + 3 * 4096).installed, 1u);
  CHECK_EQ(session->MarkZero(4, 1), 1u);
  DropAndRead(*session, memory, 0, 5, 5);
  CHECK_EQ(session->Counts().removed, 5u);
  CHECK_EQ(session->Counts().outstanding, 3u);
  int file = memfd_create("content", MFD_CLOEXEC);
  CHECK(write(file, pages.get(), 8 * 4096) == 8 * 4096);
  auto scratch = Pages(0, 8);
  uint32_t slots[5] = {0, 1, 2, 3, 4};
  for (const Installed& late :
       {session->Install(0, 5, pages.get()), session->InstallFromFile(0, 5, file, 0, scratch.get(), 8 * 4096),
        session->InstallFromSlots(0, 5, pages.get(), 8, slots)}) {
    CHECK_EQ(late.outcome, Outcome::Done);
    CHECK_EQ(late.installed, 0u);
    CHECK_EQ(late.skipped, 5u);
  }
  close(file);
  // nor can it be asked for again
  CHECK_EQ(session->Claim(0, 5, FrameState::Wanted), 0u);
  CHECK_EQ(session->Release(0, 5, FrameState::Wanted), 0u);
  CHECK_EQ(session->NextMissing(0), 5u);
  for (uint64_t f = 0; f < 5; f++) {
    Vcpu vcpu([&] { CHECK(IsAllZero(memory.at(f), 4096)); });
    ExpectFault(*session, f);
    CHECK_EQ(session->InstallZero(f, 1).installed, 1u);
  }
  CHECK_EQ(session->Install(0, 5, pages.get()).installed, 0u);
}

// A fault was read, then the guest (another of its threads) dropped the frame, then the content came.
TEST(remove_after_the_fault_was_read) {
  Memory memory(Kind::Private, 4);
  auto session = Serve(memory);
  auto pages = Pages(0, 4);
  Vcpu vcpu([&] { CHECK_EQ(Touch(memory, 2), 0u); });
  ExpectFault(*session, 2);
  CHECK_EQ(session->Claim(2, 1, FrameState::Wanted), 1u);
  DropAndRead(*session, memory, 2, 1, 1);
  CHECK_EQ(session->Install(2, 1, pages.get() + 2 * 4096).skipped, 1u);
  CHECK(!vcpu.done());
  Installed zero;
  do {
    zero = session->InstallZero(2, 1);
  } while (zero.outcome == Outcome::Again);
  CHECK_EQ(zero.installed, 1u);
}

// Fault and remove in one batch, the fault in front: the remove counts first.
TEST(remove_in_one_batch_with_the_fault) {
  Memory memory(Kind::Private, 4);
  auto session = Serve(memory);
  Vcpu vcpu([&] { CHECK_EQ(Touch(memory, 1), 0u); });
  vcpu.WaitAsleep();
  Vcpu guest([&] { Drop(memory, 1, 1); });
  guest.WaitAsleep();
  std::vector<uint32_t> faults;
  uint32_t removes = 0;
  while (faults.empty() || removes == 0) removes += Drain(*session, &faults).removes;
  CHECK_EQ(faults.size(), size_t{1});
  CHECK_EQ(faults[0], 1u);
  CHECK_EQ(session->table()->Get(1), FrameState::Removed);
  guest.Join();
  CHECK_EQ(session->InstallZero(1, 1).installed, 1u);
}

// The zero page that a removed frame got may itself be dropped and fault again, as often as the guest likes.
TEST(remove_again_and_again) {
  Memory memory(Kind::Private, 2);
  auto session = Serve(memory);
  auto page = Pages(0, 1);
  CHECK_EQ(session->Install(0, 1, page.get()).installed, 1u);
  for (int i = 0; i < 5; i++) {
    DropAndRead(*session, memory, 0, 1, 1);
    Vcpu vcpu([&] {
      CHECK_EQ(Touch(memory, 0), 0u);
      *reinterpret_cast<volatile uint64_t*>(memory.at(0)) = 7;
    });
    ExpectFault(*session, 0);
    CHECK_EQ(session->InstallZero(0, 1).installed, 1u);
    vcpu.Join();
    CHECK_EQ(session->InstallZero(0, 1).skipped, 1u);  // a late fault: the page is there, and stays
    CHECK_EQ(Touch(memory, 0), 7u);
  }
  CHECK_EQ(session->Counts().zero_installed, 5u);
}

// Without remove events (a VMM that didn't ask for them): a present frame that was dropped faults, and becomes zero.
TEST(remove_of_a_present_frame_without_events) {
  Memory memory(Kind::Private, 2);
  auto session = Serve(memory, [](auto& o) {
    close(o.uffd);
    o.uffd = Uffd(0);
  });
  auto page = Pages(0, 1);
  CHECK_EQ(session->Install(0, 1, page.get()).installed, 1u);
  Drop(memory, 0, 1);
  Vcpu vcpu([&] { CHECK_EQ(Touch(memory, 0), 0u); });
  ExpectFault(*session, 0);
  CHECK_EQ(session->Install(0, 1, page.get()).skipped, 1u);
  CHECK(!vcpu.done());
  CHECK_EQ(session->InstallZero(0, 1).installed, 1u);
}

// Removes touch whole pages of the regions only, also across two of them.
TEST(remove_over_the_border_of_regions) {
  Memory memory(Kind::Private, 16);
  auto session = Serve(memory, [&](auto& o) {
    // the second half of the process's memory is the first of the guest's
    o.regions = {{memory.address(), 8 * 4096, 8 * 4096}, {memory.address() + 8 * 4096, 8 * 4096, 0}};
  });
  Vcpu guest([&] { Drop(memory, 6, 4); });
  uint32_t touched = 0;
  while (touched < 4) touched += ExpectRemove(*session);  // one event a mapping, and the kernel may have made two
  guest.Join();
  for (uint64_t f = 0; f < 16; f++) {
    bool removed = f < 2 || f >= 14;
    CHECK_EQ(session->table()->Get(f), removed ? FrameState::Removed : FrameState::Missing);
  }
}

TEST(remove_on_shared_memory_keeps_content) {
  Memory memory(Kind::Shared, 4);
  auto session = Serve(memory);
  auto pages = Pages(0, 4);
  CHECK_EQ(session->Install(0, 1, pages.get()).installed, 1u);
  Vcpu guest([&] { Drop(memory, 0, 2); });
  CHECK_EQ(ExpectRemove(*session), 0u);
  guest.Join();
  CHECK_EQ(session->table()->Get(0), FrameState::Present);
  CHECK_EQ(session->table()->Get(1), FrameState::Missing);
  CHECK(HasContent(memory.at(0), 0, 4096));  // without a fault
  Vcpu vcpu([&] { CHECK(HasContent(memory.at(1), 1, 4096)); });
  ExpectFault(*session, 1);
  Installed result;
  do {
    result = session->Install(1, 1, pages.get() + 4096);
  } while (result.outcome == Outcome::Again);
  CHECK_EQ(result.installed, 1u);
}

TEST(remove_by_punching_shared_memory) {
  Memory memory(Kind::Shared, 4);
  auto session = Serve(memory);
  auto pages = Pages(0, 4);
  CHECK_EQ(session->Install(0, 2, pages.get()).installed, 2u);
  Punch(memory, 0, 1);
  CHECK_EQ(Drain(*session).flags, 0);  // no event
  CHECK_EQ(session->table()->Get(0), FrameState::Present);
  Vcpu vcpu([&] { CHECK(IsAllZero(memory.at(0), 4096)); });
  ExpectFault(*session, 0);
  CHECK_EQ(session->Install(0, 1, pages.get()).skipped, 1u);
  CHECK_EQ(session->InstallZero(0, 1).installed, 1u);
  vcpu.Join();
  CHECK(HasContent(memory.at(1), 1, 4096));
}

TEST(remove_by_punching_huge_shared_memory) {
  Memory memory(Kind::HugeShared, 2);
  auto session = Serve(memory);
  auto pages = Pages(0, 2, memory.page_size());
  CHECK_EQ(session->Install(0, 2, pages.get()).installed, 2u);
  Punch(memory, 1, 1);
  Vcpu vcpu([&] { CHECK(IsAllZero(memory.at(1), memory.page_size())); });
  ExpectFault(*session, 1);
  CHECK_EQ(session->InstallZero(1, 1).installed, 1u);
  vcpu.Join();
  CHECK(HasContent(memory.at(0), 0, memory.page_size()));
}

// A guest that was dropping pages when the session ended goes on, although a copy of the userfaultfd stays open.
void DropDuringUnregister(Kind kind) {
  Memory memory(kind, 8);
  int kept = -1;  // as the original in the guest's process
  auto session = Serve(memory, [&](auto& o) { kept = dup(o.uffd); });
  CHECK_EQ(session->MarkZero(0, 8), 8u);
  Vcpu guest([&] { Drop(memory, 2, 2); });
  guest.WaitAsleep();
  CHECK_OK(session->Unregister(false));
  session.reset();
  guest.Join();
  CHECK_EQ(Touch(memory, 2), 0u);
  close(kept);
}
TEST(remove_under_way_at_unregister_private) {
  DropDuringUnregister(Kind::Private);
}
TEST(remove_under_way_at_unregister_shared) {
  DropDuringUnregister(Kind::Shared);
}

// The same with somebody in Wait: the two readers don't get in each other's way.
TEST(remove_under_way_at_unregister_while_waiting) {
  Memory memory(Kind::Private, 64);
  auto session = Serve(memory);
  CHECK_EQ(session->MarkZero(0, 64), 64u);
  Vcpu waiter([&] {
    uint32_t frames[8];
    Waited waited;
    while ((waited.flags & kWaitStop) == 0) CHECK_OK(session->Wait(frames, 8, 100, 0, -1, &waited));
  });
  {
    Vcpu guest([&] {
      for (uint64_t i = 0; i < 300; i++) Drop(memory, i % 60, 4);
    });
    CHECK_OK(session->Unregister(false));
  }
  session->Stop();
  waiter.Join();
}

}  // namespace pagetide::test
