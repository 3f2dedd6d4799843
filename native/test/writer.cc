#include "test/writer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cinttypes>
#include <cstdio>
#include <iostream>
#include <thread>

namespace pagetide::test {

namespace {

uint8_t* Map(const std::string& mode) {
  constexpr uint64_t kHuge = 2 << 20;
  bool huge = mode == "writer-huge";
  int fd = -1;
  if (mode == "writer-shared") {
    fd = memfd_create("pagetide-writer", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, static_cast<off_t>(kWriterBytes)) != 0) return nullptr;
  }
  // with room to align
  void* p = mmap(nullptr, kWriterBytes + kHuge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  auto at = (reinterpret_cast<uint64_t>(p) + kHuge - 1) / kHuge * kHuge;
  int flags = MAP_FIXED | (fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS) | (huge ? MAP_HUGETLB : 0);
  p = mmap(reinterpret_cast<void*>(at), kWriterBytes, PROT_READ | PROT_WRITE, flags, fd, 0);
  if (p == MAP_FAILED) return nullptr;
  if (!huge) madvise(p, kWriterBytes, mode == "writer-thp" ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  return static_cast<uint8_t*>(p);
}

}  // namespace

int WriterMain(const std::string& mode) {
  uint8_t* memory = Map(mode);
  if (memory == nullptr) return 1;
  for (uint64_t at = 0; at < kWriterBytes / 4 * 3; at += 512) memory[at] = static_cast<uint8_t>(at / 4096 + 1);
  printf("ready %d %" PRIx64 "\n", getpid(), reinterpret_cast<uint64_t>(memory));
  fflush(stdout);
  std::atomic<bool> stop{false};
  std::thread writer;
  std::string line;
  while (std::getline(std::cin, line)) {
    uint64_t a = 0, b = 0;
    const char* answer = "what?";
    if (sscanf(line.c_str(), "write %" SCNu64 " %" SCNu64, &a, &b) == 2) {
      Random random(a);
      for (uint64_t i = 0; i < b; i++) {
        Write write = NextWrite(random);
        const_cast<volatile uint8_t*>(memory)[write.offset] = write.value;
      }
      answer = "done";
    } else if (sscanf(line.c_str(), "run %" SCNu64, &a) == 1) {
      stop = false;
      writer = std::thread([memory, &stop, a] {
        Random random(a);
        while (!stop.load(std::memory_order_relaxed)) {
          Write write = NextWrite(random);
          const_cast<volatile uint8_t*>(memory)[write.offset] = write.value;
        }
      });
      answer = "done";
    } else if (line == "halt") {
      stop = true;
      writer.join();
      answer = "done";
    } else if (sscanf(line.c_str(), "drop %" SCNu64 " %" SCNu64, &a, &b) == 2) {
      if (madvise(memory + a, b, MADV_DONTNEED) == 0) answer = "done";
    } else if (line == "remap") {
      int flags = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS;
      void* p = mmap(memory + kWriterBytes / 4 * 3, kWriterBytes / 4, PROT_READ | PROT_WRITE, flags, -1, 0);
      if (p != MAP_FAILED) answer = "done";
    }
    puts(answer);
    fflush(stdout);
  }
  if (writer.joinable()) {
    stop = true;
    writer.join();
  }
  return 0;
}

}  // namespace pagetide::test
