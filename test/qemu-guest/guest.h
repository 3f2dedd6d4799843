/*
 * What the init programs of all test guests have in common: the machine's start, settings from the kernel's command
 * line, the self-check channel.
 *
 * Self-check channel: the second serial port (ttyS1), lines of ASCII. An item is a page, or whatever else a guest
 * checks. guest  beat N CHAIN OPERATIONS        unasked; N counts from 1, CHAIN is hexadecimal guest  wrong ITEM
 * GENERATION          unasked; a worker met an item with other content than it must have host   verify ID guest
 * verified ID ok ITEMS | verified ID bad COUNT ITEM…  (at most 8 items) host   stats ID                       guest
 * stats ID ITEMS OPERATIONS WORKERS RATE host   rate ID N                      guest  rate ID N CHAIN(n) =
 * mix(CHAIN(n-1) + mix(n) + OPERATIONS), CHAIN(0) = 0, mix is the finalizer of splitmix64.
 *
 * What the guest counts leaves it with every heartbeat, chained to all beats before it: a guest that went back in time
 * as a whole repeats a beat or breaks the chain, and whoever listens sees it.
 */
#ifndef PAGETIDE_GUEST_H
#define PAGETIDE_GUEST_H

#include <stdatomic.h>
#include <stdint.h>

enum { MAX_BAD = 8 };

/* What a check found. Begin with those that were met by workers before: begin_verdict. */
struct verdict {
  uint64_t items; /* that were checked */
  uint64_t count; /* bad ones */
  uint64_t bad[MAX_BAD];
};

/* What a guest answers with. Called by the threads of the channel, so each takes the locks that it needs. */
struct checks {
  uint64_t (*operations)(void);
  void (*verify)(struct verdict*);
  uint64_t items;
  int workers;
  long beat_ms;
  atomic_long rate; /* operations a second, all workers together */
};

static inline uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/* Sleeps for the whole time, whatever interrupts it. */
void nap(long ms);
/* Says on the console what failed, with errno, and powers the machine off. */
_Noreturn void die(const char* what);

/* Mounts /proc, /dev and /sys, reads the kernel's command line, and loads the kernel's modules in /modules. */
void start_machine(void);
/* The number after pagetide.NAME= on the command line, within bounds. */
long option(const char* name, long otherwise, long low, long high);

/* Opens the channel and starts the thread that beats. */
void open_channel(struct checks*);
/* Answers requests, for ever. */
_Noreturn void serve_channel(struct checks*);
/* Tells at once of an item that is wrong, and remembers it: every verdict from now on says so. */
void report_wrong(uint64_t item, uint64_t generation);
void add_bad(struct verdict*, uint64_t item);

#endif
