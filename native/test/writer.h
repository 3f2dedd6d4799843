// A helper that writes to its memory when told to: what write tracking has to see.
#pragma once

#include <cstdint>
#include <string>

#include "test/harness.h"

namespace pagetide::test {

// In one region, enough for twice the ranges that the kernel collects in one walk of a scan (512).
inline constexpr uint64_t kWriterBytes = 16 << 20;

// One write of the helper: both sides draw the same from the same seed.
struct Write {
  uint64_t offset;
  uint8_t value;
};
inline Write NextWrite(Random& random) {
  uint64_t offset = random.Below(kWriterBytes);
  return {offset, static_cast<uint8_t>(random.Next())};
}

// Modes: writer-private, writer-thp, writer-shared, writer-huge. The last quarter of memory is never touched at first.
// "write SEED COUNT" makes COUNT writes; "run SEED" goes on writing in a thread until "halt"; "drop OFFSET BYTES" is
// MADV_DONTNEED; "remap" maps the last quarter anew.
int WriterMain(const std::string& mode);

}  // namespace pagetide::test
