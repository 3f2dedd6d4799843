// Runs a program on given CPUs: pinned CPU[,CPU…] PROGRAM [ARGUMENT…]
//
// Where guest and pager run decides more than what the pager does: on one CPU a fault is two context switches, on two
// it is a wake-up between CPUs. So a bench says where both run, and says the same for both sides of a ratio. Keeps the
// process id (exec).
#include <sched.h>

#include "common.h"

int main(int argc, char** argv) {
  errno = EINVAL;
  if (argc < 3) die("pinned CPU[,CPU] PROGRAM [ARGUMENT]");
  die_with_parent();
  cpu_set_t set;
  CPU_ZERO(&set);
  for (char* cpu = strtok(argv[1], ","); cpu; cpu = strtok(NULL, ",")) {
    uint64_t number = to_number("CPU", cpu);
    errno = EINVAL;
    if (number >= CPU_SETSIZE) die("no such CPU: %s", cpu);
    CPU_SET(number, &set);
  }
  if (sched_setaffinity(0, sizeof set, &set) != 0) die("sched_setaffinity");
  execvp(argv[2], argv + 2);
  die("exec %s", argv[2]);
}
