// Minimal fill: one thread that copies every frame of a guest, page by page, from scattered slots. The guest must not
// touch its memory meanwhile: nobody answers faults here.
//
//   handler-fill --socket PATH --arena FILE --table FILE
//
// stdout: {"event":"ready"}, then {"event":"attached","frames"} when the guest has handed over; a line on stdin starts
// the fill; {"event":"filled","frames","startNs","endNs","ns","mibPerS"}; {"event":"done"} when the guest has gone.
#include "common.h"

int main(int argc, char** argv) {
  Option o[] = {{"--socket", NULL}, {"--arena", NULL}, {"--table", NULL}};
  parse_options(argc, argv, o, 3);
  die_with_parent();
  uint64_t arena_size, table_size;
  const char* arena = map_file(o[1].value, &arena_size, 1);
  const uint32_t* slots = map_file(o[2].value, &table_size, 1);
  uint64_t all = table_size / sizeof *slots;
  errno = EINVAL;
  for (uint64_t frame = 0; frame < all; frame++)
    if (((uint64_t)slots[frame] + 1) * PAGE > arena_size) die("frame %llu has no slot", (unsigned long long)frame);

  Guest guest = accept_guest(o[0].value, all);
  uint64_t frames = guest.size / PAGE, first = guest.offset / PAGE;
  printf("{\"event\":\"attached\",\"frames\":%llu}\n", (unsigned long long)frames);
  fflush(stdout);
  if (getchar() == EOF) return 0;

  uint64_t start = now_ns();
  for (uint64_t i = 0; i < frames; i++)
    copy_page(&guest, guest.base + i * PAGE, arena + (uint64_t)slots[first + i] * PAGE);
  uint64_t end = now_ns();
  printf("{\"event\":\"filled\",\"frames\":%llu,\"startNs\":%llu,\"endNs\":%llu,\"ns\":%llu,\"mibPerS\":%.2f}\n",
         (unsigned long long)frames, (unsigned long long)start, (unsigned long long)end,
         (unsigned long long)(end - start), (double)frames * PAGE / 1048576.0 / ((double)(end - start) / 1e9));
  fflush(stdout);
  char byte;
  while (read(guest.connection, &byte, 1) > 0) continue;
  printf("{\"event\":\"done\"}\n");
  return 0;
}
