// pagetide-guest: the embedded guest. See docs/embedded-guest.md.
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string>

#include "guest/control.h"
#include "guest/memory.h"
#include "guest/options.h"
#include "guest/userfault.h"
#include "guest/workload.h"

namespace guest {
namespace {

void AskToQuit() {
  kill(getpid(), SIGTERM);
}

// Brings the guest up, in an order in which a failure leaves nothing behind and the control socket answers only when
// everything else is ready.
bool Start(const Options& options, Memory* memory, Workload** workload, Userfault* userfault, Control** control,
           std::string* error) {
  *workload = nullptr;
  if (!memory->Open(options, error)) return false;
  *workload = new Workload(memory, options);
  *control = new Control(memory, *workload, userfault);
  if (!(*control)->Bind(options.control, error)) return false;
  if (options.incoming) {
    if (options.userfaultfd && !CreateUserfault(*memory, options.register_self, userfault, error)) return false;
    if (!options.handover.empty() && !HandOver(*memory, options.handover, userfault, error)) return false;
  } else if (!(*workload)->Fill(options, error)) {
    return false;
  }
  (*workload)->Start(options.incoming);
  return (*control)->Serve(AskToQuit, error);
}

int Main(int argc, char** argv) {
  Options options;
  bool help = false;
  std::string error;
  if (!ParseOptions(argc, argv, &options, &help, &error)) {
    fprintf(stderr, "pagetide-guest: %s\n", error.c_str());
    return 2;
  }
  if (help) {
    fputs(kUsage, stdout);
    return 0;
  }

  // Blocked before any thread begins, so that all of them inherit it, and taken by this thread alone.
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGTERM);
  sigaddset(&ends, SIGINT);
  sigprocmask(SIG_BLOCK, &ends, nullptr);
  signal(SIGPIPE, SIG_IGN);

  Memory memory;
  Workload* workload = nullptr;
  Control* control = nullptr;
  Userfault userfault;
  if (!Start(options, &memory, &workload, &userfault, &control, &error)) {
    if (control != nullptr) control->Unlink();
    memory.Discard();
    fprintf(stderr, "pagetide-guest: %s\n", error.c_str());
    return 1;
  }

  int signal_number = 0;
  while (sigwait(&ends, &signal_number) != 0) {
  }
  control->Unlink();
  // Threads may wait for pages that never come: nothing is joined, nothing is destroyed.
  _exit(0);
}

}  // namespace
}  // namespace guest

int main(int argc, char** argv) {
  return guest::Main(argc, argv);
}
