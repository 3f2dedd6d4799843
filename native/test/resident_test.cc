// The resident index: what is listed is found and verified, what changed is missed, and its lists against a model.
#include <dirent.h>
#include <fcntl.h>

#include <cerrno>
#include <map>
#include <set>

#include "core/resident_tags.h"
#include "core/session.h"
#include "test/resident_support.h"

namespace pagetide::test {

namespace {

uint64_t OpenDescriptors() {
  uint64_t count = 0;
  DIR* folder = opendir("/proc/self/fd");
  CHECK(folder != nullptr);
  while (readdir(folder) != nullptr) count++;
  closedir(folder);
  return count;
}

bool Holds(ResidentIndex& index, const Tag& tag, uint64_t n, uint32_t domain = 1) {
  uint8_t page[kTagPage];
  if (!index.Copy(domain, tag, page)) return false;
  CHECK(HasContent(page, n, kTagPage));
  return true;
}

}  // namespace

TEST(resident_lists_finds_and_drops) {
  auto key = ResidentKey();
  auto index = OpenResident(4096);
  GuestFile file(16);
  for (uint64_t f = 0; f < 8; f++) file.Write(f, f);
  uint32_t number = AddFile(*index, file, 16, key);
  std::vector<Tag> tags;
  for (uint64_t f = 0; f < 8; f++) tags.push_back(ResidentTag(*key, f));
  CHECK(!Holds(*index, tags[3], 3));  // not listed yet
  auto flat = Flat(tags);
  CHECK_OK(index->Set(number, 0, 8, flat.data()));
  for (uint64_t f = 0; f < 8; f++) CHECK(Holds(*index, tags[f], f));
  CHECK(!Holds(*index, ResidentTag(*key, 99), 99));
  ResidentStats stats = index->Stats();
  CHECK_EQ(stats.files, 1u);
  CHECK_EQ(stats.frames, 16u);
  CHECK_EQ(stats.listed, 8u);
  CHECK_EQ(stats.different, 8u);
  CHECK_EQ(stats.hits, 8u);
  CHECK_EQ(stats.misses, 2u);
  // the zero tag takes out
  std::vector<uint8_t> zeros(4 * sizeof(Tag));
  CHECK_OK(index->Set(number, 2, 4, zeros.data()));
  CHECK_EQ(index->Stats().listed, 4u);
  for (uint64_t f = 0; f < 8; f++) CHECK_EQ(Holds(*index, tags[f], f), f < 2 || f > 5);
  // nobody has the zero page
  uint8_t page[kTagPage];
  CHECK(!index->Copy(1, Tag{}, page));
  index->Remove(number);
  index->Remove(number);
  CHECK_EQ(index->Stats().listed, 0u);
  CHECK_EQ(index->Stats().frames, 0u);
  CHECK(!Holds(*index, tags[0], 0));
  CHECK_OK(index->Set(number, 0, 8, flat.data()));  // too late: nothing to list
  CHECK_EQ(index->Stats().listed, 0u);
}

TEST(resident_refuses_what_does_not_fit) {
  CHECK_EQ(ResidentIndex::Open(0).error.kind, ErrorKind::Argument);
  CHECK_EQ(ResidentIndex::Open((1u << 30) + 1).error.kind, ErrorKind::Argument);
  auto key = ResidentKey();
  auto index = OpenResident(2000);  // two parts of 1024
  GuestFile file(1024);
  auto flat = Flat({ResidentTag(*key, 1)});
  CHECK_EQ(index->Add(file.fd(), 0, 1, key).error.kind, ErrorKind::Argument);
  CHECK_EQ(index->Add(file.fd(), 1, 1, nullptr).error.kind, ErrorKind::Argument);
  CHECK_EQ(index->Add(-1, 1, 1, key).error.err, EBADF);
  CHECK_EQ(index->Stats().frames, 0u);
  uint64_t descriptors = OpenDescriptors();
  uint32_t one = AddFile(*index, file, 1, key);
  AddFile(*index, file, 1024, key);
  CHECK_EQ(OpenDescriptors(), descriptors + 2);
  CHECK_EQ(index->Add(file.fd(), 1, 1, key).error.err, ENOSPC);
  CHECK_EQ(OpenDescriptors(), descriptors + 2);
  CHECK_EQ(index->Set(one, 0, 2, flat.data()).kind, ErrorKind::Argument);
  CHECK_EQ(index->Set(one, 2, 0, flat.data()).kind, ErrorKind::Argument);
  CHECK_EQ(index->Set(one, 1, UINT64_MAX, flat.data()).kind, ErrorKind::Argument);
  CHECK_OK(index->Set(one, 1, 0, flat.data()));
  CHECK_EQ(index->Stats().listed, 0u);
  index->Remove(one);
  CHECK_EQ(OpenDescriptors(), descriptors + 1);
  AddFile(*index, file, 1024, key);  // in the room that was given back
  index = nullptr;
  CHECK_EQ(OpenDescriptors(), descriptors);
}

// A page that changed costs a miss and its entry; another frame that has it is tried first.
TEST(resident_changed_pages_are_missed_and_dropped) {
  auto key = ResidentKey();
  auto index = OpenResident(1024);
  GuestFile file(16);
  Tag tag = ResidentTag(*key, 7);
  for (uint64_t f = 0; f < 6; f++) file.Write(f, 7);
  uint32_t number = AddFile(*index, file, 16, key);
  for (uint64_t f = 0; f < 6; f++) List(*index, number, f, tag);
  CHECK_EQ(index->Stats().different, 1u);
  CHECK(Holds(*index, tag, 7));
  file.Write(0, 8);  // the one that is asked first
  CHECK(Holds(*index, tag, 7));
  CHECK_EQ(index->Stats().stale, 1u);
  CHECK_EQ(index->Stats().listed, 5u);
  CHECK(Holds(*index, tag, 7));
  CHECK_EQ(index->Stats().stale, 1u);
  // more than one lookup tries: a miss, but never another page
  for (uint64_t f = 2; f < 6; f++) file.Write(f, 8);
  CHECK(!Holds(*index, tag, 7));
  CHECK_EQ(index->Stats().listed, 2u);
  CHECK(Holds(*index, tag, 7));
  CHECK_EQ(index->Stats().listed, 1u);
  // listed again when it is set again
  file.Write(0, 7);
  List(*index, number, 0, tag);
  CHECK_EQ(index->Stats().listed, 2u);
}

TEST(resident_holes_and_ends_of_files_are_missed) {
  auto key = ResidentKey();
  auto index = OpenResident(1024);
  GuestFile file(16);
  uint32_t number = AddFile(*index, file, 16, key);
  for (uint64_t f = 0; f < 4; f++) {
    file.Write(f, f);
    List(*index, number, f, ResidentTag(*key, f));
  }
  List(*index, number, 9, ResidentTag(*key, 9));  // never written
  CHECK(!Holds(*index, ResidentTag(*key, 9), 9));
  CHECK(fallocate(file.fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == 0);
  CHECK(!Holds(*index, ResidentTag(*key, 0), 0));
  CHECK(ftruncate(file.fd(), 2 * 4096 + 4095) == 0);
  CHECK(!Holds(*index, ResidentTag(*key, 2), 2));  // not padded
  CHECK(!Holds(*index, ResidentTag(*key, 3), 3));
  CHECK(Holds(*index, ResidentTag(*key, 1), 1));
  CHECK_EQ(index->Stats().listed, 1u);
  // none of the lookups has made a page
  CHECK_EQ(lseek(file.fd(), 0, SEEK_DATA), 4096);
}

TEST(resident_domains_do_not_meet) {
  auto key = ResidentKey(), other = ResidentKey(6);
  auto index = OpenResident(4096);
  GuestFile file(4), sibling(4);
  for (uint64_t f = 0; f < 4; f++) file.Write(f, f), sibling.Write(f, f);
  uint32_t one = AddFile(*index, file, 4, key, 1), two = AddFile(*index, sibling, 4, other, 2);
  Tag tag = ResidentTag(*key, 2), theirs = ResidentTag(*other, 2);
  List(*index, one, 2, tag);
  List(*index, two, 2, theirs);
  CHECK(Holds(*index, tag, 2, 1));
  CHECK(!Holds(*index, tag, 2, 2));
  CHECK(!Holds(*index, theirs, 2, 1));
  CHECK(Holds(*index, theirs, 2, 2));
  CHECK_EQ(index->Stats().stale, 0u);  // another domain's page is not even read
  // a tag that is listed in the wrong domain proves nothing
  List(*index, two, 1, tag);
  CHECK(!Holds(*index, tag, 2, 2));
  CHECK_EQ(index->RemoveDomain(1), 1u);
  CHECK_EQ(index->RemoveDomain(1), 0u);
  CHECK(!Holds(*index, tag, 2, 1));
  CHECK(Holds(*index, theirs, 2, 2));
  index->Clear();
  CHECK(!Holds(*index, theirs, 2, 2));
  CHECK_EQ(index->Stats().files, 0u);
}

// The promise on memory, with all pages different, which is the most.
TEST(resident_takes_32_bytes_a_frame) {
  constexpr uint64_t kFrames = 1 << 17;
  auto key = ResidentKey();
  auto index = OpenResident(4 * kFrames);
  GuestFile file(kFrames);
  Random random(Seed());
  std::vector<Tag> tags;
  for (uint64_t f = 0; f < kFrames; f++) tags.push_back({random.Next(), random.Next()});
  auto flat = Flat(tags);
  uint32_t number = AddFile(*index, file, kFrames, key);
  CHECK_OK(index->Set(number, 0, kFrames, flat.data()));
  CHECK_EQ(index->Stats().different, kFrames);
  CHECK(index->Stats().index_bytes <= 32 * kFrames + 4096);
  // and after most of them have changed to one and the same
  std::vector<Tag> alike(kFrames - 1000, Tag{1, 1});
  flat = Flat(alike);
  CHECK_OK(index->Set(number, 0, alike.size(), flat.data()));
  CHECK_EQ(index->Stats().listed, kFrames);
  CHECK_EQ(index->Stats().different, 1001u);
  CHECK(index->Stats().index_bytes <= 28 * kFrames + 4 * 1001 + 4096);
  index->Remove(number);
  CHECK(index->Stats().index_bytes <= 4096);
}

// The lists alone, against a map: every change keeps every tag findable, with all of its slots.
TEST(resident_tags_follow_a_model) {
  constexpr uint32_t kSlots = 8192;
  ResidentTags lists;
  CHECK_OK(lists.Make(kSlots));
  std::map<uint32_t, uint64_t> tag_of;
  std::map<uint64_t, std::set<uint32_t>> slots_of;
  Random random(Seed());
  auto make = [](uint64_t n) { return Tag{(n + 1) * 0x9e3779b97f4a7c15ull, n}; };
  auto drop = [&](uint32_t slot) {
    auto found = tag_of.find(slot);
    if (found == tag_of.end()) return;
    auto& slots = slots_of[found->second];
    slots.erase(slot);
    if (slots.empty()) slots_of.erase(found->second);
    tag_of.erase(found);
  };
  auto check = [&] {
    CHECK_EQ(lists.listed(), tag_of.size());
    CHECK_EQ(lists.different(), slots_of.size());
    for (const auto& [n, slots] : slots_of) {
      std::set<uint32_t> seen;
      for (uint32_t slot = lists.First(make(n)); slot != kNoSlot; slot = lists.Next(slot)) {
        CHECK(lists.Holds(slot, make(n)));
        CHECK(seen.insert(slot).second);
      }
      CHECK(seen == slots);
    }
  };
  for (int phase = 0; phase < 8; phase++) {
    // many tags, then few, then all given up: buckets are split and joined again
    uint64_t range = phase % 2 == 0 ? 100000 : 50;
    for (int i = 0; i < 12000; i++) {
      uint32_t slot = static_cast<uint32_t>(random.Below(kSlots));
      drop(slot);
      if (random.Below(phase % 4 == 3 ? 8 : 2) == 0 || phase % 4 == 0) {
        uint64_t n = random.Below(range);
        lists.Set(slot, make(n));
        tag_of[slot] = n;
        slots_of[n].insert(slot);
      } else {
        lists.Drop(slot);
      }
    }
    check();
    CHECK(lists.head_bytes() <= 4 * (lists.different() + 1024));
  }
  for (uint32_t slot = 0; slot < kSlots; slot++) drop(slot), lists.Drop(slot);
  check();
  CHECK_EQ(lists.head_bytes(), 4096u);
  CHECK_EQ(lists.Changes() % 2, 0u);
  for (uint64_t n = 0; n < 50; n++) CHECK_EQ(lists.First(make(n)), kNoSlot);
}

TEST(resident_install_follows_the_cache_contract) {
  constexpr uint64_t kFrames = 10;
  auto key = ResidentKey();
  auto index = OpenResident(1024);
  GuestFile file(16);
  uint32_t number = AddFile(*index, file, 16, key);
  std::vector<Tag> tags;
  for (uint64_t f = 0; f < kFrames; f++) tags.push_back(f == 3 ? Tag{} : ResidentTag(*key, f));
  for (uint64_t n : {0, 1, 2, 4, 7}) {
    file.Write(15 - n, n);
    List(*index, number, 15 - n, tags[n]);
  }
  auto flat = Flat(tags);
  Memory memory(Kind::Private, kFrames);
  auto session = Serve(memory);
  auto scratch = Pages(0, 1);
  auto install = [&](uint64_t frame, uint64_t count) {
    return session->InstallFromResident(frame, count, flat.data(), *index, 1, scratch.get(), kTagPage);
  };
  Installed result = install(0, kFrames);
  CHECK_EQ(result.outcome, Outcome::Absent);
  CHECK_EQ(result.installed, 4u);
  CHECK_EQ(result.skipped, 1u);
  CHECK_EQ(result.next, 5u);
  CHECK_EQ(session->table()->Get(3), FrameState::Zero);
  CHECK_EQ(session->table()->Get(5), FrameState::Missing);
  {
    Vcpu vcpu([&] { CHECK_EQ(Touch(memory, 7), Word(7, 0)); });
    ExpectFault(*session, 7);
    CHECK_EQ(install(7, 1).outcome, Outcome::Done);
  }
  result = install(7, 1);  // present: nothing is looked up
  CHECK_EQ(result.skipped, 1u);
  CHECK_EQ(index->Stats().hits, 5u);
  // a page that has changed is not installed
  file.Write(15, 42);
  List(*index, number, 10, tags[8]);
  file.Write(10, 77);
  result = install(8, 1);
  CHECK_EQ(result.outcome, Outcome::Absent);
  CHECK_EQ(session->table()->Get(8), FrameState::Missing);
  result = install(kFrames, 1);
  CHECK_EQ(result.outcome, Outcome::Failed);
  CHECK_EQ(result.err, EINVAL);
  result = session->InstallFromResident(0, 1, flat.data(), *index, 1, scratch.get(), kTagPage - 1);
  CHECK_EQ(result.err, EINVAL);
  CHECK_OK(session->Unregister(true));
  for (uint64_t n : {0, 1, 2, 4, 7}) CHECK(HasContent(memory.at(n), n, kTagPage));
  for (uint64_t n : {3, 5, 6, 8, 9}) CHECK(IsAllZero(memory.at(n), kTagPage));
}

TEST(resident_install_of_huge_pages_is_refused) {
  if (!HugePages()) Skip("no huge pages");
  Memory memory(Kind::HugePrivate, 1);
  auto session = Serve(memory, [](auto& o) { o.page_size = 2 << 20; });
  auto index = OpenResident(1024);
  auto scratch = Pages(0, 1);
  uint8_t tags[sizeof(Tag)] = {1};
  Installed result = session->InstallFromResident(0, 1, tags, *index, 1, scratch.get(), kTagPage);
  CHECK_EQ(result.outcome, Outcome::Failed);
  CHECK_EQ(result.err, EINVAL);
  CHECK_OK(session->Unregister(true));
}

}  // namespace pagetide::test
