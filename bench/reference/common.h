// What the reference programs share: arguments, clock, page content, Unix sockets and the hand-over of a userfaultfd.
//
// These programs are what Pagetide is measured against. They are meant to be the shortest C that does the job: one
// thread, one page a fault, no batching, no prefetching. Whatever makes one of them slower than it has to be makes
// every ratio against it worthless.
#ifndef PAGETIDE_REFERENCE_COMMON_H
#define PAGETIDE_REFERENCE_COMMON_H

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u
#define NS_PER_S 1000000000ull

// Every program ends in one way: a line of JSON that says why, and exit code 1.
__attribute__((noreturn, format(printf, 1, 2))) static void die(const char* format, ...) {
  int error = errno;
  char text[512];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  for (char* c = text; *c; c++)
    if (*c == '"' || *c == '\\' || *c < ' ') *c = '\'';
  printf("{\"event\":\"error\",\"message\":\"%s\",\"errno\":\"%s\"}\n", text, error ? strerror(error) : "none");
  fflush(stdout);
  exit(1);
}

// CLOCK_MONOTONIC: the clock of Node's process.hrtime, so that stamps of all processes of a bench can be compared.
static inline uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

// A program whose bench was killed must not stay behind, least of all one that spins. The parent may have died before
// the request took effect, so look again afterwards.
static inline void die_with_parent(void) {
  pid_t parent = getppid();
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) die("prctl(PR_SET_PDEATHSIG)");
  if (getppid() != parent) exit(1);
}

// ---- arguments: `--name value` pairs only, each from the program's own list -----------------------------------------

typedef struct {
  const char* name;
  const char* value;  // default; NULL: has to be given
} Option;

static inline void parse_options(int argc, char** argv, Option* options, size_t count) {
  errno = 0;
  for (int i = 1; i < argc; i += 2) {
    size_t k = 0;
    while (k < count && strcmp(options[k].name, argv[i]) != 0) k++;
    if (k == count) die("unknown option %s", argv[i]);
    if (i + 1 >= argc) die("%s needs a value", argv[i]);
    options[k].value = argv[i + 1];
  }
  for (size_t k = 0; k < count; k++)
    if (options[k].value == NULL) die("%s is required", options[k].name);
}

static inline uint64_t to_number(const char* name, const char* text) {
  char* end;
  errno = 0;
  uint64_t number = strtoull(text, &end, 10);
  if (errno || end == text || *end || text[0] == '-') {
    errno = EINVAL;
    die("%s: not a number: %s", name, text);
  }
  return number;
}

static inline uint64_t number_option(const Option* option) {
  return to_number(option->name, option->value);
}

// ---- page content ---------------------------------------------------------------------------------------------------

// splitmix64's finaliser. bench/lib/slots.ts has the same: keep them equal.
static inline uint64_t mix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// Word `index` (8 bytes, little endian) of the page of `frame`. Word 0 is what each touch checks.
static inline uint64_t page_word(uint64_t seed, uint64_t frame, uint64_t index) {
  return mix64(mix64(mix64(seed) ^ frame) + index);
}

static inline void fill_page(uint64_t* page, uint64_t seed, uint64_t frame) {
  for (uint64_t i = 0; i < PAGE / 8; i++) page[i] = page_word(seed, frame, i);
}

// Fisher-Yates from a seed: the same permutation on every machine.
static inline void shuffle(uint32_t* values, uint64_t count, uint64_t seed) {
  uint64_t state = mix64(seed);
  for (uint64_t i = count; i > 1; i--) {
    state = mix64(state);
    uint64_t j = state % i;
    uint32_t swapped = values[i - 1];
    values[i - 1] = values[j];
    values[j] = swapped;
  }
}

// Maps a whole file. `populate`: enter every page into this process's page table now. A pager that wrote its cache
// through its own mapping has them there; without it the first copy from each slot takes a second fault.
static inline void* map_file(const char* path, uint64_t* size, int populate) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  struct stat info;
  if (fd < 0 || fstat(fd, &info) != 0) die("open %s", path);
  if (info.st_size == 0) die("%s is empty", path);
  void* map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_SHARED | (populate ? MAP_POPULATE : 0), fd, 0);
  if (map == MAP_FAILED) die("mmap %s", path);
  close(fd);
  *size = (uint64_t)info.st_size;
  return map;
}

// ---- the pager's side of the hand-over: one JSON array with one region, one descriptor ------------------------------

typedef struct {
  int connection;  // open as long as the guest's process lives
  int uffd;
  uint64_t base, size, offset;
} Guest;

static inline uint64_t json_u64(const char* json, const char* key) {
  char quoted[64];
  snprintf(quoted, sizeof quoted, "\"%s\"", key);
  const char* at = strstr(json, quoted);
  errno = EPROTO;
  if (!at || !(at = strchr(at, ':'))) die("hand-over lacks %s", key);
  at++;
  while (*at == ' ') at++;
  char* end;
  errno = 0;
  uint64_t value = strtoull(at, &end, 10);
  if (end == at || errno) die("hand-over: bad %s", key);
  return value;
}

