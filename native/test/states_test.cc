// The page table's operations against a simple model, and recovery after a crash in each state.
#include <algorithm>

#include "test/guest.h"

namespace pagetide::test {

namespace {

using S = FrameState;
constexpr uint64_t kFrames = 40;

struct Model {
  std::vector<S> frames = std::vector<S>(kFrames, S::Missing);
  static bool Needs(S s) { return s == S::Missing || s == S::Wanted || s == S::InFlight; }
  uint64_t Count(S s) const { return static_cast<uint64_t>(std::count(frames.begin(), frames.end(), s)); }
};

void Same(FaultSession& session, const Model& model) {
  for (uint64_t f = 0; f < kFrames; f++) CHECK_EQ(session.table()->Get(f), model.frames[f]);
  SessionCounts counts = session.Counts();
  CHECK_EQ(counts.total, kFrames);
  CHECK_EQ(counts.outstanding, model.Count(S::Missing) + model.Count(S::Wanted) + model.Count(S::InFlight));
  CHECK_EQ(counts.present, model.Count(S::Present));
  CHECK_EQ(counts.zero, model.Count(S::Zero));
  CHECK_EQ(counts.removed, model.Count(S::Removed));
}

}  // namespace

TEST(states_agree_with_a_model) {
  Memory memory(Kind::Private, kFrames);
  auto session = Serve(memory);
  Model model;
  Random random(Seed());
  for (int step = 0; step < 20000; step++) {
    uint64_t f = random.Below(kFrames), n = 1 + random.Below(std::min<uint64_t>(8, kFrames - f)), changed = 0;
    switch (random.Below(8)) {
      case 0:
        for (uint64_t i = f; i < f + n; i++) {
          if (model.frames[i] == S::Missing || model.frames[i] == S::InFlight) {
            model.frames[i] = S::Wanted;
            changed++;
          }
        }
        CHECK_EQ(session->Claim(f, n, S::Wanted), changed);
        break;
      case 1:
      case 2:
        for (uint64_t i = f; i < f + n && model.frames[i] == S::Missing; i++) {
          model.frames[i] = S::InFlight;
          changed++;
        }
        CHECK_EQ(session->Claim(f, n, S::InFlight), changed);
        break;
      case 3: {
        S from = random.Below(2) != 0 ? S::Wanted : S::InFlight;
        for (uint64_t i = f; i < f + n; i++) {
          if (model.frames[i] != from) continue;
          model.frames[i] = S::Missing;
          changed++;
        }
        CHECK_EQ(session->Release(f, n, from), changed);
        break;
      }
      case 4: {
        uint64_t next = f;
        while (next < kFrames && model.frames[next] != S::Missing) next++;
        CHECK_EQ(session->NextMissing(f), next);
        break;
      }
      case 5:
        if (random.Below(4) != 0) break;
        for (uint64_t i = f; i < f + n; i++) {
          if (!Model::Needs(model.frames[i])) continue;
          model.frames[i] = S::Zero;
          changed++;
        }
        CHECK_EQ(session->MarkZero(f, n), changed);
        break;
      case 6: {
        S to = static_cast<S>(random.Below(7));
        if (to == S::Installing) to = S::Missing;
        for (uint64_t i = f; i < f + n; i++) model.frames[i] = to;
        session->Reset(f, n, to);
        break;
      }
      case 7: {  // a restart that finds what the table says there to be
        if (random.Below(16) != 0) break;
        std::vector<uint32_t> present;
        for (uint64_t i = 0; i < kFrames; i++) {
          if (model.frames[i] == S::Present) present.insert(present.end(), {static_cast<uint32_t>(i), 1});
          if (Model::Needs(model.frames[i])) model.frames[i] = S::Missing;
        }
        CHECK_EQ(session->Reconcile(present.data(), present.size() / 2), 0u);
        break;
      }
    }
    Same(*session, model);
    // what Unregister goes by
    uint64_t outstanding = session->Counts().outstanding;
    if (step % 1000 == 999 && outstanding > 0) CHECK(!session->Unregister(false).ok());
  }
  CHECK_EQ(session->NextMissing(kFrames), kFrames);
  CHECK_EQ(session->NextMissing(~0ull), kFrames);
}

TEST(states_refuse_frames_outside) {
  Memory memory(Kind::Private, kFrames);
  auto session = Serve(memory);
  auto page = Pages(0, 2);
  std::vector<uint8_t> scratch(4096);
  uint32_t slots[2] = {0, 1};
  uint64_t bad[][2] = {{kFrames, 1}, {kFrames - 1, 2}, {0, kFrames + 1}, {~0ull, 2}, {1, ~0ull}, {0, 0}};
  for (auto [frame, count] : bad) {
    CHECK(!session->CheckFrames(frame, count));
    CHECK_EQ(session->Claim(frame, count, S::Wanted), 0u);
    CHECK_EQ(session->Release(frame, count, S::Wanted), 0u);
    CHECK_EQ(session->MarkZero(frame, count), 0u);
    CHECK_EQ(session->Wake(frame, count).kind, ErrorKind::Argument);
    for (const Installed& result : {session->Install(frame, count, page.get()), session->InstallZero(frame, count),
                                    session->InstallFromFile(frame, count, -1, 0, scratch.data(), scratch.size()),
                                    session->InstallFromSlots(frame, count, page.get(), 2, slots)}) {
      CHECK_EQ(result.outcome, Outcome::Failed);
      CHECK_EQ(result.err, EINVAL);
      CHECK_EQ(result.installed, 0u);
    }
    session->Reset(frame, count, S::Present);
  }
  CHECK_EQ(session->Counts().outstanding, kFrames);
  CHECK_EQ(session->Release(0, 1, S::Present), 0u);
}

TEST(states_are_reconciled_after_a_crash) {
  Memory memory(Kind::Private, 32);
  std::string path = Folder() + "/table";
  struct Expect {
    S before;
    bool here;
    S after;
    bool foreign;
  };
  const Expect cases[] = {
      {S::Missing, false, S::Missing, false},
      {S::Missing, true, S::Missing, true},
      {S::Wanted, false, S::Missing, false},
      {S::Wanted, true, S::Missing, true},
      {S::InFlight, false, S::Missing, false},
      {S::InFlight, true, S::Missing, true},
      {S::Installing, false, S::Missing, false},
      {S::Installing, true, S::Present, false},
      {S::Present, false, S::Removed, false},
      {S::Present, true, S::Present, false},
      {S::Removed, false, S::Removed, false},
      {S::Removed, true, S::Removed, false},
      {S::Zero, false, S::Zero, false},
      {S::Zero, true, S::Zero, true},
      {S::InstallingZero, false, S::Removed, false},
      {S::InstallingZero, true, S::Present, false},
  };
  int keep = Uffd();  // as the copy in the guest's process
  {
    auto crashed = Serve(memory, [&](auto& o) {
      close(o.uffd);
      o.uffd = dup(keep);
      o.table_path = path;
    });
    uint64_t f = 0;
    for (const Expect& one : cases) crashed->table()->Set(f++, one.before);  // as a crash leaves it
    for (; f < 32; f++) crashed->table()->Set(f, S::Present);
  }
  FaultSession::Options options;
  options.uffd = keep;
  options.regions = {{memory.address(), memory.size(), 0}};
  options.table_path = path;
  options.recover = true;
  auto session = FaultSession::Create(options);
  CHECK_OK(session.error);
  // what was being installed is outstanding until it has been looked at
  CHECK(!session.value->Unregister(false).ok());
  CHECK_EQ(session.value->Counts().outstanding, 8u);
  std::vector<uint32_t> present;
  uint64_t f = 0, foreign = 0, outstanding = 0;
  for (const Expect& one : cases) {
    if (one.here) present.insert(present.end(), {static_cast<uint32_t>(f), 1});
    foreign += one.foreign ? 1 : 0;
    outstanding += one.after == S::Missing ? 1 : 0;
    f++;
  }
  present.insert(present.end(), {static_cast<uint32_t>(f), static_cast<uint32_t>(32 - f)});
  CHECK_EQ(session.value->Reconcile(present.data(), present.size() / 2), foreign);
  f = 0;
  for (const Expect& one : cases) CHECK_EQ(session.value->table()->Get(f++), one.after);
  for (; f < 32; f++) CHECK_EQ(session.value->table()->Get(f), S::Present);
  CHECK_EQ(session.value->Counts().outstanding, outstanding);
  CHECK_EQ(session.value->Counts().foreign, foreign);
  // and the count that Unregister goes by was made afresh
  CHECK_CONTAINS(session.value->Unregister(false).Message(), std::to_string(outstanding) + " frames");
  CHECK_EQ(session.value->MarkZero(0, 16), outstanding);
  CHECK_OK(session.value->Unregister(false));
}

// Installing → anything, by Reset alone: the count of what is outstanding stays right.
TEST(states_reset_of_an_interrupted_install_counts) {
  Memory memory(Kind::Private, 8);
  std::string path = Folder() + "/table";
  {
    auto crashed = Serve(memory, [&](auto& o) { o.table_path = path; });
    CHECK_EQ(crashed->MarkZero(0, 8), 8u);
    crashed->table()->Set(3, S::Installing);
    CHECK_OK(crashed->Unregister(true));
  }
  auto session = Serve(memory, [&](auto& o) {
    o.table_path = path;
    o.recover = true;
  });
  CHECK_EQ(session->Counts().outstanding, 1u);
  CHECK(!session->Unregister(false).ok());  // its content may never have come
  session->Reset(3, 1, S::Missing);
  CHECK(!session->Unregister(false).ok());
  session->Reset(3, 1, S::Present);
  CHECK_OK(session->Unregister(false));
}

TEST(states_unregister_waits_for_content) {
  Memory memory(Kind::Private, 4);
  auto session = Serve(memory);
  auto pages = Pages(0, 3);
  CHECK_EQ(session->Install(0, 3, pages.get()).installed, 3u);
  Error error = session->Unregister(false);
  CHECK_EQ(error.kind, ErrorKind::Argument);
  CHECK_CONTAINS(error.Message(), "1 frames still lack");
  Vcpu vcpu([&] { CHECK_EQ(Touch(memory, 3), 0u); });
  ExpectFault(*session, 3);
  CHECK_OK(session->Unregister(true));  // wakes it, and it reads zero
  vcpu.Join();
  for (uint64_t f = 0; f < 3; f++) CHECK(HasContent(memory.at(f), f, 4096));
}

}  // namespace pagetide::test
