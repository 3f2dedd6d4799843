/*
 * Two loads over HTTP/1.1.
 *
 * nginx: files that lie on the guest's file system. Operation N gets a file, every fourth time only a range of it, or,
 * every sixteenth, a file that is not there; status, length and each byte must be right.
 *
 * node: a service that keeps texts in its heap. Operation N puts a text, gets another, and posts to a counter, which
 * must say N.
 *
 * Connections are kept alive; every RENEW operations a worker makes a new one.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "load.h"

enum { FILES = 16, TEXTS = 200, BATCH = 20, NGINX_PORT = 80, NODE_PORT = 8080, RENEW = 32, LINE = 512 };

struct answer {
  int status;
  size_t length; /* of the body, which is in w->answer, a zero behind it */
};

/* `more` is further header lines, each with its CRLF. */
static bool send_request(struct worker* w, const char* method, const char* path, const char* more, const char* body,
                         size_t length) {
  char out[LINE + 1024];
  size_t used =
      snprintf(out, LINE, "%s %s HTTP/1.1\r\nHost: guest\r\nContent-Length: %zu\r\n%s\r\n", method, path, length, more);
  memcpy(out + used, body, length);
  return send_all(w, out, used + length);
}

static bool take_answer(struct worker* w, struct answer* answer) {
  char line[LINE];
  long size = -1;
  if (!receive_line(w, line, sizeof line)) return false;
  if (sscanf(line, "HTTP/1.1 %d ", &answer->status) != 1) return complain(w, "`%s` for a status line", line);
  for (;;) {
    if (!receive_line(w, line, sizeof line)) return false;
    if (line[0] == 0) break;
    if (strncasecmp(line, "content-length:", 15) == 0) size = strtol(line + 15, NULL, 10);
    if (strcasecmp(line, "connection: close") == 0) return complain(w, "%d, and the server closes", answer->status);
  }
  if (answer->status == 204) size = 0;
  if (size < 0 || size >= MAX_VALUE) return complain(w, "%d with a body of %ld bytes", answer->status, size);
  answer->length = size;
  if (!receive(w, w->answer, size)) return false;
  w->answer[size] = 0;
  return true;
}

static bool ask(struct worker* w, const char* method, const char* path, const char* more, struct answer* answer) {
  return send_request(w, method, path, more, "", 0) && take_answer(w, answer);
}

static bool is_status(const struct worker* w, const char* path, int status, int expected) {
  return status == expected || complain(w, "%s: status %d instead of %d", path, status, expected);
}

/* --- nginx --- */

static const char* const nginx_command[] = {"/usr/sbin/nginx", "-c", "/etc/nginx.conf", NULL};

static size_t size_of(uint64_t item) {
  return 4096 + mix(item) % 200000;
}

/* Bytes `from` to `to` of a file: hexadecimal digits. */
static void file_bytes(uint64_t item, size_t from, size_t to, char* out) {
  uint64_t word = 0;
  for (size_t at = from; at < to; at++) {
    if (at == from || at % 16 == 0) word = mix(mix(item) + at / 16);
    *out++ = "0123456789abcdef"[word >> (at % 16 * 4) & 15];
  }
}

static void write_files(void) {
  char *bytes = malloc(MAX_VALUE), path[64];
  if (!bytes) die("malloc");
  for (uint64_t item = 0; item < WORKERS * FILES; item++) {
    snprintf(path, sizeof path, "/srv/%llu", (unsigned long long)item);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    size_t size = size_of(item);
    file_bytes(item, 0, size, bytes);
    if (fd < 0 || write(fd, bytes, size) != (ssize_t)size || close(fd)) die(path);
  }
  free(bytes);
}

static bool open_nginx(struct worker* w) {
  return connect_tcp(w, NGINX_PORT);
}

/* Gets bytes `from` to `to` of a file and compares them. False: the server failed. */
static bool get_bytes(struct worker* w, uint64_t item, size_t from, size_t to, bool* right) {
  char path[64], range[64] = "";
  struct answer answer;
  bool whole = to - from == size_of(item);
  snprintf(path, sizeof path, "/%llu", (unsigned long long)item);
  if (!whole) snprintf(range, sizeof range, "Range: bytes=%zu-%zu\r\n", from, to - 1);
  if (!ask(w, "GET", path, range, &answer) || !is_status(w, path, answer.status, whole ? 200 : 206)) return false;
  file_bytes(item, from, to, w->expected);
  *right = answer.length == to - from && memcmp(w->answer, w->expected, to - from) == 0;
  if (!*right) complain(w, "%s from %zu: %zu bytes that are not those of the file", path, from, answer.length);
  return true;
}

