#define _GNU_SOURCE
#include "guest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { TICK_MS = 10 };

static char command_line[4096];
static int channel;
static pthread_mutex_t channel_lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_ulong wrong_count; /* sticky: an item that was wrong once stays reported */
static uint64_t wrong_item[MAX_BAD];

void nap(long ms) {
  struct timespec t = {ms / 1000, ms % 1000 * 1000000};
  while (nanosleep(&t, &t) == -1 && errno == EINTR) {
  }
}

void die(const char* what) {
  printf("pagetide-init: %s: %s\n", what, strerror(errno));
  fflush(stdout);
  sync();
  reboot(RB_POWER_OFF);
  for (;;) pause();
}

/* In the order of their names: each needs those before it only. */
static void load_modules(void) {
  struct dirent** names;
  int count = scandir("/modules", &names, NULL, alphasort);
  for (int i = 0; i < count; i++) {
    char path[300];
    if (names[i]->d_name[0] == '.') continue;
    snprintf(path, sizeof path, "/modules/%s", names[i]->d_name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || syscall(SYS_finit_module, fd, "", 0)) die(path);
    close(fd);
  }
}

void start_machine(void) {
  mkdir("/proc", 0755);
  mkdir("/dev", 0755);
  mkdir("/sys", 0755);
  if (mount("proc", "/proc", "proc", 0, NULL)) die("mount /proc");
  if (mount("dev", "/dev", "devtmpfs", 0, NULL) && errno != EBUSY) die("mount /dev");
  mount("sysfs", "/sys", "sysfs", 0, NULL);
  int fd = open("/proc/cmdline", O_RDONLY);
  if (fd < 0 || read(fd, command_line, sizeof command_line - 1) < 0) die("/proc/cmdline");
  close(fd);
  load_modules();
}

long option(const char* name, long otherwise, long low, long high) {
  char key[64];
  snprintf(key, sizeof key, "pagetide.%s=", name);
  const char* at = strstr(command_line, key);
  if (!at) return otherwise;
  long value = strtol(at + strlen(key), NULL, 10);
  return value < low ? low : value > high ? high : value;
}

static void say(const char* format, ...) {
  char line[256];
  va_list list;
  va_start(list, format);
  int length = vsnprintf(line, sizeof line, format, list);
  va_end(list);
  if (length >= (int)sizeof line) length = sizeof line - 1;
  pthread_mutex_lock(&channel_lock);
  for (int done = 0; done < length;) {
    ssize_t n = write(channel, line + done, length - done);
    if (n > 0)
      done += n;
    else if (errno != EINTR && errno != EAGAIN)
      break;
  }
  pthread_mutex_unlock(&channel_lock);
}

void report_wrong(uint64_t item, uint64_t generation) {
  unsigned long at = atomic_fetch_add(&wrong_count, 1);
  if (at < MAX_BAD) wrong_item[at] = item;
  say("wrong %llu %llu\n", (unsigned long long)item, (unsigned long long)generation);
}

void add_bad(struct verdict* verdict, uint64_t item) {
  if (verdict->count < MAX_BAD) verdict->bad[verdict->count] = item;
  verdict->count++;
}

static void* beat(void* argument) {
  struct checks* checks = argument;
  uint64_t chain = 0;
  for (uint64_t n = 1;; n++) {
    uint64_t operations = checks->operations();
    chain = mix(chain + mix(n) + operations);
    say("beat %llu %llx %llu\n", (unsigned long long)n, (unsigned long long)chain, (unsigned long long)operations);
    nap(checks->beat_ms);
  }
  return NULL;
}

static void verify(struct checks* checks, unsigned long id) {
  struct verdict verdict = {.items = checks->items, .count = atomic_load(&wrong_count)};
  for (uint64_t i = 0; i < verdict.count && i < MAX_BAD; i++) verdict.bad[i] = wrong_item[i];
  checks->verify(&verdict);
  if (verdict.count == 0) {
    say("verified %lu ok %llu\n", id, (unsigned long long)verdict.items);
    return;
  }
  char list[MAX_BAD * 24] = "";
  size_t used = 0;
  for (uint64_t i = 0; i < verdict.count && i < MAX_BAD; i++)
    used += snprintf(list + used, sizeof list - used, " %llu", (unsigned long long)verdict.bad[i]);
  say("verified %lu bad %llu%s\n", id, (unsigned long long)verdict.count, list);
}

static void obey(struct checks* checks, const char* line) {
  unsigned long id;
  long value;
  if (sscanf(line, "verify %lu", &id) == 1) {
    verify(checks, id);
  } else if (sscanf(line, "stats %lu", &id) == 1) {
    say("stats %lu %llu %llu %d %ld\n", id, (unsigned long long)checks->items, (unsigned long long)checks->operations(),
        checks->workers, atomic_load(&checks->rate));
  } else if (sscanf(line, "rate %lu %ld", &id, &value) == 2 && value >= 0 && value <= 10000000) {
    atomic_store(&checks->rate, value);
    say("rate %lu %ld\n", id, value);
  }
}

void open_channel(struct checks* checks) {
  struct termios t;
  channel = open("/dev/ttyS1", O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (channel < 0) die("/dev/ttyS1");
  if (tcgetattr(channel, &t)) die("the second serial port is missing; start QEMU with a second -serial");
  cfmakeraw(&t);
  cfsetspeed(&t, B115200);
  t.c_cflag |= CLOCAL | CREAD;
  tcsetattr(channel, TCSANOW, &t);
  pthread_t thread;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 64 << 10);
  if (pthread_create(&thread, &attributes, beat, checks)) die("pthread_create");
}

void serve_channel(struct checks* checks) {
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
      if (length) obey(checks, line);
      length = 0;
    } else if (length < sizeof line - 1) {
      line[length++] = c;
    } else {
      length = 0; /* not one of ours */
    }
  }
}
