// The guest of the fault, miss and fill benches: a process that touches its memory and times each touch. It hands its
// userfaultfd over as Firecracker does, so that the C handlers and Pagetide serve the very same process.
//
//   toucher --handover SOCKET --bytes N --seed S [--shared FILE]
//
// --seed: of the page content that is expected. --shared: memory is this new file (on tmpfs), else private anonymous.
// Commands, a line each on stdin, `name key=value …`; each is answered by one line of JSON on stdout:
//
//   touch count=N [order=random|sequential] [seed=S] [threads=1] [gap-us=0] [samples=FILE]
//        Touches the next N frames never touched before, in that order, one at a time a thread, busy for `gap-us`
//        before each touch. Checks the first 8 bytes of each page. `faulted`: page faults the kernel
//        counted meanwhile; where every touch was a fault it equals `count`, and a bench of faults must see that.
//        samples: also writes every sample, u32 nanoseconds, to that new file.
//   wait-present [timeout-ms=60000]
//        Waits, without touching any, until every frame is present. startNs, endNs: CLOCK_MONOTONIC.
//   verify [all=0]
//        Compares every byte of the frames touched so far, or of all frames (those not present would fault).
//   quit
#include <pthread.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "common.h"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

static char* memory;
static uint64_t bytes, frames, content_seed;
static unsigned char* touched;  // a byte a frame

// ---- hand-over ------------------------------------------------------------------------------------------------------

static int create_userfault(void) {
  int flags = O_CLOEXEC | O_NONBLOCK;
  int fd = (int)syscall(SYS_userfaultfd, flags);
  if (fd >= 0) return fd;
  int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  if (device >= 0) {
    fd = ioctl(device, 0xAA00 /* USERFAULTFD_IOC_NEW, missing in older headers */, flags);
    close(device);
    if (fd >= 0) return fd;
  }
  fd = (int)syscall(SYS_userfaultfd, flags | UFFD_USER_MODE_ONLY);
  if (fd < 0) die("userfaultfd: not permitted in any way");
  return fd;
}

static int hand_over(const char* path) {
  int uffd = create_userfault();
  struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE};
  if (ioctl(uffd, UFFDIO_API, &api) != 0) die("UFFDIO_API");
  struct uffdio_register region = {.range = {.start = (uint64_t)(uintptr_t)memory, .len = bytes},
                                   .mode = UFFDIO_REGISTER_MODE_MISSING};
  if (ioctl(uffd, UFFDIO_REGISTER, &region) != 0) die("UFFDIO_REGISTER");

  struct sockaddr_un address = unix_address(path);
  int connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (connection < 0 || connect(connection, (struct sockaddr*)&address, sizeof address) != 0)
    die("connect to %s", path);
  char json[256];
  int length = snprintf(json, sizeof json,
                        "[{\"base_host_virt_addr\":%llu,\"size\":%llu,\"offset\":0,\"page_size\":4096,"
                        "\"page_size_kib\":4096}]",
                        (unsigned long long)(uintptr_t)memory, (unsigned long long)bytes);
  union {
    struct cmsghdr header;
    char space[CMSG_SPACE(sizeof(int))];
  } control = {.header = {.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
  memcpy(CMSG_DATA(&control.header), &uffd, sizeof uffd);
  struct iovec part = {json, (size_t)length};
  struct msghdr message = {
      .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control.space};
  if (sendmsg(connection, &message, MSG_NOSIGNAL) != length) die("send the hand-over");
  // Both descriptors stay open until the process ends: end of file means that the guest is gone, and a userfaultfd
  // whose last copy is closed turns missing pages into zero pages.
  return connection;
}

// ---- command lines --------------------------------------------------------------------------------------------------

// Finds `key=` among the words of a command; `fallback` where it is not there.
static const char* argument(char** words, int count, const char* key, const char* fallback) {
  size_t length = strlen(key);
  for (int i = 1; i < count; i++)
    if (strncmp(words[i], key, length) == 0 && words[i][length] == '=') return words[i] + length + 1;
  return fallback;
}

static uint64_t number_argument(char** words, int count, const char* key, const char* fallback) {
  const char* text = argument(words, count, key, fallback);
  errno = EINVAL;
  if (!text) die("%s: %s= is required", words[0], key);
  return to_number(key, text);
}

// A misspelt key must not silently measure something else.
static void check_keys(char** words, int count, const char* known) {
  for (int i = 1; i < count; i++) {
    char key[64];
    const char* equals = strchr(words[i], '=');
    errno = EINVAL;
    if (!equals || (size_t)(equals - words[i]) > sizeof key - 3) die("%s: key=value, please: %s", words[0], words[i]);
    snprintf(key, sizeof key, " %.*s ", (int)(equals - words[i]), words[i]);
    if (!strstr(known, key)) die("%s: unknown key in %s", words[0], words[i]);
  }
}

// ---- touch ----------------------------------------------------------------------------------------------------------

typedef struct {
  const uint32_t* order;
  uint32_t* samples;  // nanoseconds, one a touch, by position in `order`
  uint64_t count, first, step, gap_ns;
  uint64_t wrong, faulted, start_ns, end_ns;
  pthread_barrier_t* barrier;
} Touches;

static uint64_t page_faults(void) {
  struct rusage usage;
  getrusage(RUSAGE_THREAD, &usage);
  return (uint64_t)(usage.ru_minflt + usage.ru_majflt);
}

static void* touch(void* argument) {
  Touches* t = argument;
  pthread_barrier_wait(t->barrier);
  uint64_t faulted = page_faults();
  t->start_ns = now_ns();
  for (uint64_t i = t->first; i < t->count; i += t->step) {
    uint32_t frame = t->order[i];
    if (t->gap_ns)
      for (uint64_t until = now_ns() + t->gap_ns; now_ns() < until;) continue;
    volatile const uint64_t* page = (volatile const uint64_t*)(memory + (uint64_t)frame * PAGE);
    uint64_t before = now_ns();
    uint64_t word = *page;
    uint64_t took = now_ns() - before;
    t->samples[i] = took > UINT32_MAX ? UINT32_MAX : (uint32_t)took;
    if (word != page_word(content_seed, frame, 0)) t->wrong++;
  }
  t->end_ns = now_ns();
  t->faulted = page_faults() - faulted;
  return NULL;
}

static int ascending(const void* a, const void* b) {
  uint32_t x = *(const uint32_t*)a, y = *(const uint32_t*)b;
  return (x > y) - (x < y);
}

// Nearest rank: the smallest sample that at least `thousandths` of all samples do not exceed.
static uint32_t percentile(const uint32_t* sorted, uint64_t count, uint64_t thousandths) {
  uint64_t rank = (count * thousandths + 999) / 1000;
  return sorted[rank ? rank - 1 : 0];
}

static void write_samples(const char* path, const uint32_t* samples, uint64_t count) {
  int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) die("create %s", path);
  const char* from = (const char*)samples;
  for (uint64_t done = 0; done < count * sizeof *samples;) {
    ssize_t part = write(fd, from + done, count * sizeof *samples - done);
    if (part <= 0) die("write %s", path);
    done += (uint64_t)part;
  }
  close(fd);
}

