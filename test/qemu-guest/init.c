/*
 * The init program, and only program, of the guest that QEMU tests move about: it fills memory with content that it can
 * predict, keeps rewriting it, and can tell at any time whether every page of it is right.
 *
 * What it can prove, and what not. Every page's content follows from (page number, generation). The generations are a
 * table in guest memory too, so a stale table page would go well with a stale content page; therefore each worker also
 * keeps the sum of its generations, and that sum leaves the guest with every heartbeat, chained to all beats before it:
 * a guest that went back in time repeats a beat or breaks the chain, and whoever listens sees it. Kernel memory is
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
 *   pagetide.template=0    makes all pages, those from the start too, differ from those of guests with another number
 *
 * Self-check channel: the second serial port (ttyS1), lines of ASCII.
 *   guest  beat N CHAIN OPERATIONS        unasked; N counts from 1, CHAIN is hexadecimal
 *   guest  wrong PAGE GENERATION          unasked; a worker met a page with other content than it wrote there
 *   host   verify ID                      guest  verified ID ok PAGES | verified ID bad COUNT PAGE…  (at most 8 pages)
 *   host   stats ID                       guest  stats ID PAGES OPERATIONS WORKERS RATE
 *   host   rate ID N                      guest  rate ID N
 * CHAIN(n) = mix(CHAIN(n-1) + mix(n) + OPERATIONS), CHAIN(0) = 0, mix is the finalizer of splitmix64.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, MAX_WORKERS = 64, MAX_BAD = 8, TICK_MS = 10 };

struct worker {
  pthread_mutex_t lock;     /* held for one rewrite, or while the worker's share is verified */
  uint64_t operations;      /* equals the sum of the generations of its pages */
  uint64_t root;            /* sum of mix(page, generation) over its pages */
  uint64_t random;
  int index;
} __attribute__((aligned(64)));

static uint64_t *memory;
static uint32_t *generation;
static uint64_t pages;
static int workers;
static struct worker worker[MAX_WORKERS];
static long zero_percent, set_percent, beat_ms;
static uint64_t seed, template;
static atomic_long rate;

static atomic_ulong wrong_count; /* sticky: a page that was wrong once stays reported */
static uint64_t wrong_page[MAX_BAD];

static int channel;
static pthread_mutex_t channel_lock = PTHREAD_MUTEX_INITIALIZER;

static uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

static uint64_t entry(uint64_t page, uint32_t gen) { return mix(page * 0x100000001b3u + gen); }

/* Pages that begin as zero become zero again at every fourth generation: both transitions happen. */
static bool is_zero(uint64_t page, uint32_t gen) { return (long)(mix(page) % 100) < zero_percent && gen % 4 == 0; }

/* First half unpredictable, second half one word over and over: it compresses to about a half. */
static uint64_t first_word(uint64_t page, uint32_t gen) {
  return entry(page, gen) ^ (gen ? mix(seed) : 0) ^ (template ? mix(~template) : 0);
}

