// Minimal page server: one connection, one request at a time; pread the page, write header and page together.
//
//   miss-server --memory FILE [--spin-us N]
//
// stdout: {"event":"ready","port"} when it listens on loopback, {"event":"done","served"} when its client has gone.
#include "wire.h"

int main(int argc, char** argv) {
  Option o[] = {{"--memory", NULL}, {"--spin-us", "0"}};
  parse_options(argc, argv, o, 2);
  die_with_parent();
  uint64_t spin_ns = number_option(&o[1]) * 1000;
  int memory = open(o[0].value, O_RDONLY | O_CLOEXEC);
  struct stat info;
  if (memory < 0 || fstat(memory, &info) != 0) die("open %s", o[0].value);

  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof address;
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (listener < 0 || bind(listener, (struct sockaddr*)&address, sizeof address) != 0 || listen(listener, 1) != 0 ||
      getsockname(listener, (struct sockaddr*)&address, &size) != 0)
    die("listen on loopback");
  printf("{\"event\":\"ready\",\"pid\":%d,\"port\":%u}\n", getpid(), ntohs(address.sin_port));
  fflush(stdout);
  int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
  if (client < 0) die("accept");
  close(listener);
  no_delay(client);

  struct {
    Header header;
    char page[PAGE];
  } answer;
  Header request;
  uint64_t served = 0;
  while (receive_all(client, &request, sizeof request, spin_ns)) {
    errno = EPROTO;
    if (request.kind != 1 || request.length != 0) die("a wrong request");
    if (request.frame >= (uint64_t)info.st_size / PAGE)
      die("frame %llu is not there", (unsigned long long)request.frame);
    if (pread(memory, answer.page, PAGE, (off_t)(request.frame * PAGE)) != PAGE) die("pread");
    answer.header = (Header){.kind = 2, .length = PAGE, .frame = request.frame};
    send_all(client, &answer, sizeof answer);
    served++;
  }
  printf("{\"event\":\"done\",\"served\":%llu}\n", (unsigned long long)served);
  return 0;
}
