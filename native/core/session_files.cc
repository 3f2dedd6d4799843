// A session over a guest's memory files: what is copied before the guest runs here. See session.h for its rules.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "core/session.h"

namespace pagetide {

Result<std::shared_ptr<FaultSession>> FaultSession::CreateOverFiles(const std::vector<TargetFile>& files,
                                                                    uint64_t page_size) {
  auto checked = CheckFiles(files, page_size);
  if (!checked.ok()) return checked.error;
  std::shared_ptr<FaultSession> session(new FaultSession());
  for (const TargetFile& file : checked.value) {
    // Not the caller's own: its offset and its life are not ours.
    int fd = fcntl(file.fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0) return SyscallError("fcntl", errno);
    session->files_.push_back(fd);
    session->regions_.push_back({0, file.size, file.offset});
  }
  session->page_size_ = page_size;
  session->shared_ = true;
  if (Error error = session->SetUp({}, false)) return error;
  session->origins_.reset(new uint8_t[session->frames()]());
  return session;
}

// The frames are claimed: nobody else writes them, and nobody reads them before they are Present, which they become
// when the kernel has taken all of their bytes. A write that ends inside a page leaves that frame's content torn, and
// its state what it was before.
Outcome FaultSession::WriteRun(uint64_t frame, uint32_t run, const uint8_t* pages, Origin origin, uint32_t* done,
                               Installed* result) {
  const Region* region = RegionOfFrame(frame);
  int fd = files_[static_cast<size_t>(region - regions_.data())];
  uint64_t at = (frame << page_shift_) - region->offset;
  uint64_t size = static_cast<uint64_t>(run) << page_shift_, written = 0;
  while (written < size) {
    ssize_t n = pwrite(fd, pages + written, size - written, static_cast<off_t>(at + written));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      result->err = n < 0 ? errno : EIO;
      return Outcome::Failed;
    }
    // A write that came short is gone on with, also inside a page: the next attempt tells the true error.
    written += static_cast<uint64_t>(n);
    for (; (static_cast<uint64_t>(*done) + 1) << page_shift_ <= written; ++*done) {
      uint64_t f = frame + *done;
      std::atomic_ref<uint8_t>(origins_[f]).store(static_cast<uint8_t>(origin), std::memory_order_relaxed);
      table_->Set(f, FrameState::Present);
    }
  }
  return Outcome::Done;
}

int FaultSession::PunchFiles(uint64_t frame, uint64_t count) {
  while (count > 0) {
    const Region* region = RegionOfFrame(frame);
    uint64_t here = std::min(count, ((region->offset + region->size) >> page_shift_) - frame);
    int fd = files_[static_cast<size_t>(region - regions_.data())];
    off_t at = static_cast<off_t>((frame << page_shift_) - region->offset);
    while (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, static_cast<off_t>(here << page_shift_)) !=
           0) {
      if (errno != EINTR) return errno;
    }
    frame += here;
    count -= here;
  }
  return 0;
}

Error FaultSession::Punch(uint64_t frame, uint64_t count, FrameState state) {
  if (files_.empty() || !CheckFrames(frame, count)) return ArgumentError("no frames of a file", frame, count);
  if (int err = PunchFiles(frame, count))
    return SyscallError("fallocate", err, frame << page_shift_, count << page_shift_);
  Reset(frame, count, state);
  return {};
}

Error FaultSession::PunchAbsent() {
  if (files_.empty()) return ArgumentError("the session has no files");
  for (uint64_t f = 0; f < frames();) {
    uint64_t first = f;
    while (f < frames() && table_->Get(f) != FrameState::Present) f++;
    if (int err = f == first ? 0 : PunchFiles(first, f - first))
      return SyscallError("fallocate", err, first << page_shift_, (f - first) << page_shift_);
    while (f < frames() && table_->Get(f) == FrameState::Present) f++;
  }
  return {};
}

// What an earlier content, or a write that failed, has left there goes before the frame is called Zero: nothing will
// ever be written to it again, and it is to read as zero.
bool FaultSession::ZeroInFile(uint64_t frame) {
  FrameState before = table_->Get(frame);
  bool claimed = false;
  while (NeedsContent(before) && !(claimed = table_->Move(frame, before, FrameState::Installing))) {
  }
  if (!claimed) return false;
  bool punched = PunchFiles(frame, 1) == 0;
  table_->Set(frame, punched ? FrameState::Zero : FrameState::Missing);
  return punched;
}

}  // namespace pagetide
