#include "core/error.h"

#include <cstdio>
#include <cstring>

namespace pagetide {

std::string ErrnoName(int err) {
  const char* name = strerrorname_np(err);
  return name != nullptr ? name : "errno " + std::to_string(err);
}

std::string Error::Message() const {
  std::string text = call;
  if (err != 0) text += (text.empty() ? "" : ": ") + ErrnoName(err);
  if (length != 0) {
    char range[80];
    snprintf(range, sizeof range, " at [0x%llx, +%llu)", static_cast<unsigned long long>(start),
             static_cast<unsigned long long>(length));
    text += range;
  }
  if (!detail.empty()) text += (text.empty() ? "" : ": ") + detail;
  return text;
}

Error SyscallError(const char* call, int err, uint64_t start, uint64_t length, std::string detail) {
  Error error;
  error.kind = ErrorKind::Syscall;
  error.call = call;
  error.err = err;
  error.start = start;
  error.length = length;
  error.detail = std::move(detail);
  return error;
}

Error ArgumentError(std::string detail, uint64_t start, uint64_t length) {
  Error error = MakeError(ErrorKind::Argument, std::move(detail));
  error.start = start;
  error.length = length;
  return error;
}

Error MakeError(ErrorKind kind, std::string detail) {
  Error error;
  error.kind = kind;
  error.detail = std::move(detail);
  return error;
}

}  // namespace pagetide
