// The destination's side of a hand-over: a userfaultfd over guest memory, sent to a pager as Firecracker sends it.
#pragma once

#include <string>

#include "guest/memory.h"

namespace guest {

struct Userfault {
  // Stays open for ever: if every copy of it were closed, missing pages would silently become zero pages.
  int fd = -1;
  // Faults inside system calls are not handled; the guest touches its memory in user mode only.
  bool user_mode_only = false;
  // Connection to the pager; open for ever too: its end tells the pager that the guest is gone.
  int connection = -1;
};

// Creates the userfaultfd in the first way that is permitted, and agrees on its features: remove events for private
// memory, none for shared memory (there a DONTNEED event would not mean that the content is gone).
// Registers the memory (missing pages) if `registered`.
bool CreateUserfault(const Memory& memory, bool registered, Userfault* userfault, std::string* error);

// Connects to the pager and sends one message: the regions as a JSON array, with the userfaultfd. Expects no answer.
bool HandOver(const Memory& memory, const std::string& socket, Userfault* userfault, std::string* error);

}  // namespace guest
