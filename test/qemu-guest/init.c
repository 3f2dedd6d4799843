/*
 * The init program, and only program, of the guest that QEMU tests move about: it fills memory with content that it can
 * predict, keeps rewriting it, and can tell at any time whether every page of it is right.
 *
 * What it can prove, and what not. Every page's content follows from (page number, generation). The generations are a
 * table in guest memory too, so a stale table page would go well with a stale content page; therefore each worker also
 * keeps the sum of its generations, and that sum leaves the guest with every heartbeat (guest.h). Kernel memory is
 * outside its reach; that is checked by the kernel running on.
 *
 * Kernel command line (all optional):
 *   pagetide.fraction=60   percent of free memory to use
 *   pagetide.limit=0       at most so many MiB (0: no limit)
 *   pagetide.zero=25       percent of pages that begin as zero
 *   pagetide.rate=200      pages rewritten a second, all workers together (0: only heartbeats)
 *   pagetide.set=50        percent of the pages that are rewritten
 *   pagetide.beat=50       milliseconds between heartbeats
 *   pagetide.seed=1        makes rewritten pages of one guest differ from another's
 *   pagetide.disk=0        pages that a virtio disk writes (disk.c)
 *   pagetide.churn=0       MiB that are taken and given back all the time (churn.c)
 *   pagetide.template=0    makes all pages, those from the start too, differ from those of guests with another number
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>

#include "churn.h"
#include "disk.h"
#include "guest.h"

enum { PAGE = 4096, WORDS = PAGE / 8, MAX_WORKERS = 64, TICK_MS = 10 };

struct worker {
  pthread_mutex_t lock; /* held for one rewrite, or while the worker's share is verified */
  uint64_t operations;  /* equals the sum of the generations of its pages */
  uint64_t root;        /* sum of mix(page, generation) over its pages */
  uint64_t random;
  int index;
} __attribute__((aligned(64)));

static uint64_t* memory;
static uint32_t* generation;
static uint64_t pages;
static int workers;
static struct worker worker[MAX_WORKERS];
static long zero_percent, set_percent;
static uint64_t seed, template;

static uint64_t entry(uint64_t page, uint32_t gen) {
  return mix(page * 0x100000001b3u + gen);
}

/* Pages that begin as zero become zero again at every fourth generation: both transitions happen. */
static bool is_zero(uint64_t page, uint32_t gen) {
  return (long)(mix(page) % 100) < zero_percent && gen % 4 == 0;
}

/* First half unpredictable, second half one word over and over: it compresses to about a half. */
static uint64_t first_word(uint64_t page, uint32_t gen) {
  return entry(page, gen) ^ (gen ? mix(seed) : 0) ^ (template ? mix(~template) : 0);
}

static void fill(uint64_t page, uint32_t gen) {
  uint64_t* p = memory + page * WORDS;
  if (is_zero(page, gen)) {
    /* Generation 0 of such a page is never written: the guest's kernel hands out zero pages. */
    if (gen) memset(p, 0, PAGE);
    return;
  }
  uint64_t x = first_word(page, gen);
  for (int i = 0; i < WORDS / 2; i++) p[i] = mix(x + i);
  for (int i = WORDS / 2; i < WORDS; i++) p[i] = x;
}

static bool right(uint64_t page, uint32_t gen) {
  const uint64_t* p = memory + page * WORDS;
  uint64_t differs = 0;
  if (is_zero(page, gen)) {
    for (int i = 0; i < WORDS; i++) differs |= p[i];
    return !differs;
  }
  uint64_t x = first_word(page, gen);
  for (int i = 0; i < WORDS / 2; i++) differs |= p[i] ^ mix(x + i);
  for (int i = WORDS / 2; i < WORDS; i++) differs |= p[i] ^ x;
  return !differs;
}

static struct checks checks;

