// Records what goes over the links of network namespaces, in one of two ways:
//
//   --mode counters   the interfaces' own counters, every --interval-us, of any number of namespaces; costs next to
//   nothing
//   --mode capture    each frame, stamped by the kernel when it was sent or came; of one namespace
//
// Writes records of native byte order to --out until its stdin ends. Stamps are CLOCK_MONOTONIC, nanoseconds.
// Says "ready" when it records, and "done" with the number of records, and of frames that it missed.
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <sched.h>

#include "common.h"

// One record a namespace and look, in the order of the namespaces.
typedef struct {
  uint64_t ns, bytes_in, frames_in, bytes_out, frames_out;
} Counters;

typedef struct {
  uint64_t ns;
  uint32_t bytes;  // from the Ethernet header on, without its check sum
  uint32_t peer;   // IPv4 address of the other side, first byte highest; 0 for what isn't IPv4
  uint16_t source_port, destination_port;
  uint16_t type;  // Ethernet's
  uint8_t out, tos;
} Frame;
_Static_assert(sizeof(Frame) == 24, "24 bytes a frame");

static void enter(const char* name) {
  char path[256];
  snprintf(path, sizeof path, "/run/netns/%s", name);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0 || setns(fd, CLONE_NEWNET) != 0) die("entering %s", path);
  close(fd);
}

static int has_ended(int fd, uint64_t wait_ns) {
  struct pollfd p = {.fd = fd, .events = POLLIN};
  struct timespec t = {(time_t)(wait_ns / NS_PER_S), (long)(wait_ns % NS_PER_S)};
  return ppoll(&p, 1, &t, NULL) > 0;
}

static void ready(void) {
  printf("{\"event\":\"ready\"}\n");
  fflush(stdout);
}

static void done(FILE* out, uint64_t records, uint64_t missed) {
  if (fclose(out) != 0) die("writing");
  printf("{\"event\":\"done\",\"records\":%llu,\"missed\":%llu}\n", (unsigned long long)records,
         (unsigned long long)missed);
  fflush(stdout);
}

static Counters read_counters(int fd, const char* device) {
  static char text[65536];
  ssize_t n = pread(fd, text, sizeof text - 1, 0);
  if (n <= 0) die("reading /proc/net/dev");
  text[n] = 0;
  char key[IFNAMSIZ + 2];
  snprintf(key, sizeof key, "%s:", device);
  char* line = strstr(text, key);
  unsigned long long v[10];
  if (line == NULL || sscanf(line + strlen(key), "%llu %llu %llu %llu %llu %llu %llu %llu %llu %llu", &v[0], &v[1],
                             &v[2], &v[3], &v[4], &v[5], &v[6], &v[7], &v[8], &v[9]) != 10)
    die("no counters of %s", device);
  return (Counters){now_ns(), v[0], v[1], v[8], v[9]};
}

static void count(char* namespaces, const char* device, FILE* out, uint64_t interval_ns) {
  int fds[64];
  size_t hosts = 0;
  for (char* name = strtok(namespaces, ","); name != NULL; name = strtok(NULL, ",")) {
    if (hosts == 64) die("64 namespaces at most");
    enter(name);
    // stays that of the namespace that it was opened in
    fds[hosts] = open("/proc/thread-self/net/dev", O_RDONLY | O_CLOEXEC);
    if (fds[hosts++] < 0) die("opening /proc/net/dev");
  }
  uint64_t samples = 0, next = now_ns();
  for (int ended = 0;; samples++) {
    for (size_t i = 0; i < hosts; i++) {
      Counters c = read_counters(fds[i], device);
      if (fwrite(&c, sizeof c, 1, out) != 1) die("writing");
    }
    if (samples == 0) ready();
    if (ended) break;
    uint64_t now = now_ns();
    next = next + interval_ns > now ? next + interval_ns : now + interval_ns;
    // one sample more after the end: it has all that went before
    ended = has_ended(0, next - now);
  }
  done(out, samples + 1, 0);
}

// Of the header's first bytes. A frame that isn't IPv4, or is a later fragment, has no ports.
static void describe(Frame* f, const uint8_t* b, uint32_t have) {
  if (f->type != ETH_P_IP || have < 34) return;
  const uint8_t* h = b + 14;
  uint32_t length = (h[0] & 15u) * 4;
  f->tos = h[1];
  uint32_t address;
  memcpy(&address, h + (f->out ? 16 : 12), 4);
  f->peer = ntohl(address);
  int first = ((h[6] & 0x1f) | h[7]) == 0;
  if ((h[9] != 6 && h[9] != 17) || !first || have < 14 + length + 4) return;
  f->source_port = (uint16_t)(h[length] << 8 | h[length + 1]);
  f->destination_port = (uint16_t)(h[length + 2] << 8 | h[length + 3]);
}

enum { BATCH = 64, SNAP = 96 };

