/*
 * Pages that a disk writes. Threads read blocks of /dev/vda into pages of their own, past the guest's page cache, so
 * that the disk's DMA goes right into them; which block each page holds they note when the read has ended. Block b of
 * the disk holds b in each of its words, times PAGE plus the word's number (test/support/disk.ts).
 */
#define _GNU_SOURCE
#include "disk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "guest.h"

enum { PAGE = 4096, WORDS = PAGE / 8, THREADS = 4, NAP_MS = 20, NOTHING = -1 };

struct reader {
  pthread_mutex_t lock; /* held for one read, or while the reader's pages are verified */
  int index;
};

static struct reader reader[THREADS];
static uint64_t* memory;
static long* holds; /* block of each page */
static long pages;
static uint64_t blocks;
static int disk;
static atomic_ulong reads;

static bool right(long page) {
  const uint64_t* p = memory + page * WORDS;
  uint64_t differs = 0;
  if (holds[page] == NOTHING) return true;
  for (uint64_t i = 0; i < WORDS; i++) differs |= p[i] ^ ((uint64_t)holds[page] * PAGE + i);
  return !differs;
}

/* Pages p with p % THREADS == index, one after the other: so a page is left alone for as long as the others take. */
static void* read_blocks(void* argument) {
  struct reader* r = argument;
  uint64_t random = mix(r->index);
  for (long page = r->index;; page = page + THREADS < pages ? page + THREADS : r->index) {
    random = mix(random);
    long block = random % blocks;
    pthread_mutex_lock(&r->lock);
    if (!right(page)) report_wrong(DISK_ITEMS + page, 0);
    if (pread(disk, memory + page * WORDS, PAGE, (off_t)block * PAGE) != PAGE) die("reading /dev/vda");
    holds[page] = block;
    if (!right(page)) report_wrong(DISK_ITEMS + page, 1);
    atomic_fetch_add(&reads, 1);
    pthread_mutex_unlock(&r->lock);
    nap(NAP_MS); /* an emulated machine does nothing else otherwise */
  }
  return NULL;
}

void start_disk(void) {
  pages = option("disk", 0, 0, 1 << 20);
  if (pages == 0) return;
  for (int tries = 0; (disk = open("/dev/vda", O_RDONLY | O_DIRECT | O_CLOEXEC)) < 0; tries++) {
    if (tries == 500) die("/dev/vda");
    nap(10);
  }
  uint64_t bytes;
  if (ioctl(disk, BLKGETSIZE64, &bytes)) die("size of /dev/vda");
  blocks = bytes / PAGE;
  memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  holds = mmap(NULL, pages * sizeof *holds, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || holds == MAP_FAILED) die("mmap");
  for (long page = 0; page < pages; page++) holds[page] = NOTHING;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 64 << 10);
  for (int i = 0; i < THREADS; i++) {
    reader[i].index = i;
    pthread_mutex_init(&reader[i].lock, NULL);
    pthread_t thread;
    if (pthread_create(&thread, &attributes, read_blocks, &reader[i])) die("pthread_create");
  }
}

uint64_t disk_reads(void) {
  return atomic_load(&reads);
}

void verify_disk(struct verdict* verdict) {
  if (pages == 0) return;
  for (int i = 0; i < THREADS; i++) {
    pthread_mutex_lock(&reader[i].lock);
    for (long page = i; page < pages; page += THREADS)
      if (!right(page)) add_bad(verdict, DISK_ITEMS + page);
    pthread_mutex_unlock(&reader[i].lock);
  }
}
