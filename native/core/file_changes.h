// Which files were changed by anything but a mapping: write(2), fallocate(2), truncation, and MADV_REMOVE, which
// punches through the file. From inotify's IN_MODIFY.
//
// Write tracking (write_tracking.h) doesn't see those. The worst of them is a page that is punched out and then read:
// the kernel keeps the protection of the page that was there for the page of zeros that the reader gets (it is a marker
// in the page table, Linux 5.19), so no scan reports it, and a look at the holes comes too late.
//
// The kernel queues the event when the change is done and before the system call returns. So whoever waits until a
// process has ended its calls, and asks then, is told of each. While calls are under way, what is changed may be read
// before the event is there; the next look tells it.
//
// Files of memfd_create tell nothing (their own descriptors are exempt from fsnotify), and are refused.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>

#include "core/error.h"

namespace pagetide {

class FileChanges {
 public:
  // One inotify instance for the process: a user may have 128 (fs.inotify.max_user_instances).
  static FileChanges& OfProcess();

  FileChanges() = default;
  ~FileChanges();
  FileChanges(const FileChanges&) = delete;
  FileChanges& operator=(const FileChanges&) = delete;

  // Begins to count changes of the file that is open as `fd`, which may be closed then. The same file can be watched
  // several times. Returns the watch's number. Unsupported for a memfd; inotify's errors, e.g. ENOSPC where the user
  // has too many watches.
  Result<int> Watch(int fd);
  // A number that is larger than the last one when the file was changed meanwhile, at least once. Never blocks, and
  // allocates nothing. Larger each time where the kernel can't tell any more.
  Result<uint64_t> Count(int watch);
  // Idempotent.
  void Unwatch(int watch);

 private:
  struct File {
    int watches = 0;
    uint64_t count = 0;
    bool lost = false;  // the kernel has ended its watch
  };
  Error Drain();

  std::mutex mutex_;
  int inotify_ = -1;
  int next_ = 1;
  std::map<int, File> files_;   // by inotify's number: one a file, however often it is watched
  std::map<int, int> watches_;  // ours, to inotify's
};

}  // namespace pagetide