static bool get_file(struct worker* w, uint64_t n) {
  struct answer answer;
  if (n % RENEW == 0) open_nginx(w);
  if (n % 16 == 1) return ask(w, "GET", "/none", "", &answer) && is_status(w, "/none", answer.status, 404);
  uint64_t item = chosen(w, n, 2) % (WORKERS * FILES);
  size_t size = size_of(item), from = 0, to = size;
  bool right;
  if (n % 4 == 2) {
    from = chosen(w, n, 3) % (size / 2);
    to = from + 1 + chosen(w, n, 4) % (size / 2);
  }
  return get_bytes(w, item, from, to, &right) && right;
}

static bool check_files(struct worker* w, struct verdict* verdict) {
  for (uint64_t key = 0; key < FILES; key++) {
    uint64_t item = item_of(w, key);
    bool right;
    if (!get_bytes(w, item, 0, size_of(item), &right)) return false;
    if (!right) add_bad(verdict, item);
  }
  return true;
}

const struct load nginx_load = {
    .name = "nginx",
    .server = nginx_command,
    .user = 0, /* its workers don't stay root */
    .rate = 24,
    .keys = FILES,
    .prepare = write_files,
    .connect = open_nginx,
    .operate = get_file,
    .check = check_files,
};

/* --- Node.js --- */

static const char* const node_command[] = {"/usr/bin/node", "--max-old-space-size=64", "/etc/server.js", NULL};

static bool open_node(struct worker* w) {
  return connect_tcp(w, NODE_PORT);
}

static const char* text_path(const struct worker* w, uint64_t key, char path[64]) {
  snprintf(path, 64, "/texts/%llu", (unsigned long long)item_of(w, key));
  return path;
}

static bool send_put(struct worker* w, uint64_t key, uint64_t version) {
  char path[64];
  size_t length = text_of(item_of(w, key), version, w->expected);
  return send_request(w, "PUT", text_path(w, key, path), "", w->expected, length);
}

static bool take_put(struct worker* w) {
  struct answer answer;
  return take_answer(w, &answer) && is_status(w, "PUT", answer.status, 204);
}

static bool send_get(struct worker* w, uint64_t key) {
  char path[64];
  return send_request(w, "GET", text_path(w, key, path), "", "", 0);
}

static bool take_get(struct worker* w, uint64_t key, uint64_t version, bool* right) {
  struct answer answer;
  if (!take_answer(w, &answer) || !is_status(w, "GET", answer.status, 200)) return false;
  *right = is_text(w, key, version, w->answer, answer.length);
  return true;
}

static bool count(struct worker* w, const char* method, uint64_t expected) {
  char path[64];
  struct answer answer;
  snprintf(path, sizeof path, "/counts/%d", w->index);
  if (!ask(w, method, path, "", &answer) || !is_status(w, path, answer.status, 200)) return false;
  return strtoull(w->answer, NULL, 10) == expected || complain(w, "its counter says %s", w->answer);
}

/* Many at a time, without waiting for each answer: a round trip is dear in an emulated guest. */
static bool fill_node(struct worker* w, bool first) {
  (void)first;
  for (uint64_t key = 0; key < TEXTS; key += BATCH) {
    for (uint64_t i = key; i < key + BATCH; i++)
      if (!send_put(w, i, 0)) return false;
    for (uint64_t i = key; i < key + BATCH; i++)
      if (!take_put(w)) return false;
  }
  return true;
}

static bool operate_node(struct worker* w, uint64_t n) {
  uint64_t written = written_key(w, n), read = read_key(w, n);
  bool right;
  if (n % RENEW == 0) open_node(w);
  return send_put(w, written, n) && take_put(w) && send_get(w, read) &&
         take_get(w, read, read == written ? n : (uint64_t)w->now[read], &right) && right && count(w, "POST", n);
}

static int64_t written_by_node(const struct worker* w, uint64_t n, int64_t before) {
  (void)w;
  (void)before;
  return n;
}

static bool check_node(struct worker* w, struct verdict* verdict) {
  for (uint64_t key = 0; key < TEXTS; key += BATCH) {
    for (uint64_t i = key; i < key + BATCH; i++)
      if (!send_get(w, i)) return false;
    for (uint64_t i = key; i < key + BATCH; i++) {
      bool right;
      if (!take_get(w, i, w->now[i], &right)) return false;
      if (!right) add_bad(verdict, item_of(w, i));
    }
  }
  return count(w, "GET", w->operations);
}

const struct load node_load = {
    .name = "node",
    .server = node_command,
    .user = SERVER_USER,
    .rate = 8,
    .keys = TEXTS,
    .connect = open_node,
    .fill = fill_node,
    .operate = operate_node,
    .written = written_by_node,
    .check = check_node,
};
