// What ThreadSanitizer is told. Nothing in any other build.
#ifndef PAGETIDE_CORE_SANITIZER_H_
#define PAGETIDE_CORE_SANITIZER_H_

#if defined(__SANITIZE_THREAD__)
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
}
#endif

namespace pagetide {

// While it lives, this thread may read what others write, knowing that it may be stale. A suppression by function name
// would not do: it needs the reader's stack, and of an old read there is none left.
class RacyReads {
 public:
#if defined(__SANITIZE_THREAD__)
  RacyReads() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  }
  ~RacyReads() {
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
#else
  RacyReads() {}
#endif
  RacyReads(const RacyReads&) = delete;
  RacyReads& operator=(const RacyReads&) = delete;
};

}  // namespace pagetide

#endif  // PAGETIDE_CORE_SANITIZER_H_
