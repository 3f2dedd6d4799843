// Makes the memory that every pager of a bench serves from, so that all serve the same pages from the same places.
//
//   make-slots --frames N --seed S --arena FILE --table FILE --memory FILE [--slots N]
//
// arena: N page slots; table: one u32 a frame, its slot, a permutation from the seed (scattered: neighbouring frames do
// not lie side by side, as in a cache that filled over time); memory: the same pages in frame order. `-` leaves a file
// out. Slots beyond the frames stay zero.
#include "common.h"

static void* create(const char* path, uint64_t size) {
  int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) die("create %s", path);
  // fallocate: running out of space is an error here, not a SIGBUS in a pager later.
  if (fallocate(fd, 0, 0, (off_t)size) != 0) die("fallocate %s, %llu bytes", path, (unsigned long long)size);
  void* map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (map == MAP_FAILED) die("mmap %s", path);
  close(fd);
  return map;
}

int main(int argc, char** argv) {
  Option o[] = {{"--frames", NULL}, {"--seed", NULL},   {"--arena", NULL},
                {"--table", NULL},  {"--memory", NULL}, {"--slots", "0"}};
  parse_options(argc, argv, o, 6);
  die_with_parent();
  uint64_t frames = number_option(&o[0]), seed = number_option(&o[1]), slots = number_option(&o[5]);
  if (slots == 0) slots = frames;
  errno = EINVAL;
  if (frames == 0 || slots > UINT32_MAX || slots < frames) die("1 to 2^32-1 slots, at least as many as frames");

  uint32_t* order = malloc(slots * sizeof *order);
  if (!order) die("out of memory");
  for (uint64_t i = 0; i < slots; i++) order[i] = (uint32_t)i;
  shuffle(order, slots, seed);
  if (strcmp(o[3].value, "-") != 0) memcpy(create(o[3].value, frames * sizeof *order), order, frames * sizeof *order);
  char* arena = strcmp(o[2].value, "-") ? create(o[2].value, slots * PAGE) : NULL;
  char* memory = strcmp(o[4].value, "-") ? create(o[4].value, frames * PAGE) : NULL;
  uint64_t page[PAGE / 8];
  for (uint64_t frame = 0; frame < frames; frame++) {
    fill_page(page, seed, frame);
    if (arena) memcpy(arena + (uint64_t)order[frame] * PAGE, page, PAGE);
    if (memory) memcpy(memory + frame * PAGE, page, PAGE);
  }
  printf("{\"event\":\"made\",\"frames\":%llu,\"slots\":%llu}\n", (unsigned long long)frames,
         (unsigned long long)slots);
  return 0;
}
