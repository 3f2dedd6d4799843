/*
 * A load: a real server inside the guest, and clients of it that know at any time what each answer must be.
 *
 * Every worker has a connection and a share of the items of its own. What its operation number N writes, and where,
 * follows from (worker, N) alone, and N leaves the guest with the heartbeats (../qemu-guest/guest.h). So a check needs
 * no record of what was acknowledged that could be as stale as the server's: it replays the operations 1 to N from
 * nothing.
 */
#ifndef PAGETIDE_LOAD_H
#define PAGETIDE_LOAD_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../qemu-guest/guest.h"

/* SERVER_USER is who the image's files for the server belong to (scripts/build-load-guests.mjs). */
enum { WORKERS = 4, MAX_VALUE = 1 << 18, SERVER_USER = 65534 };

struct connection {
  int fd; /* -1: not connected */
  size_t begin, end;
  char buffer[16384];
};

struct worker {
  pthread_mutex_t lock; /* held for one operation, or while the worker's share is verified */
  int index;
  bool broken;         /* the server failed it; it was reported, and no more operations follow */
  uint64_t operations; /* acknowledged; written under the lock */
  int64_t* now;        /* by key: what the load says the last operation on it left */
  struct connection connection;
  char *answer, *expected; /* MAX_VALUE bytes each */
};

struct load {
  const char* name;
  const char* const* server; /* its command, or NULL */
  int user;                  /* that the server runs as */
  long rate;                 /* operations a second, all workers together, unless the command line says otherwise */
  uint64_t keys;             /* a worker */
  /* Before the server starts. May be NULL, as those below where there is nothing to do. */
  void (*prepare)(void);
  /* Once, when the server answers, before there are operations. */
  bool (*fill)(struct worker*, bool first);
  /* Connects; waits until the server listens. */
  bool (*connect)(struct worker*);
  /* Operation `n`: true when it was acknowledged and all that was answered is right. */
  bool (*operate)(struct worker*, uint64_t n);
  /* What `now[key]` becomes by operation `n`. */
  int64_t (*written)(const struct worker*, uint64_t n, int64_t before);
  /* Reads back all that the worker's operations left, by `now`. False: the server failed. */
  bool (*check)(struct worker*, struct verdict*);
};

extern const struct load redis_load, nginx_load, node_load, postgres_load, idle_load;
extern const struct load* load;

/* Something to choose by, for operation `n`; another one for each `purpose`. */
uint64_t chosen(const struct worker*, uint64_t n, int purpose);
/* The key that operation `n` writes. */
uint64_t written_key(const struct worker*, uint64_t n);
/* One that it looks at. */
uint64_t read_key(const struct worker*, uint64_t n);
/* The worker's key as an item of the guest. */
uint64_t item_of(const struct worker*, uint64_t key);
/* The text, 64 to 1023 bytes, that version `n` of an item has; version 0 is there from the start. Returns its length.
 */
size_t text_of(uint64_t item, uint64_t version, char* text);

/* Says on the console, for people, what a worker met. Returns false. */
bool complain(const struct worker*, const char* format, ...) __attribute__((format(printf, 2, 3)));
/* Compares an answer with the text that it must be; tells of it where it isn't. */
bool is_text(const struct worker*, uint64_t key, uint64_t version, const char* answer, size_t length);

/* client.c. A server that closes, or what doesn't fit its buffer, is complained of, and false. */
bool connect_tcp(struct worker*, int port);
bool connect_unix(struct worker*, const char* path);
void hang_up(struct connection*);
bool send_all(struct worker*, const char* data, size_t length);
bool receive(struct worker*, void* data, size_t length);
/* A line without its CRLF. */
bool receive_line(struct worker*, char* line, size_t size);

#endif
