/*
 * The init program of guests with a real load: starts the server, then its clients, and answers for them.
 *
 * A worker's operation N counts when the server has acknowledged it and all its answers were right; only then N leaves
 * the guest. `verify` takes one worker after the other, replays its operations, and reads everything back from the
 * server.
 *
 * Kernel command line (all optional):
 *   pagetide.rate=N     operations a second, all workers together (0: none); at most 1000 a worker
 *   pagetide.beat=100   milliseconds between heartbeats; the first comes when the load runs
 *   pagetide.seed=1     makes what one guest writes differ from another's
 *
 * Items are the keys of all workers, and behind them, for each worker, the server itself: an answer that is out of
 * place, a connection that breaks, or a process that ends.
 */
#define _GNU_SOURCE
#include "load.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <net/if.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const struct load* const loads[] = {&redis_load, &nginx_load, &node_load, &postgres_load, &idle_load};
const struct load* load;
static struct worker workers[WORKERS];
static struct checks checks;
static uint64_t seed;
static pid_t server;
static atomic_bool running;

enum { TO_WRITE = 0, TO_READ = 1 };

uint64_t chosen(const struct worker* w, uint64_t n, int purpose) {
  return mix(mix(mix(seed * WORKERS + w->index) + n) + purpose);
}
uint64_t written_key(const struct worker* w, uint64_t n) {
  return chosen(w, n, TO_WRITE) % load->keys;
}
uint64_t read_key(const struct worker* w, uint64_t n) {
  return chosen(w, n, TO_READ) % load->keys;
}
uint64_t item_of(const struct worker* w, uint64_t key) {
  return w->index * load->keys + key;
}
static uint64_t server_item(const struct worker* w) {
  return WORKERS * load->keys + w->index;
}

size_t text_of(uint64_t item, uint64_t version, char* text) {
  static const char digit[] = "0123456789abcdef";
  uint64_t word = mix(mix(seed) + item) + mix(version);
  size_t length = 64 + mix(word) % 960;
  for (size_t i = 0; i < length; i++) {
    if (i % 16 == 0) word = mix(word);
    text[i] = digit[word >> (i % 16 * 4) & 15];
  }
  return length;
}

bool complain(const struct worker* w, const char* format, ...) {
  char text[400];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  printf("pagetide-load: %s, worker %d after %llu operations: %s\n", load->name, w->index,
         (unsigned long long)w->operations, text);
  return false;
}

bool is_text(const struct worker* w, uint64_t key, uint64_t version, const char* answer, size_t length) {
  size_t size = text_of(item_of(w, key), version, w->expected);
  if (size == length && memcmp(answer, w->expected, size) == 0) return true;
  return complain(w, "key %llu: %zu bytes that are not version %llu: %.40s", (unsigned long long)key, length,
                  (unsigned long long)version, answer);
}

static void* work(void* argument) {
  struct worker* w = argument;
  for (;;) {
    long rate = atomic_load(&checks.rate);
    pthread_mutex_lock(&w->lock);
    if (rate > 0 && !w->broken) {
      uint64_t n = w->operations + 1, key = written_key(w, n);
      if (load->operate(w, n)) {
        if (load->written) w->now[key] = load->written(w, n, w->now[key]);
        __atomic_store_n(&w->operations, n, __ATOMIC_RELEASE);
      } else {
        w->broken = true;
        report_wrong(server_item(w), n);
      }
    }
    pthread_mutex_unlock(&w->lock);
    /* by sleeping, and without catching up: a guest that stood still doesn't burst */
    long ms = rate > 0 ? 1000 * WORKERS / rate : 100;
    nap(ms > 0 ? ms : 1);
  }
  return NULL;
}

static uint64_t operations(void) {
  uint64_t sum = 0;
  for (int i = 0; i < WORKERS; i++) sum += __atomic_load_n(&workers[i].operations, __ATOMIC_ACQUIRE);
  return sum;
}

