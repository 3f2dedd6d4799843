// A userfaultfd inside a process that is already running, unmodified.
//
// The way: stop one thread of the target (PTRACE_SEIZE, PTRACE_INTERRUPT), point it at a `syscall` instruction, step
// over userfaultfd(2), put its registers back, detach; then take a copy of the descriptor with pidfd_getfd. The target
// stops for well under a millisecond. The original stays open in the target: as long as it lives, faults wait for a
// handler when the agent dies, instead of becoming zero pages, and the next agent can take it again.
//
// Safety: everything happens in one thread of ours that ends afterwards, so that whatever goes wrong, the kernel
// detaches the target when that thread is gone; registers are restored before any return once they were changed. The
// target must be no child of this Node process: libuv would take the stop away.
#pragma once

#include <cstdint>
#include <vector>

#include "core/error.h"

namespace pagetide {

struct Attached {
  int fd = -1;         // in this process
  int remote_fd = -1;  // in the target, left open
};

// Creates it inside `pid` and negotiates `features`. `remote_device`: number in the target of an open /dev/userfaultfd,
// for targets that may not call userfaultfd(2) (passed in by the VMM's own means); -1 without.
Result<Attached> AttachUserfault(int pid, uint64_t features, int remote_device);
// A copy of descriptor `remote_fd` of `pid`.
Result<int> TakeFd(int pid, int remote_fd);
// close(remote_fd) inside `pid`.
Error CloseRemote(int pid, int remote_fd);
// Numbers of the userfaultfds that `pid` has open.
Result<std::vector<int>> FindUserfaults(int pid);
Result<int> PidfdOpen(int pid);

}  // namespace pagetide
