// The control socket: newline-delimited JSON, one request at a time on a connection, a thread for each connection.
//
//   → {"cmd":"status"}            ← {"ok":true,"state":"running",…}
//   → {"cmd":"save"}              ← {"ok":true,"bytes":N}  then N bytes
//   → {"cmd":"load","bytes":N}    then N bytes   ← {"ok":true,"unixMicros":…}
//   → anything wrong              ← {"ok":false,"error":"…"}
//
// A line that is no JSON object, or longer than 64 KiB, is answered with an error and ends the connection.
// docs/embedded-guest.md lists the requests.
#pragma once

#include <string>

#include "guest/memory.h"
#include "guest/userfault.h"
#include "guest/workload.h"

namespace guest {

class Control {
 public:
  Control(Memory* memory, Workload* workload, const Userfault* userfault)
      : memory_(memory), workload_(workload), userfault_(userfault) {}

  // Takes the path, refusing one that somebody listens on. Connections are refused until `Serve`.
  bool Bind(const std::string& path, std::string* error);
  // Answers requests, in threads of its own. `quit` is called, once, when a request asks for it.
  bool Serve(void (*quit)(), std::string* error);
  // Removes the socket from the file system.
  void Unlink();

 private:
  struct Connection;
  void Accept();
  void Talk(int fd);
  bool Answer(Connection* connection, const std::string& line);
  std::string Status() const;
  std::string Stats() const;
  std::string Verify();
  std::string Touch(uint64_t frame, uint64_t count) const;

  Memory* memory_;
  Workload* workload_;
  const Userfault* userfault_;
  int listener_ = -1;
  std::string path_;
  void (*quit_)() = nullptr;
  std::atomic<int> connections_{0};
};

}  // namespace guest
