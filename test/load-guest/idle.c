/* A guest that does next to nothing: memory that was filled once, and four looks a second at one block of it. */
#include <stdlib.h>
#include <string.h>

#include "load.h"

enum { KEYS = 128, BLOCK = 1 << 16 };

static char* blocks[WORKERS];

static bool fill(struct worker* w, bool first) {
  (void)first;
  char* at = blocks[w->index] = malloc((size_t)KEYS * BLOCK);
  if (!at) die("malloc");
  for (uint64_t key = 0; key < KEYS; key++, at += BLOCK) {
    memset(at, 0, BLOCK);
    for (size_t used = 0; used < BLOCK / 2; used += 1024) text_of(item_of(w, key), used, at + used);
  }
  return true;
}

static bool is_block(struct worker* w, uint64_t key) {
  const char* at = blocks[w->index] + key * BLOCK;
  for (size_t used = 0; used < BLOCK; used += 1024) {
    memset(w->expected, 0, 1024);
    if (used < BLOCK / 2) text_of(item_of(w, key), used, w->expected);
    if (memcmp(at + used, w->expected, 1024) == 0) continue;
    return complain(w, "block %llu is wrong at %zu", (unsigned long long)key, used);
  }
  return true;
}

static bool operate(struct worker* w, uint64_t n) {
  return is_block(w, read_key(w, n));
}

static bool check(struct worker* w, struct verdict* verdict) {
  for (uint64_t key = 0; key < KEYS; key++)
    if (!is_block(w, key)) add_bad(verdict, item_of(w, key));
  return true;
}

const struct load idle_load = {
    .name = "idle",
    .rate = 4,
    .keys = KEYS,
    .fill = fill,
    .operate = operate,
    .check = check,
};