/* Replays the worker's operations; what it kept of them must be the same. The server is then asked for all of it. */
static void verify_worker(struct worker* w, struct verdict* verdict) {
  if (w->broken) return; /* reported, and remembered */
  if (load->written) {
    int64_t* now = calloc(load->keys, sizeof *now);
    if (!now) die("calloc");
    for (uint64_t n = 1; n <= w->operations; n++) {
      uint64_t key = written_key(w, n);
      now[key] = load->written(w, n, now[key]);
    }
    for (uint64_t key = 0; key < load->keys; key++) {
      if (now[key] == w->now[key]) continue;
      complain(w, "key %llu: the client's own record is wrong", (unsigned long long)key);
      add_bad(verdict, item_of(w, key));
    }
    free(now);
  }
  if (load->check(w, verdict)) return;
  w->broken = true;
  report_wrong(server_item(w), w->operations);
  add_bad(verdict, server_item(w));
}

static void verify(struct verdict* verdict) {
  for (int i = 0; i < WORKERS; i++) {
    pthread_mutex_lock(&workers[i].lock);
    verify_worker(&workers[i], verdict);
    pthread_mutex_unlock(&workers[i].lock);
  }
}

/* Takes in what died. The server is not among that while all is well; its own children may be. */
static void* reap(void* unused) {
  for (;;) {
    int status;
    pid_t pid = waitpid(-1, &status, 0);
    if (pid < 0) nap(100);
    if (pid != server || pid <= 0) continue;
    printf("pagetide-load: %s ended with status %x\n", load->name, status);
    errno = 0;
    if (!atomic_load(&running)) die("the server ended before the load ran");
    report_wrong(server_item(&workers[0]), workers[0].operations);
  }
  return unused;
}

static void start_server(void) {
  server = fork();
  if (server < 0) die("fork");
  if (server > 0) return;
  if (setgroups(0, NULL) || setgid(load->user) || setuid(load->user)) _exit(126);
  setsid();
  execv(load->server[0], (char* const*)load->server);
  perror(load->server[0]);
  _exit(127);
}

static void bring_up_loopback(void) {
  struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request)) die("lo");
  close(fd);
}

/* The image is made for one load, and says which. */
static void find_load(void) {
  char name[32] = "";
  int fd = open("/etc/load", O_RDONLY | O_CLOEXEC);
  if (fd < 0 || read(fd, name, sizeof name - 1) < 0) die("/etc/load");
  close(fd);
  for (size_t i = 0; i < sizeof loads / sizeof *loads; i++)
    if (strcmp(loads[i]->name, name) == 0) load = loads[i];
  if (!load) die(name);
}

static void start_thread(void* (*body)(void*), void* argument) {
  pthread_attr_t attributes;
  pthread_t thread;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 128 << 10);
  if (pthread_create(&thread, &attributes, body, argument)) die("pthread_create");
}

int main(void) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  start_machine();
  find_load();
  mkdir("/dev/shm", 01777);
  if (mount("shm", "/dev/shm", "tmpfs", 0, "mode=1777")) die("mount /dev/shm");
  bring_up_loopback();
  signal(SIGPIPE, SIG_IGN);
  seed = option("seed", 1, 0, 1 << 30);

  if (load->prepare) load->prepare();
  if (load->server) start_server();
  if (load->server) start_thread(reap, NULL);
  for (int i = 0; i < WORKERS; i++) {
    struct worker* w = &workers[i];
    pthread_mutex_init(&w->lock, NULL);
    w->index = i;
    w->connection.fd = -1;
    w->now = calloc(load->keys, sizeof *w->now);
    w->answer = malloc(MAX_VALUE);
    w->expected = malloc(MAX_VALUE);
    if (!w->now || !w->answer || !w->expected) die("malloc");
    if (load->connect && !load->connect(w)) die("cannot connect");
    if (load->fill && !load->fill(w, i == 0)) die("cannot fill the server");
  }

  checks.operations = operations;
  checks.verify = verify;
  checks.items = WORKERS * (load->keys + 1);
  checks.workers = WORKERS;
  checks.beat_ms = option("beat", 100, 1, 10000);
  atomic_store(&checks.rate, option("rate", load->rate, 0, 1000 * WORKERS));
  open_channel(&checks);
  atomic_store(&running, true);
  for (int i = 0; i < WORKERS; i++) start_thread(work, &workers[i]);
  printf("pagetide-load: %s runs, %llu items\n", load->name, (unsigned long long)checks.items);
  serve_channel(&checks);
}