static void fill(uint64_t page, uint32_t gen) {
  uint64_t *p = memory + page * WORDS;
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
  const uint64_t *p = memory + page * WORDS;
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

static void say(const char *format, ...) {
  char line[256];
  va_list list;
  va_start(list, format);
  int length = vsnprintf(line, sizeof line, format, list);
  va_end(list);
  if (length >= (int)sizeof line) length = sizeof line - 1;
  pthread_mutex_lock(&channel_lock);
  for (int done = 0; done < length;) {
    ssize_t n = write(channel, line + done, length - done);
    if (n > 0) done += n;
    else if (errno != EINTR && errno != EAGAIN) break;
  }
  pthread_mutex_unlock(&channel_lock);
}

static void report_wrong(uint64_t page) {
  unsigned long at = atomic_fetch_add(&wrong_count, 1);
  if (at < MAX_BAD) wrong_page[at] = page;
}

static void nap(long ms) {
  struct timespec t = {ms / 1000, ms % 1000 * 1000000};
  while (nanosleep(&t, &t) == -1 && errno == EINTR) {}
}

static void die(const char *what) {
  printf("pagetide-init: %s: %s\n", what, strerror(errno));
  sync();
  reboot(RB_POWER_OFF);
  for (;;) pause();
}

/* Pages p with p % workers == index belong to a worker. */
static void *work(void *argument) {
  struct worker *w = argument;
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
    owed += atomic_load(&rate) * TICK_MS / workers;
    for (; owed >= 1000; owed -= 1000) {
      w->random = mix(w->random);
      uint64_t page = w->random % hot * workers + w->index;
      pthread_mutex_lock(&w->lock);
      uint32_t gen = generation[page];
      if (!right(page, gen)) {
        report_wrong(page);
        say("wrong %llu %u\n", (unsigned long long)page, gen);
      }
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
  uint64_t sum = 0;
  for (int i = 0; i < workers; i++) sum += __atomic_load_n(&worker[i].operations, __ATOMIC_ACQUIRE);
  return sum;
}

static void *beat(void *unused) {
  uint64_t chain = 0;
  for (uint64_t n = 1;; n++) {
    uint64_t ops = operations();
    chain = mix(chain + mix(n) + ops);
    say("beat %llu %llx %llu\n", (unsigned long long)n, (unsigned long long)chain, (unsigned long long)ops);
    nap(beat_ms);
  }
  return unused;
}

static void verify(unsigned long id) {
  uint64_t bad[MAX_BAD];
  uint64_t count = atomic_load(&wrong_count);
  for (uint64_t i = 0; i < count && i < MAX_BAD; i++) bad[i] = wrong_page[i];
  for (int i = 0; i < workers; i++) {
    struct worker *w = &worker[i];
    uint64_t root = 0, ops = 0;
    pthread_mutex_lock(&w->lock);
    for (uint64_t page = i; page < pages; page += workers) {
      root += entry(page, generation[page]);
      ops += generation[page];
      if (!right(page, generation[page])) {
        if (count < MAX_BAD) bad[count] = page;
        count++;
      }
    }
    if (root != w->root || ops != w->operations) {
      if (count < MAX_BAD) bad[count] = pages + i; /* past the last page: the generation table itself */
      count++;
    }
    pthread_mutex_unlock(&w->lock);
  }
  if (count == 0) {
    say("verified %lu ok %llu\n", id, (unsigned long long)pages);
    return;
  }
  char list[MAX_BAD * 24] = "";
  size_t used = 0;
  for (uint64_t i = 0; i < count && i < MAX_BAD; i++)
    used += snprintf(list + used, sizeof list - used, " %llu", (unsigned long long)bad[i]);
  say("verified %lu bad %llu%s\n", id, (unsigned long long)count, list);
}

static void obey(const char *line) {
  unsigned long id;
  long value;
  if (sscanf(line, "verify %lu", &id) == 1) {
    verify(id);
  } else if (sscanf(line, "stats %lu", &id) == 1) {
    say("stats %lu %llu %llu %d %ld\n", id, (unsigned long long)pages, (unsigned long long)operations(), workers,
        atomic_load(&rate));
  } else if (sscanf(line, "rate %lu %ld", &id, &value) == 2 && value >= 0 && value <= 10000000) {
    atomic_store(&rate, value);
    say("rate %lu %ld\n", id, value);
  }
}

static long option(const char *command_line, const char *name, long otherwise, long low, long high) {
  char key[64];
  snprintf(key, sizeof key, "pagetide.%s=", name);
  const char *at = strstr(command_line, key);
  if (!at) return otherwise;
  long value = strtol(at + strlen(key), NULL, 10);
  return value < low ? low : value > high ? high : value;
}

static void open_channel(void) {
  struct termios t;
  channel = open("/dev/ttyS1", O_RDWR | O_NOCTTY);
  if (channel < 0) die("/dev/ttyS1");
  if (tcgetattr(channel, &t)) die("the second serial port is missing; start QEMU with a second -serial");
  cfmakeraw(&t);
  cfsetspeed(&t, B115200);
  t.c_cflag |= CLOCAL | CREAD;
  tcsetattr(channel, TCSANOW, &t);
}

int main(void) {
  char command_line[4096] = "";
  mkdir("/proc", 0755);
  mkdir("/dev", 0755);
  mkdir("/sys", 0755);
  if (mount("proc", "/proc", "proc", 0, NULL)) die("mount /proc");
  if (mount("dev", "/dev", "devtmpfs", 0, NULL) && errno != EBUSY) die("mount /dev");
  mount("sysfs", "/sys", "sysfs", 0, NULL);
  int fd = open("/proc/cmdline", O_RDONLY);
  if (fd < 0 || read(fd, command_line, sizeof command_line - 1) < 0) die("/proc/cmdline");
  close(fd);

  zero_percent = option(command_line, "zero", 25, 0, 100);
  set_percent = option(command_line, "set", 50, 1, 100);
  beat_ms = option(command_line, "beat", 50, 1, 10000);
  seed = option(command_line, "seed", 1, 0, 1 << 30);
  template = option(command_line, "template", 0, 0, 1 << 30);
  atomic_store(&rate, option(command_line, "rate", 200, 0, 10000000));
  workers = get_nprocs();
  if (workers > MAX_WORKERS) workers = MAX_WORKERS;

  struct sysinfo info;
  if (sysinfo(&info)) die("sysinfo");
  uint64_t bytes = (uint64_t)info.freeram * info.mem_unit / 100 * option(command_line, "fraction", 60, 1, 95);
  uint64_t limit = (uint64_t)option(command_line, "limit", 0, 0, 1 << 20) << 20;
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

  open_channel();
  pthread_attr_t attributes;
  pthread_t thread;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 64 << 10);
  for (int i = 0; i < workers; i++)
    if (pthread_create(&thread, &attributes, work, &worker[i])) die("pthread_create");
  if (pthread_create(&thread, &attributes, beat, NULL)) die("pthread_create");
  printf("pagetide-init: ready, %llu pages, %d workers\n", (unsigned long long)pages, workers);

  char line[64];
  size_t length = 0;
  for (;;) {
    char c;
    ssize_t n = read(channel, &c, 1);
    if (n != 1) {
      nap(TICK_MS);
      continue;
    }
    if (c == '\n' || c == '\r') {
      line[length] = 0;
      if (length) obey(line);
      length = 0;
    } else if (length < sizeof line - 1) {
      line[length++] = c;
    } else {
      length = 0; /* not one of ours */
    }
  }
}
