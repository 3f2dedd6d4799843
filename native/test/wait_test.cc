// Waiting: one thread at a time, and everything that ends a wait.
#include <sys/eventfd.h>
#include <unistd.h>

#include "test/guest.h"

namespace pagetide::test {

TEST(wait_admits_one_thread) {
  Memory memory(Kind::Private, 4);
  auto session = Serve(memory);
  Vcpu waiter([&] {
    uint32_t frame;
    Waited waited;
    CHECK_OK(session->Wait(&frame, 1, -1, 0, -1, &waited));
    CHECK_EQ(waited.flags, kWaitStop);
  });
  waiter.WaitAsleep();
  uint32_t frame;
  Waited waited;
  Error error = session->Wait(&frame, 1, 0, 0, -1, &waited);
  CHECK_EQ(error.kind, ErrorKind::Internal);
  CHECK_CONTAINS(error.Message(), "two threads");
  session->Stop();
  waiter.Join();
  // and every later wait ends at once, in whatever thread, though it may last for ever
  for (int i = 0; i < 3; i++) {
    CHECK_OK(session->Wait(&frame, 1, -1, 0, -1, &waited));
    CHECK_EQ(waited.flags, kWaitStop);
  }
  CHECK(session->stopped());
  CHECK_EQ(session->Wait(&frame, 0, 0, 0, -1, &waited).kind, ErrorKind::Argument);
}

TEST(wait_ends_for_the_event_loop) {
  Memory memory(Kind::Private, 4);
  auto session = Serve(memory);
  int loop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  std::atomic<bool> woke{false};
  Vcpu waiter([&] {
    uint32_t frame;
    Waited waited;
    CHECK_OK(session->Wait(&frame, 1, -1, 0, loop, &waited));
    CHECK_EQ(waited.flags, kWaitLoop);
    CHECK_EQ(waited.faults, 0u);
    woke = true;
  });
  waiter.WaitAsleep();
  uint64_t one = 1;
  CHECK(write(loop, &one, sizeof one) == sizeof one);
  waiter.Join();
  CHECK(woke);
  close(loop);
}

TEST(wait_honours_its_time) {
  Memory memory(Kind::Private, 4);
  auto session = Serve(memory);
  uint32_t frame;
  Waited waited;
  uint64_t start = NowNs();
  CHECK_OK(session->Wait(&frame, 1, 60, 0, -1, &waited));
  CHECK(NowNs() - start >= 59'000'000);
  CHECK_EQ(waited.faults, 0u);
  CHECK_EQ(waited.flags, 0);
  CHECK(waited.entered_ns >= start);
  start = NowNs();
  CHECK_OK(session->Wait(&frame, 1, 1, 30'000, -1, &waited));  // spins 30 ms, then sleeps 1
  CHECK(NowNs() - start >= 30'000'000);
}

TEST(wait_spins_into_a_fault) {
  Memory memory(Kind::Private, 4);
  auto session = Serve(memory);
  auto page = Pages(1, 1);
  Vcpu vcpu([&] { CHECK_EQ(Touch(memory, 1), Word(1, 0)); });
  uint32_t frame = 99;
  Waited waited;
  CHECK_OK(session->Wait(&frame, 1, 1, 10'000'000, -1, &waited));
  CHECK_EQ(waited.faults, 1u);
  CHECK_EQ(frame, 1u);
  CHECK(waited.read_ns >= waited.entered_ns);
  CHECK_EQ(session->Install(1, 1, page.get()).outcome, Outcome::Done);
}

TEST(wait_reads_no_more_faults_than_it_has_room_for) {
  Memory memory(Kind::Private, 32);
  auto session = Serve(memory);
  {
    std::vector<std::unique_ptr<Vcpu>> vcpus;
    for (uint64_t f = 0; f < 10; f++)
      vcpus.push_back(std::make_unique<Vcpu>([&, f] { CHECK_EQ(Touch(memory, 3 * f), Word(3 * f, 0)); }));
    uint32_t served = 0;
    while (served < 10) {
      uint32_t frames[3] = {~0u, ~0u, ~0u};
      Waited waited;
      CHECK_OK(session->Wait(frames, 3, 100, 0, -1, &waited));
      CHECK(waited.faults <= 3);
      for (uint32_t i = 0; i < waited.faults; i++) {
        CHECK_EQ(frames[i] % 3, 0u);
        auto page = Pages(frames[i], 1);
        served += session->Install(frames[i], 1, page.get()).installed;
      }
    }
  }
  CHECK_EQ(session->Counts().installed, 10u);
  CHECK(session->Counts().faults >= 10);
}

}  // namespace pagetide::test
