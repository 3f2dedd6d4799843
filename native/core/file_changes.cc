#include "core/file_changes.h"

#include <sys/inotify.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstring>

namespace pagetide {

FileChanges& FileChanges::OfProcess() {
  // Never destroyed: worker threads may outlive static objects.
  static auto* changes = new FileChanges();
  return *changes;
}

FileChanges::~FileChanges() {
  if (inotify_ >= 0) close(inotify_);
}

Result<int> FileChanges::Watch(int fd) {
  char path[40];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  char target[16];
  ssize_t length = readlink(path, target, sizeof target);
  if (length < 0) return SyscallError("readlink", errno, 0, 0, path);
  if (length >= 7 && memcmp(target, "/memfd:", 7) == 0)
    return MakeError(ErrorKind::Unsupported, "the kernel does not tell of changes of a memfd");

  std::lock_guard<std::mutex> lock(mutex_);
  if (inotify_ < 0) {
    inotify_ = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (inotify_ < 0) return SyscallError("inotify_init1", errno);
  }
  int file = inotify_add_watch(inotify_, path, IN_MODIFY);
  if (file < 0) return SyscallError("inotify_add_watch", errno, 0, 0, path);
  files_[file].watches++;
  int watch = next_++;
  watches_[watch] = file;
  return watch;
}

Result<uint64_t> FileChanges::Count(int watch) {
  std::lock_guard<std::mutex> lock(mutex_);
  auto found = watches_.find(watch);
  if (found == watches_.end()) return ArgumentError("no such watch");
  if (Error error = Drain()) return error;
  File& file = files_[found->second];
  if (file.lost) file.count++;
  return file.count;
}

void FileChanges::Unwatch(int watch) {
  std::lock_guard<std::mutex> lock(mutex_);
  auto found = watches_.find(watch);
  if (found == watches_.end()) return;
  auto file = files_.find(found->second);
  watches_.erase(found);
  if (--file->second.watches > 0) return;
  // Numbers go round in ascending order, so events that are queued still are not taken for another file's.
  if (!file->second.lost) inotify_rm_watch(inotify_, file->first);
  files_.erase(file);
}

// Equal events that follow each other are merged by the kernel, so the queue stays short.
Error FileChanges::Drain() {
  alignas(inotify_event) char events[64 * (sizeof(inotify_event))];
  for (;;) {
    ssize_t got = read(inotify_, events, sizeof events);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return {};
    if (got < 0) return SyscallError("read(inotify)", errno);
    if (got == 0) return {};
    for (ssize_t at = 0; at < got;) {
      const auto* event = reinterpret_cast<const inotify_event*>(events + at);
      at += static_cast<ssize_t>(sizeof *event + event->len);
      if ((event->mask & IN_Q_OVERFLOW) != 0) {
        for (auto& [number, file] : files_) file.count++;
        continue;
      }
      auto file = files_.find(event->wd);
      if (file == files_.end()) continue;
      file->second.count++;
      if ((event->mask & (IN_IGNORED | IN_UNMOUNT)) != 0) file->second.lost = true;
    }
  }
}

}  // namespace pagetide