static inline struct sockaddr_un unix_address(const char* path) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  errno = ENAMETOOLONG;
  if (strlen(path) >= sizeof address.sun_path) die("socket path too long: %s", path);
  strcpy(address.sun_path, path);
  return address;
}

// Listens, says so on stdout (the socket is ready when the line is there), and waits for one guest.
static inline Guest accept_guest(const char* path, uint64_t frames) {
  struct sockaddr_un address = unix_address(path);
  int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (listener < 0 || bind(listener, (struct sockaddr*)&address, sizeof address) != 0 || listen(listener, 1) != 0)
    die("listen on %s", path);
  printf("{\"event\":\"ready\",\"pid\":%d}\n", getpid());
  fflush(stdout);
  Guest guest = {.uffd = -1};
  guest.connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
  if (guest.connection < 0) die("accept");
  close(listener);
  unlink(path);

  char json[4096];
  size_t length = 0;
  while (length == 0 || json[length - 1] != ']') {
    union {
      struct cmsghdr header;
      char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec part = {json + length, sizeof json - 1 - length};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t got = recvmsg(guest.connection, &message, MSG_CMSG_CLOEXEC);
    if (got <= 0) die("hand-over ended early");
    struct cmsghdr* attached = CMSG_FIRSTHDR(&message);
    if (attached && attached->cmsg_type == SCM_RIGHTS) memcpy(&guest.uffd, CMSG_DATA(attached), sizeof(int));
    length += (size_t)got;
  }
  json[length] = 0;
  errno = EPROTO;
  if (guest.uffd < 0) die("hand-over without a descriptor");
  char* first = strchr(json, '}');
  if (!first || strchr(first + 1, '{')) die("hand-over: exactly one region, please");
  guest.base = json_u64(json, "base_host_virt_addr");
  guest.size = json_u64(json, "size");
  guest.offset = json_u64(json, "offset");
  errno = EPROTO;
  if (json_u64(json, "page_size") != PAGE) die("hand-over: pages of 4096 bytes only");
  if (guest.base % PAGE || guest.size % PAGE || guest.offset % PAGE) die("hand-over: region is not page aligned");
  if (frames && (guest.offset + guest.size) / PAGE > frames) die("the guest is larger than its slot table");
  return guest;
}

// ---- waiting and installing -----------------------------------------------------------------------------------------

// How often a wait ended in its spin and how often in poll(2): says which of the two a run measured.
typedef struct {
  uint64_t spun, slept;
} Waits;

// Reads exactly one message. Tries without sleeping for `spin_ns` since it was called (that is: since the last fault
// was answered), then sleeps in poll. Returns 0 when the guest is gone.
static inline int next_fault(const Guest* guest, uint64_t spin_ns, Waits* waits, struct uffd_msg* message) {
  uint64_t began = spin_ns ? now_ns() : 0;
  int slept = 0;
  for (;;) {
    ssize_t got = read(guest->uffd, message, sizeof *message);
    if (got == (ssize_t)sizeof *message) {
      if (slept)
        waits->slept++;
      else
        waits->spun++;
      if (message->event != UFFD_EVENT_PAGEFAULT) {
        errno = EPROTO;
        die("event %d: a reference guest only faults", message->event);
      }
      return 1;
    }
    if (got >= 0 || errno != EAGAIN) die("read userfaultfd");
    if (spin_ns && now_ns() - began < spin_ns) continue;
    struct pollfd wait[2] = {{.fd = guest->uffd, .events = POLLIN}, {.fd = guest->connection, .events = POLLIN}};
    if (poll(wait, 2, -1) < 0 && errno != EINTR) die("poll");
    // The guest never writes after the hand-over: anything on its connection is the end of it.
    if (wait[1].revents && !(wait[0].revents & POLLIN)) return 0;
    slept = 1;
  }
}

static inline void copy_page(const Guest* guest, uint64_t address, const void* page) {
  struct uffdio_copy copy = {.dst = address, .src = (uint64_t)(uintptr_t)page, .len = PAGE};
  if (ioctl(guest->uffd, UFFDIO_COPY, &copy) == 0) return;
  if (errno != EEXIST) die("UFFDIO_COPY at 0x%llx", (unsigned long long)address);
  // Present already, yet a thread may sleep on it.
  struct uffdio_range range = {.start = address, .len = PAGE};
  if (ioctl(guest->uffd, UFFDIO_WAKE, &range) != 0) die("UFFDIO_WAKE at 0x%llx", (unsigned long long)address);
}

static inline uint64_t fault_address(const struct uffd_msg* message) {
  return message->arg.pagefault.address & ~(uint64_t)(PAGE - 1);
}

#endif