/* Pages p with p % workers == index belong to a worker. */
static void* work(void* argument) {
  struct worker* w = argument;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(w->index, &set);
  sched_setaffinity(0, sizeof set, &set); /* a machine with fewer CPUs than we were told: then it stays unpinned */
  uint64_t mine = (pages - w->index + workers - 1) / workers;
  uint64_t hot = mine * set_percent / 100;
  if (hot == 0) hot = 1;
  long owed = 0; /* thousandths of a page */
  for (;;) {
    nap(TICK_MS);
    owed += atomic_load(&checks.rate) * TICK_MS / workers;
    for (; owed >= 1000; owed -= 1000) {
      w->random = mix(w->random);
      uint64_t page = w->random % hot * workers + w->index;
      pthread_mutex_lock(&w->lock);
      uint32_t gen = generation[page];
      if (!right(page, gen)) report_wrong(page, gen);
      fill(page, gen + 1);
      generation[page] = gen + 1;
      w->root += entry(page, gen + 1) - entry(page, gen);
      __atomic_add_fetch(&w->operations, 1, __ATOMIC_RELEASE);
      pthread_mutex_unlock(&w->lock);
    }
  }
  return NULL;
}

static uint64_t operations(void) {
  uint64_t sum = disk_reads() + churned();
  for (int i = 0; i < workers; i++) sum += __atomic_load_n(&worker[i].operations, __ATOMIC_ACQUIRE);
  return sum;
}

static void verify(struct verdict* verdict) {
  for (int i = 0; i < workers; i++) {
    struct worker* w = &worker[i];
    uint64_t root = 0, ops = 0;
    pthread_mutex_lock(&w->lock);
    for (uint64_t page = i; page < pages; page += workers) {
      root += entry(page, generation[page]);
      ops += generation[page];
      if (!right(page, generation[page])) add_bad(verdict, page);
    }
    /* past the last page: the generation table itself */
    if (root != w->root || ops != w->operations) add_bad(verdict, pages + i);
    pthread_mutex_unlock(&w->lock);
  }
  verify_disk(verdict);
  verify_churn(verdict);
}

int main(void) {
  start_machine();
  zero_percent = option("zero", 25, 0, 100);
  set_percent = option("set", 50, 1, 100);
  checks.beat_ms = option("beat", 50, 1, 10000);
  seed = option("seed", 1, 0, 1 << 30);
  template = option("template", 0, 0, 1 << 30);
  atomic_store(&checks.rate, option("rate", 200, 0, 10000000));
  workers = get_nprocs();
  if (workers > MAX_WORKERS) workers = MAX_WORKERS;

  struct sysinfo info;
  if (sysinfo(&info)) die("sysinfo");
  uint64_t bytes = (uint64_t)info.freeram * info.mem_unit / 100 * option("fraction", 60, 1, 95);
  uint64_t limit = (uint64_t)option("limit", 0, 0, 1 << 20) << 20;
  if (limit && bytes > limit) bytes = limit;
  pages = bytes / (PAGE + sizeof *generation);
  memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  generation = mmap(NULL, pages * sizeof *generation, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || generation == MAP_FAILED) die("mmap");
  mlockall(MCL_CURRENT | MCL_FUTURE); /* every page, the zero ones too, is one of the guest's own */

  for (int i = 0; i < workers; i++) {
    worker[i].index = i;
    worker[i].random = mix(seed + i);
    pthread_mutex_init(&worker[i].lock, NULL);
  }
  for (uint64_t page = 0; page < pages; page++) {
    fill(page, 0);
    worker[page % workers].root += entry(page, 0);
  }

  start_disk();
  start_churn();
  checks.operations = operations;
  checks.verify = verify;
  checks.items = pages;
  checks.workers = workers;
  pthread_attr_t attributes;
  pthread_t thread;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 64 << 10);
  open_channel(&checks);
  for (int i = 0; i < workers; i++)
    if (pthread_create(&thread, &attributes, work, &worker[i])) die("pthread_create");
  printf("pagetide-init: ready, %llu pages, %d workers\n", (unsigned long long)pages, workers);
  serve_channel(&checks);
}