static void run_touch(char** words, int count) {
  check_keys(words, count, " count order seed threads gap-us samples ");
  uint64_t wanted = number_argument(words, count, "count", NULL),
           threads = number_argument(words, count, "threads", "1");
  uint64_t gap_us = number_argument(words, count, "gap-us", "0"), seed = number_argument(words, count, "seed", "1");
  const char *kind = argument(words, count, "order", "random"), *path = argument(words, count, "samples", NULL);
  errno = EINVAL;
  if (strcmp(kind, "random") != 0 && strcmp(kind, "sequential") != 0) die("order=random or order=sequential");
  if (threads == 0 || threads > 64 || wanted < threads) die("1 to 64 threads, a touch each at least");

  // Frames not touched before; shuffled, and the first `wanted` of them.
  uint32_t* order = malloc(frames * sizeof *order);
  uint32_t* samples = malloc(wanted * sizeof *samples);
  if (!order || !samples) die("out of memory");
  memset(samples, 0, wanted * sizeof *samples);  // present before the clock runs
  uint64_t left = 0;
  for (uint64_t frame = 0; frame < frames; frame++)
    if (!touched[frame]) order[left++] = (uint32_t)frame;
  errno = EINVAL;
  if (left < wanted) die("only %llu frames were never touched", (unsigned long long)left);
  if (strcmp(kind, "random") == 0) shuffle(order, left, seed);

  Touches parts[64] = {0};
  pthread_t running[64];
  pthread_barrier_t barrier;
  pthread_barrier_init(&barrier, NULL, (unsigned)threads);
  for (uint64_t i = 0; i < threads; i++) {
    parts[i] = (Touches){.order = order,
                         .samples = samples,
                         .count = wanted,
                         .first = i,
                         .step = threads,
                         .gap_ns = gap_us * 1000ull,
                         .barrier = &barrier};
    if (i > 0 && (errno = pthread_create(&running[i], NULL, touch, &parts[i])) != 0) die("pthread_create");
  }
  touch(&parts[0]);
  for (uint64_t i = 1; i < threads; i++) pthread_join(running[i], NULL);
  pthread_barrier_destroy(&barrier);

  uint64_t wrong = 0, faulted = 0, start = UINT64_MAX, end = 0, sum = 0;
  for (uint64_t i = 0; i < threads; i++) {
    wrong += parts[i].wrong;
    faulted += parts[i].faulted;
    if (parts[i].start_ns < start) start = parts[i].start_ns;
    if (parts[i].end_ns > end) end = parts[i].end_ns;
  }
  for (uint64_t i = 0; i < wanted; i++) {
    touched[order[i]] = 1;
    sum += samples[i];
  }
  if (path) write_samples(path, samples, wanted);
  qsort(samples, wanted, sizeof *samples, ascending);
  printf(
      "{\"event\":\"touched\",\"count\":%llu,\"threads\":%llu,\"wrong\":%llu,\"faulted\":%llu,\"minNs\":%u,"
      "\"p50Ns\":%u,\"p90Ns\":%u,\"p99Ns\":%u,\"p999Ns\":%u,\"maxNs\":%u,\"meanNs\":%llu,\"totalNs\":%llu}\n",
      (unsigned long long)wanted, (unsigned long long)threads, (unsigned long long)wrong, (unsigned long long)faulted,
      samples[0], percentile(samples, wanted, 500), percentile(samples, wanted, 900), percentile(samples, wanted, 990),
      percentile(samples, wanted, 999), samples[wanted - 1], (unsigned long long)(sum / wanted),
      (unsigned long long)(end - start));
  free(order);
  free(samples);
}

