// Programs to attach to: this binary started again in a helper mode, by a double fork, so that it is no child of the
// test, and unmodified in the sense that it knows nothing of being attached to.
#pragma once

#include <string>

namespace pagetide::test {

// One line in, one line out. Modes: see helper.cc.
int HelperMain(const std::string& mode);

class Helper {
 public:
  // Starts it and waits until it says that it is ready.
  explicit Helper(const std::string& mode);
  ~Helper();
  Helper(const Helper&) = delete;
  Helper& operator=(const Helper&) = delete;

  int pid() const { return pid_; }
  uint64_t address() const { return address_; }  // of its memory, kHelperFrames pages
  void Say(const std::string& line);
  // The next line; fails the test at end of file.
  std::string Hear();
  bool Heard() const;  // whether a line waits
  void Kill();         // and waits until it is gone
  // Until thread `pid` sleeps in system call `number`.
  void WaitParkedIn(long number) const;

 private:
  int pid_ = -1;
  int to_ = -1, from_ = -1;
  uint64_t address_ = 0;
};

inline constexpr unsigned kHelperFrames = 64;

}  // namespace pagetide::test
