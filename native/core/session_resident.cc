// Installing from the resident index: the page is copied out of another guest's memory, the copy is compared with its
// tag, and the copy is installed. See resident_index.h for why nothing that the other guest does can make it wrong.
#include <cerrno>

#include "core/resident_index.h"
#include "core/session.h"

namespace pagetide {

Installed FaultSession::InstallFromResident(uint64_t frame, uint64_t count, const uint8_t* tags, ResidentIndex& index,
                                            uint32_t domain, uint8_t* scratch, size_t scratch_size) {
  Installed result;
  result.next = frame;
  if (!CheckFrames(frame, count) || page_size_ != kTagPage || scratch_size < kTagPage) {
    result.outcome = Outcome::Failed;
    result.err = EINVAL;
    return result;
  }
  uint64_t end = frame + count;
  FrameState before[1];
  while (result.next < end && result.outcome == Outcome::Done) {
    uint64_t at = result.next;
    if (!NeedsContent(table_->Get(at))) {
      result.skipped++;
      result.next = at + 1;
      continue;
    }
    // A copy: another thread may be writing the manifest.
    Tag tag = Tag::Load(tags + at * sizeof(Tag));
    if (at + 1 < end) index.Prefetch(Tag::Load(tags + (at + 1) * sizeof(Tag)));
    if (tag.IsZero()) {
      MarkZero(at, 1);
      result.skipped++;
      result.next = at + 1;
      continue;
    }
    // Before the frame is claimed: should the page be somewhere else sooner, nobody waits for this.
    if (!index.Copy(domain, tag, scratch)) {
      result.outcome = Outcome::Absent;
      break;
    }
    EnterInstall();
    if (ClaimRun(at, at + 1, before) == 1) {
      result.outcome = PutRun(at, 1, scratch, before, Origin::Resident, &result);
    } else {
      result.skipped++;
      result.next = at + 1;
    }
    LeaveInstall();
  }
  table_->counter(kSkipped).fetch_add(result.skipped, std::memory_order_relaxed);
  return result;
}

}  // namespace pagetide
