// The guest's registers, and the form in which they travel ("device state").
//
//   "PTGSTATE" · u32 version · u32 0 · u64 payload bytes · payload · u64 checksum of all before
//
// All little-endian. The payload's length follows from its first fields, and is checked before anything is read.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "guest/hash.h"

namespace guest {

constexpr uint64_t kGroup = kUnit / sizeof(uint64_t);  // units a table unit describes
constexpr uint32_t kStateVersion = 1;
constexpr uint64_t kMaxStateBytes = 64u << 20;  // 8 bytes for 2 MiB of memory: far above any guest

// One thread's registers. They travel in the state, as they are.
struct ThreadRegisters {
  uint64_t random = 0;
  uint64_t operations = 0;
  uint64_t writes = 0;      // generation of the last unit written
  uint64_t chain = 0;       // over every hash that a step has seen, in order
  uint64_t root = 0;        // this thread's share of the root
  int64_t last_beat = 0;    // microseconds since the epoch; 0: none yet
  int64_t longest_gap = 0;  // microseconds
};

// What was found wrong. Sticky: it stays, and travels in the state.
struct Failure {
  enum Kind : uint32_t { kPage = 1, kHole = 2, kTable = 3, kRoot = 4 };
  uint32_t kind;
  uint32_t thread;
  uint64_t unit;
  uint64_t expected;
  uint64_t actual;
  uint64_t operation;
};

// Everything of the guest that is not memory.
struct Registers {
  uint64_t seed = 0;
  double write_rate = 0;
  double read_rate = 0;
  double working_set = 0;
  double zero_fraction = 0;
  std::vector<ThreadRegisters> threads;
  std::vector<uint64_t> sums;  // a group each
  std::vector<Failure> failures;
  uint64_t failure_count = 0;
};

// What a state must agree with.
struct StateShape {
  uint64_t memory_size;
  uint64_t groups;
  uint32_t threads;
};

std::vector<uint8_t> EncodeState(const Registers& registers, const StateShape& shape);
// Refuses with one line in `error` what is damaged, of another version or of another shape.
bool DecodeState(const std::vector<uint8_t>& bytes, const StateShape& shape, Registers* registers, std::string* error);

}  // namespace guest
