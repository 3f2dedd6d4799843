// The request and the answer of the miss reference: fixed 16-byte headers, little endian as both ends are one machine,
// one request outstanding on one TCP connection.
#ifndef PAGETIDE_REFERENCE_WIRE_H
#define PAGETIDE_REFERENCE_WIRE_H

#include <netinet/in.h>
#include <netinet/tcp.h>

#include "common.h"

typedef struct {
  uint32_t kind;    // 1: request, 2: page
  uint32_t length;  // bytes that follow the header
  uint64_t frame;
} Header;

_Static_assert(sizeof(Header) == 16, "header is 16 bytes");

static inline void no_delay(int fd) {
  int on = 1;
  if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0) die("TCP_NODELAY");
}

// Receives exactly `length` bytes. Tries without sleeping for `spin_ns`, then blocks; so does every later piece.
// Returns 0 at a clean end, which only may come before the first byte.
static inline int receive_all(int fd, void* into, size_t length, uint64_t spin_ns) {
  uint64_t began = spin_ns ? now_ns() : 0;
  size_t have = 0;
  while (have < length) {
    int spinning = spin_ns && now_ns() - began < spin_ns;
    ssize_t got = recv(fd, (char*)into + have, length - have, spinning ? MSG_DONTWAIT : 0);
    if (got > 0) {
      have += (size_t)got;
    } else if (got == 0) {
      errno = ECONNRESET;
      if (have) die("connection ended within a message");
      return 0;
    } else if (errno != EAGAIN && errno != EINTR) {
      die("recv");
    }
  }
  return 1;
}

static inline void send_all(int fd, const void* from, size_t length) {
  for (size_t sent = 0; sent < length;) {
    ssize_t part = send(fd, (const char*)from + sent, length - sent, MSG_NOSIGNAL);
    if (part < 0 && errno != EINTR) die("send");
    if (part > 0) sent += (size_t)part;
  }
}

#endif