// ---- wait-present, verify -------------------------------------------------------------------------------------------

// mincore tells presence without touching, for anonymous memory and for tmpfs. Only the first chunk that is not whole
// is looked at, every 100 us, so that the wait takes next to nothing from the fill it watches.
static void run_wait_present(char** words, int count) {
  check_keys(words, count, " timeout-ms ");
  uint64_t start = now_ns(), limit = start + number_argument(words, count, "timeout-ms", "60000") * 1000000ull;
  unsigned char present[512];
  uint64_t next = 0, now = start;
  for (;;) {
    uint64_t chunk = frames - next < sizeof present ? frames - next : sizeof present;
    if (mincore(memory + next * PAGE, chunk * PAGE, present) != 0) die("mincore");
    uint64_t run = 0;
    while (run < chunk && (present[run] & 1)) run++;
    next += run;
    now = now_ns();
    if (next == frames) break;
    errno = ETIMEDOUT;
    if (now > limit) die("frame %llu is not present", (unsigned long long)next);
    if (run < chunk) nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
  }
  printf("{\"event\":\"present\",\"frames\":%llu,\"startNs\":%llu,\"endNs\":%llu,\"ns\":%llu}\n",
         (unsigned long long)frames, (unsigned long long)start, (unsigned long long)now,
         (unsigned long long)(now - start));
}

static void run_verify(char** words, int count) {
  check_keys(words, count, " all ");
  uint64_t all = number_argument(words, count, "all", "0"), checked = 0, wrong = 0;
  long long first = -1;
  uint64_t expected[PAGE / 8];
  for (uint64_t frame = 0; frame < frames; frame++) {
    if (!all && !touched[frame]) continue;
    fill_page(expected, content_seed, frame);
    checked++;
    if (memcmp(expected, memory + frame * PAGE, PAGE) == 0) continue;
    wrong++;
    if (first < 0) first = (long long)frame;
  }
  printf("{\"event\":\"verified\",\"checked\":%llu,\"wrong\":%llu,\"firstWrong\":%lld}\n", (unsigned long long)checked,
         (unsigned long long)wrong, first);
}

int main(int argc, char** argv) {
  Option o[] = {{"--handover", NULL}, {"--bytes", NULL}, {"--seed", NULL}, {"--shared", ""}};
  parse_options(argc, argv, o, 4);
  die_with_parent();
  bytes = number_option(&o[1]);
  content_seed = number_option(&o[2]);
  frames = bytes / PAGE;
  errno = EINVAL;
  if (bytes == 0 || bytes % PAGE || frames > UINT32_MAX) die("--bytes: a multiple of 4096, up to 2^32-1 pages");
  int fd = -1, flags = MAP_PRIVATE | MAP_ANONYMOUS;
  if (*o[3].value) {
    fd = open(o[3].value, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0) die("create %s", o[3].value);
    flags = MAP_SHARED;
  }
  memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags | MAP_NORESERVE, fd, 0);
  if (memory == MAP_FAILED) die("mmap %llu bytes", (unsigned long long)bytes);
  if (fd >= 0) close(fd);
  touched = calloc(frames, 1);
  if (!touched) die("out of memory");
  hand_over(o[0].value);
  printf("{\"event\":\"ready\",\"pid\":%d,\"frames\":%llu}\n", getpid(), (unsigned long long)frames);
  fflush(stdout);

  char line[1024];
  while (fgets(line, sizeof line, stdin)) {
    char* words[16];
    int count = 0;
    for (char* word = strtok(line, " \n"); word && count < 16; word = strtok(NULL, " \n")) words[count++] = word;
    if (count == 0) continue;
    errno = EINVAL;
    if (strcmp(words[0], "touch") == 0)
      run_touch(words, count);
    else if (strcmp(words[0], "wait-present") == 0)
      run_wait_present(words, count);
    else if (strcmp(words[0], "verify") == 0)
      run_verify(words, count);
    else if (strcmp(words[0], "quit") == 0)
      break;
    else
      die("unknown command %s", words[0]);
    fflush(stdout);
  }
  return 0;
}
