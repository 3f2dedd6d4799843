// Touches as much memory as is asked for and gives it back: warm --bytes N
//
// On a virtual machine a page that was not used lately may first have to be backed by the hypervisor again (free page
// reporting), which takes several times as long as a whole fault. Run on the CPU of the pager right before a
// measurement, it leaves the kernel's free lists with pages that are backed, for either side of a ratio.
#include "common.h"

int main(int argc, char** argv) {
  die_with_parent();
  Option options[] = {{"--bytes", NULL}};
  parse_options(argc, argv, options, 1);
  uint64_t bytes = number_option(&options[0]);
  uint64_t start = now_ns();
  char* memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) die("mmap %llu bytes", (unsigned long long)bytes);
  for (uint64_t at = 0; at < bytes; at += PAGE) memory[at] = 1;
  munmap(memory, bytes);
  printf("{\"event\":\"warmed\",\"ns\":%llu}\n", (unsigned long long)(now_ns() - start));
  return 0;
}
