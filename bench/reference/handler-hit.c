// Minimal pager for faults that local memory answers: one thread; read one message, copy one page from its slot,
// repeat.
//
//   handler-hit --socket PATH --arena FILE --table FILE [--spin-us N]
//
// stdout: {"event":"ready"} when the socket listens, {"event":"done",…} when the guest has gone.
#include "common.h"

int main(int argc, char** argv) {
  Option o[] = {{"--socket", NULL}, {"--arena", NULL}, {"--table", NULL}, {"--spin-us", "0"}};
  parse_options(argc, argv, o, 4);
  die_with_parent();
  uint64_t spin_ns = number_option(&o[3]) * 1000, arena_size, table_size;
  const char* arena = map_file(o[1].value, &arena_size, 1);
  const uint32_t* slots = map_file(o[2].value, &table_size, 1);
  uint64_t frames = table_size / sizeof *slots;
  errno = EINVAL;
  for (uint64_t frame = 0; frame < frames; frame++)
    if (((uint64_t)slots[frame] + 1) * PAGE > arena_size) die("frame %llu has no slot", (unsigned long long)frame);

  Guest guest = accept_guest(o[0].value, frames);
  uint64_t faults = 0;
  Waits waits = {0};
  struct uffd_msg message;
  while (next_fault(&guest, spin_ns, &waits, &message)) {
    uint64_t address = fault_address(&message);
    uint64_t frame = (address - guest.base + guest.offset) / PAGE;
    copy_page(&guest, address, arena + (uint64_t)slots[frame] * PAGE);
    faults++;
  }
  printf("{\"event\":\"done\",\"faults\":%llu,\"spun\":%llu,\"slept\":%llu}\n", (unsigned long long)faults,
         (unsigned long long)waits.spun, (unsigned long long)waits.slept);
  return 0;
}
