// SHA-256 (FIPS 180-4) of whole blocks, for page tags: with the CPU's SHA instructions, one or two messages at a time,
// and in portable C++.
//
// Why our own, where Node brings OpenSSL: the core must be testable without Node, and one message at a time leaves the
// SHA unit idle while each round waits for the one before it. Two independent messages in turn fill that gap (see
// docs/benchmarks.md for what it gains).
#pragma once

#include <cstddef>
#include <cstdint>

namespace pagetide {

inline constexpr size_t kShaBlock = 64;   // bytes
inline constexpr size_t kShaDigest = 32;  // bytes

struct ShaState {
  uint32_t words[8];
};

extern const ShaState kShaInitial;

// Takes `blocks` blocks of 64 bytes at `data` (of any alignment) into `state`.
using ShaBlocks = void (*)(ShaState& state, const uint8_t* data, size_t blocks);
// The same for two messages of equal length; nullptr where that gains nothing.
using ShaTwoBlocks = void (*)(ShaState& a, const uint8_t* data_a, ShaState& b, const uint8_t* data_b, size_t blocks);

struct Sha256Engine {
  const char* name;
  ShaBlocks blocks;
  ShaTwoBlocks two;
};

// The fastest that this CPU can run. Chosen once.
const Sha256Engine& Sha256();
const Sha256Engine& PortableSha256();
// nullptr where the CPU has no SHA instructions.
const Sha256Engine* InstructionSha256();

// The digest's bytes (big-endian) of a state.
void ShaBytes(const ShaState& state, uint8_t* out, size_t size);
// A whole message of any length, padded.
void ShaMessage(const Sha256Engine& engine, const uint8_t* data, size_t size, uint8_t out[kShaDigest]);

}  // namespace pagetide
