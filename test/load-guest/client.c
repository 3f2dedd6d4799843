/* The clients' connections. They have no timeouts: a guest whose pages are on their way may stand still for any time.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "load.h"

enum { RETRY_MS = 20 };

/* The server may not listen yet; if it never does, its process ends, or nobody ever hears a heartbeat. */
static void dial(struct connection* c, const struct sockaddr* address, socklen_t length) {
  hang_up(c);
  for (;;) {
    c->fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket");
    if (connect(c->fd, address, length) == 0) return;
    if (errno != ECONNREFUSED && errno != ENOENT && errno != EINTR && errno != EAGAIN) die("connect");
    close(c->fd);
    nap(RETRY_MS);
  }
}

bool connect_tcp(struct worker* w, int port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  dial(&w->connection, (struct sockaddr*)&address, sizeof address);
  int on = 1;
  setsockopt(w->connection.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return true;
}

bool connect_unix(struct worker* w, const char* path) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
  dial(&w->connection, (struct sockaddr*)&address, sizeof address);
  return true;
}

void hang_up(struct connection* c) {
  if (c->fd >= 0) close(c->fd);
  c->fd = -1;
  c->begin = c->end = 0;
}

bool send_all(struct worker* w, const char* data, size_t length) {
  while (length > 0) {
    ssize_t n = send(w->connection.fd, data, length, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return complain(w, "cannot send: %s", strerror(errno));
    data += n;
    length -= n;
  }
  return true;
}

/* Makes sure that there is something in the buffer. */
static bool more(struct worker* w) {
  struct connection* c = &w->connection;
  while (c->begin == c->end) {
    ssize_t n = recv(c->fd, c->buffer, sizeof c->buffer, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return complain(w, "cannot receive: %s", strerror(errno));
    if (n == 0) return complain(w, "the server closed the connection");
    c->begin = 0;
    c->end = n;
  }
  return true;
}

bool receive(struct worker* w, void* data, size_t length) {
  struct connection* c = &w->connection;
  for (char* to = data; length > 0;) {
    if (!more(w)) return false;
    size_t n = c->end - c->begin;
    if (n > length) n = length;
    memcpy(to, c->buffer + c->begin, n);
    to += n;
    c->begin += n;
    length -= n;
  }
  return true;
}

bool receive_line(struct worker* w, char* line, size_t size) {
  size_t length = 0;
  for (;;) {
    if (!more(w)) return false;
    char byte = w->connection.buffer[w->connection.begin++];
    if (byte == '\n') {
      if (length > 0 && line[length - 1] == '\r') length--;
      line[length] = 0;
      return true;
    }
    if (length + 1 >= size) return complain(w, "a line of more than %zu bytes", size);
    line[length++] = byte;
  }
}
