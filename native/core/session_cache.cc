// Installing from the shared-page cache: lookup and UFFDIO_COPY in one, straight from the slot.
//
// The cache counts this thread in as a reader of the slot before the frame is claimed, and out after the copy: no
// evictor can put another page there in between (see cache_index.h). A look at the slot after the copy would be too
// late: by then the guest has the page.
#include <cerrno>

#include "core/page_cache.h"
#include "core/session.h"

namespace pagetide {

namespace {
// Frames installed between two looks at the length of the cache's file: one look is a twentieth of an install.
constexpr uint64_t kFramesALook = 16;
}  // namespace

Installed FaultSession::InstallFromCache(uint64_t frame, uint64_t count, const uint8_t* tags, PageCache& cache) {
  Installed result;
  result.next = frame;
  if (!CheckFrames(frame, count) || page_size_ != kCachePage) {
    result.outcome = Outcome::Failed;
    result.err = EINVAL;
    return result;
  }
  uint64_t end = frame + count;
  uint64_t frames_to_look = 0;
  FrameState before[1];
  while (result.next < end && result.outcome == Outcome::Done) {
    uint64_t at = result.next;
    // A copy: another thread may be writing the manifest.
    Tag tag = Tag::Load(tags + at * sizeof(Tag));
    // None of what a lookup goes by is likely to be near. It comes while the frame's state does, and then the file is
    // looked at; in a run, while the frame before is installed.
    if (at == frame) cache.Prefetch(tag);
    if (at + 1 < end) cache.Prefetch(Tag::Load(tags + (at + 1) * sizeof(Tag)));
    if (!NeedsContent(table_->Get(at))) {
      result.skipped++;
      result.next = at + 1;
      continue;
    }
    if (tag.IsZero()) {
      MarkZero(at, 1);
      result.skipped++;
      result.next = at + 1;
      continue;
    }
    cache.PrefetchSlot(tag);
    if (frames_to_look-- == 0) {
      cache.CheckWhole();
      frames_to_look = kFramesALook - 1;
    }
    PageCache::Hit hit;
    if (!cache.Enter(tag, &hit)) {
      result.outcome = Outcome::Absent;
      break;
    }
    EnterInstall();
    if (ClaimRun(at, at + 1, before) == 1) {
      result.outcome = PutRun(at, 1, hit.page, before, Origin::Cache, &result);
    } else {
      result.skipped++;
      result.next = at + 1;
    }
    LeaveInstall();
    cache.Leave(hit);
    if (result.outcome == Outcome::Failed && result.err == EFAULT) {
      // The mapping ends before the slot: somebody cut the file off. The guest's side never answers EFAULT to a copy.
      cache.Lose();
      result.outcome = Outcome::Absent;
      result.err = 0;
    }
  }
  table_->counter(kSkipped).fetch_add(result.skipped, std::memory_order_relaxed);
  return result;
}

}  // namespace pagetide