// Takes what is there; where `until_ns` isn't 0, not for longer than until a frame is that late.
static uint64_t receive(int fd, FILE* out, int64_t to_monotonic, uint64_t until_ns) {
  static struct mmsghdr messages[BATCH];
  static struct iovec iov[BATCH];
  static struct sockaddr_ll from[BATCH];
  static uint8_t data[BATCH][SNAP];
  static union {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(struct timespec))];
  } control[BATCH];
  uint64_t frames = 0;
  for (;;) {
    for (int i = 0; i < BATCH; i++) {
      iov[i] = (struct iovec){data[i], SNAP};
      messages[i].msg_hdr = (struct msghdr){.msg_name = &from[i],
                                            .msg_namelen = sizeof from[i],
                                            .msg_iov = &iov[i],
                                            .msg_iovlen = 1,
                                            .msg_control = &control[i],
                                            .msg_controllen = sizeof control[i]};
    }
    int got = recvmmsg(fd, messages, BATCH, MSG_DONTWAIT | MSG_TRUNC, NULL);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return frames;
    if (got < 0) die("recvmmsg");
    uint64_t last = 0;
    for (int i = 0; i < got; i++) {
      struct cmsghdr* c = CMSG_FIRSTHDR(&messages[i].msg_hdr);
      if (c == NULL || c->cmsg_type != SCM_TIMESTAMPNS) die("a frame without a stamp");
      struct timespec t;
      memcpy(&t, CMSG_DATA(c), sizeof t);
      last = (uint64_t)((int64_t)t.tv_sec * (int64_t)NS_PER_S + t.tv_nsec + to_monotonic);
      uint32_t bytes = messages[i].msg_len;
      Frame f = {.ns = last,
                 .bytes = bytes,
                 .type = ntohs(from[i].sll_protocol),
                 .out = from[i].sll_pkttype == PACKET_OUTGOING};
      describe(&f, data[i], bytes < SNAP ? bytes : SNAP);
      if (fwrite(&f, sizeof f, 1, out) != 1) die("writing");
    }
    frames += (uint64_t)got;
    if (until_ns != 0 && last >= until_ns) return frames;
  }
}

static void capture(const char* name, const char* device, FILE* out) {
  enter(name);
  // bound with no protocol, it gets nothing before it is set up
  int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
  if (fd < 0) die("socket(AF_PACKET)");
  int on = 1, room = 128 << 20;
  if (setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on) != 0) die("SO_TIMESTAMPNS");
  if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room) != 0) die("SO_RCVBUFFORCE");
  struct sockaddr_ll at = {
      .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = (int)if_nametoindex(device)};
  if (bind(fd, (struct sockaddr*)&at, sizeof at) != 0) die("bind to %s", device);
  struct timespec real;
  clock_gettime(CLOCK_REALTIME, &real);
  int64_t to_monotonic = (int64_t)now_ns() - ((int64_t)real.tv_sec * (int64_t)NS_PER_S + real.tv_nsec);
  ready();
  uint64_t frames = 0;
  struct pollfd p[2] = {{.fd = fd, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
  for (;;) {
    if (poll(p, 2, -1) < 0 && errno != EINTR) die("poll");
    int ended = p[1].revents != 0;
    // what came before the end is in the socket already
    uint64_t until = ended ? now_ns() : 0;
    frames += receive(fd, out, to_monotonic, until);
    if (ended) break;
    // a pause lets frames gather: one wake-up for many
    struct timespec pause = {0, 1000000};
    nanosleep(&pause, NULL);
  }
  struct tpacket_stats stats;
  socklen_t size = sizeof stats;
  if (getsockopt(fd, SOL_PACKET, PACKET_STATISTICS, &stats, &size) != 0) die("PACKET_STATISTICS");
  done(out, frames, stats.tp_drops);
}

int main(int argc, char** argv) {
  die_with_parent();
  enum { MODE, NAMESPACES, DEVICE, OUT, INTERVAL, OPTIONS };
  Option o[OPTIONS] = {
      {"--mode", NULL}, {"--namespaces", NULL}, {"--device", NULL}, {"--out", NULL}, {"--interval-us", "5000"}};
  parse_options(argc, argv, o, OPTIONS);
  FILE* out = fopen(o[OUT].value, "we");
  if (out == NULL) die("opening %s", o[OUT].value);
  setvbuf(out, NULL, _IOFBF, 1 << 20);
  char* namespaces = strdup(o[NAMESPACES].value);
  uint64_t interval_ns = number_option(&o[INTERVAL]) * 1000;
  if (namespaces == NULL || interval_ns == 0) die("--interval-us");
  if (strcmp(o[MODE].value, "counters") == 0)
    count(namespaces, o[DEVICE].value, out, interval_ns);
  else if (strcmp(o[MODE].value, "capture") == 0)
    capture(namespaces, o[DEVICE].value, out);
  else
    die("--mode counters or capture");
}
