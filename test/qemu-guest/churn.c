/*
 * Memory that comes and goes: a thread takes memory from the kernel, fills it, keeps it for a moment, checks it and
 * gives it back. So frames go from a program to the kernel's free list, from there into the balloon where there is one,
 * and all the way back; each time a page has to hold what was written into it last.
 */
#define _GNU_SOURCE
#include "churn.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/mman.h>

enum { PAGE = 4096, WORDS = PAGE / 8, KEPT_MS = 30, NAP_MS = 10 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* held while the memory is filled, checked, or goes */
static uint64_t* memory;                                 /* NULL: given back */
static uint64_t pages;
static uint64_t turn;
static atomic_ulong done;

static bool right(uint64_t page) {
  const uint64_t* p = memory + page * WORDS;
  uint64_t word = mix(turn * 0x100000001b3u + page), differs = 0;
  for (int i = 0; i < WORDS; i++) differs |= p[i] ^ (word + i);
  return !differs;
}

static void take(void) {
  memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) die("memory that comes and goes");
  for (uint64_t page = 0; page < pages; page++) {
    uint64_t* p = memory + page * WORDS;
    for (int i = 0; i < WORDS; i++)
      if (p[i]) { /* new memory is zero */
        report_wrong(CHURN_ITEMS + page, turn);
        break;
      }
    uint64_t word = mix(turn * 0x100000001b3u + page);
    for (int i = 0; i < WORDS; i++) p[i] = word + i;
  }
}

static void give(void) {
  for (uint64_t page = 0; page < pages; page++)
    if (!right(page)) report_wrong(CHURN_ITEMS + page, turn);
  if (munmap(memory, pages * PAGE)) die("munmap");
  memory = NULL;
  atomic_fetch_add(&done, pages);
}

static void* churn(void* argument) {
  for (;;) {
    pthread_mutex_lock(&lock);
    turn++;
    take();
    pthread_mutex_unlock(&lock);
    nap(KEPT_MS);
    pthread_mutex_lock(&lock);
    give();
    pthread_mutex_unlock(&lock);
    nap(NAP_MS);
  }
  return argument;
}

void start_churn(void) {
  pages = ((uint64_t)option("churn", 0, 0, 1 << 20) << 20) / PAGE;
  if (pages == 0) return;
  pthread_attr_t attributes;
  pthread_t thread;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 64 << 10);
  if (pthread_create(&thread, &attributes, churn, NULL)) die("pthread_create");
}

uint64_t churned(void) {
  return atomic_load(&done);
}

void verify_churn(struct verdict* verdict) {
  pthread_mutex_lock(&lock);
  for (uint64_t page = 0; memory && page < pages; page++)
    if (!right(page)) add_bad(verdict, CHURN_ITEMS + page);
  pthread_mutex_unlock(&lock);
}
