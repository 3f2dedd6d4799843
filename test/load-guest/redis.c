/*
 * Redis: strings that are overwritten, a counter and a list for each worker.
 *
 * Operation N of worker W is one pipeline: SET W:KEY, GET another key, INCR count:W (which must say N), RPUSH recent:W
 * N and LTRIM recent:W to the last RECENT.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "load.h"

enum { KEYS = 1000, PORT = 6379, RECENT = 100, BATCH = 50, LINE = 128 };

static const char* const command[] = {"/usr/bin/redis-server", "/etc/redis.conf", NULL};

static bool open_it(struct worker* w) {
  return connect_tcp(w, PORT);
}

static size_t add_set(const struct worker* w, uint64_t key, uint64_t version, char* out) {
  size_t length = text_of(item_of(w, key), version, w->expected);
  char name[LINE];
  int size = snprintf(name, sizeof name, "%d:%llu", w->index, (unsigned long long)key);
  size_t used = sprintf(out, "*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%zu\r\n", size, name, length);
  memcpy(out + used, w->expected, length);
  memcpy(out + used + length, "\r\n", 2);
  return used + length + 2;
}

/* Commands without payload go in Redis's inline form. */
static size_t add_get(const struct worker* w, uint64_t key, char* out) {
  return sprintf(out, "GET %d:%llu\r\n", w->index, (unsigned long long)key);
}

/* The next reply must be exactly this line. */
static bool is_line(struct worker* w, const char* expected) {
  char line[LINE];
  if (!receive_line(w, line, sizeof line)) return false;
  return strcmp(line, expected) == 0 || complain(w, "`%s` for an answer instead of `%s`", line, expected);
}

static bool is_number(struct worker* w, char type, uint64_t number) {
  char expected[LINE];
  snprintf(expected, sizeof expected, "%c%llu", type, (unsigned long long)number);
  return is_line(w, expected);
}

/* Takes a bulk reply into w->answer, zero at its end. */
static bool receive_bulk(struct worker* w, size_t* length) {
  char line[LINE];
  if (!receive_line(w, line, sizeof line)) return false;
  long size = line[0] == '$' ? strtol(line + 1, NULL, 10) : -1;
  if (size < 0 || size + 2 > MAX_VALUE) return complain(w, "`%s` for an answer instead of a value", line);
  if (!receive(w, w->answer, size + 2)) return false;
  w->answer[size] = 0;
  *length = size;
  return true;
}

static bool fill(struct worker* w, bool first) {
  (void)first;
  static char out[BATCH * 1200];
  for (uint64_t key = 0; key < KEYS; key += BATCH) {
    size_t used = 0;
    for (uint64_t i = key; i < key + BATCH; i++) used += add_set(w, i, 0, out + used);
    if (!send_all(w, out, used)) return false;
    for (uint64_t i = key; i < key + BATCH; i++)
      if (!is_line(w, "+OK")) return false;
  }
  return true;
}

static bool operate(struct worker* w, uint64_t n) {
  char out[4096];
  uint64_t written = written_key(w, n), read = read_key(w, n);
  size_t used = add_set(w, written, n, out);
  used += add_get(w, read, out + used);
  used += sprintf(out + used, "INCR count:%d\r\nRPUSH recent:%d %llu\r\nLTRIM recent:%d -%d -1\r\n", w->index, w->index,
                  (unsigned long long)n, w->index, RECENT);
  size_t length;
  if (!send_all(w, out, used) || !is_line(w, "+OK") || !receive_bulk(w, &length)) return false;
  uint64_t version = read == written ? n : (uint64_t)w->now[read];
  return is_text(w, read, version, w->answer, length) && is_number(w, ':', n) &&
         is_number(w, ':', n > RECENT ? RECENT + 1 : n) && is_line(w, "+OK");
}

static int64_t written(const struct worker* w, uint64_t n, int64_t before) {
  (void)w;
  (void)before;
  return n;
}

static bool check(struct worker* w, struct verdict* verdict) {
  char out[BATCH * 40 + 100];
  size_t length;
  for (uint64_t key = 0; key < KEYS; key += BATCH) {
    size_t used = 0;
    for (uint64_t i = key; i < key + BATCH; i++) used += add_get(w, i, out + used);
    if (!send_all(w, out, used)) return false;
    for (uint64_t i = key; i < key + BATCH; i++) {
      if (!receive_bulk(w, &length)) return false;
      if (!is_text(w, i, w->now[i], w->answer, length)) add_bad(verdict, item_of(w, i));
    }
  }
  if (w->operations == 0) return true;
  size_t used = sprintf(out, "GET count:%d\r\nLRANGE recent:%d 0 -1\r\n", w->index, w->index);
  uint64_t recent = w->operations < RECENT ? w->operations : RECENT;
  if (!send_all(w, out, used) || !receive_bulk(w, &length)) return false;
  if (strtoull(w->answer, NULL, 10) != w->operations) return complain(w, "its counter says %s", w->answer);
  if (!is_number(w, '*', recent)) return false;
  for (uint64_t n = w->operations - recent + 1; n <= w->operations; n++) {
    if (!receive_bulk(w, &length)) return false;
    if (strtoull(w->answer, NULL, 10) != n)
      return complain(w, "its list has %s for %llu", w->answer, (unsigned long long)n);
  }
  return true;
}

const struct load redis_load = {
    .name = "redis",
    .server = command,
    .user = SERVER_USER,
    .rate = 80,
    .keys = KEYS,
    .connect = open_it,
    .fill = fill,
    .operate = operate,
    .written = written,
    .check = check,
};
