// Minimal pager for faults that another host answers: as handler-hit, but each page is asked for on one TCP connection
// and waited for; one fault at a time.
//
//   handler-miss --socket PATH --port N [--spin-us N] [--answer-spin-us N]
//
// --spin-us: before sleeping on the userfaultfd; --answer-spin-us: before blocking for the answer.
#include "wire.h"

int main(int argc, char** argv) {
  Option o[] = {{"--socket", NULL}, {"--port", NULL}, {"--spin-us", "0"}, {"--answer-spin-us", "0"}};
  parse_options(argc, argv, o, 4);
  die_with_parent();
  uint64_t port = number_option(&o[1]), spin_ns = number_option(&o[2]) * 1000, answer_ns = number_option(&o[3]) * 1000;
  errno = EINVAL;
  if (port == 0 || port > 65535) die("--port: 1 to 65535");
  struct sockaddr_in server = {
      .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int peer = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (peer < 0 || connect(peer, (struct sockaddr*)&server, sizeof server) != 0)
    die("connect to port %u", (unsigned)port);
  no_delay(peer);

  Guest guest = accept_guest(o[0].value, 0);
  uint64_t faults = 0;
  Waits waits = {0};
  struct uffd_msg message;
  // Header and page in one buffer, so that one recv can take both; the page is aligned as a cache slot would be.
  char* buffer = aligned_alloc(PAGE, 2 * PAGE);
  if (!buffer) die("out of memory");
  memset(buffer, 0, 2 * PAGE);
  Header* answer = (Header*)(buffer + PAGE - sizeof(Header));
  while (next_fault(&guest, spin_ns, &waits, &message)) {
    uint64_t address = fault_address(&message);
    Header request = {.kind = 1, .length = 0, .frame = (address - guest.base + guest.offset) / PAGE};
    send_all(peer, &request, sizeof request);
    errno = ECONNRESET;
    if (!receive_all(peer, answer, sizeof *answer + PAGE, answer_ns)) die("the server went away");
    errno = EPROTO;
    if (answer->kind != 2 || answer->length != PAGE || answer->frame != request.frame) die("a wrong answer");
    copy_page(&guest, address, buffer + PAGE);
    faults++;
  }
  printf("{\"event\":\"done\",\"faults\":%llu,\"spun\":%llu,\"slept\":%llu}\n", (unsigned long long)faults,
         (unsigned long long)waits.spun, (unsigned long long)waits.slept);
  return 0;
}
