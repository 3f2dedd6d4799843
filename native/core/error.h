// Errors of the core: which system call failed, with which errno, on which range. No exceptions cross this code.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

namespace pagetide {

// What went wrong. `kind` maps to a stable code at the JavaScript door (addon/errors.cc).
enum class ErrorKind {
  None,
  Syscall,      // a system call failed: `call`, `err`, and the range where there is one
  Argument,     // the caller's argument is refused before any system call
  Permission,   // the host does not let us (EPERM, EACCES where a right is what lacks)
  Unsupported,  // the kernel lacks it
  InUse,        // somebody else has it: socket, folder
  CacheInUse,   // another agent, or another opener of this one, has the cache file
  CacheFile,    // a cache file of another size, version or kind, or one that was cut off while in use
  Internal,
};

struct Error {
  ErrorKind kind = ErrorKind::None;
  const char* call = "";  // static text, e.g. "UFFDIO_COPY"
  int err = 0;            // errno, 0 where none
  uint64_t start = 0;     // address or offset; meaningful when length > 0
  uint64_t length = 0;
  std::string detail;

  bool ok() const { return kind == ErrorKind::None; }
  explicit operator bool() const { return !ok(); }
  // "UFFDIO_COPY: ENOENT at [0x7f0000000000, +4096): detail"
  std::string Message() const;
};

// "ENOENT" for 2. Falls back to "errno N".
std::string ErrnoName(int err);

Error SyscallError(const char* call, int err, uint64_t start = 0, uint64_t length = 0, std::string detail = {});
Error ArgumentError(std::string detail, uint64_t start = 0, uint64_t length = 0);
Error MakeError(ErrorKind kind, std::string detail);

template <typename T>
struct Result {
  Error error;
  T value{};

  Result(T v) : value(std::move(v)) {}      // NOLINT: implicit on purpose, reads as `return value;`
  Result(Error e) : error(std::move(e)) {}  // NOLINT
  bool ok() const { return error.ok(); }
};

}  // namespace pagetide
