// The test program's frame: every test runs in a forked child of its own with an alarm, so that neither a hang nor a
// failed check leaves a thread, descriptor, process or file behind: the runner is the subreaper of whatever a test
// starts, kills what is left, and empties the test's folder.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>

namespace pagetide::test {

using TestBody = void (*)();

struct Registration {
  Registration(const char* name, int seconds, TestBody body);
};

// A test of at most `seconds` wall clock.
#define TEST_SECONDS(name, seconds)                                                   \
  static void Test_##name();                                                          \
  static ::pagetide::test::Registration register_##name(#name, seconds, Test_##name); \
  static void Test_##name()
#define TEST(name) TEST_SECONDS(name, 20)

// Ends the test's process at once: its threads may be asleep in a fault that nobody will serve any more.
[[noreturn]] void Fail(const char* file, int line, const std::string& what);
// Ends the test as skipped. Fails instead where PAGETIDE_REQUIRE_ALL_TESTS=1.
[[noreturn]] void Skip(const std::string& why);

#define CHECK(condition)                                                              \
  do {                                                                                \
    if (!(condition)) ::pagetide::test::Fail(__FILE__, __LINE__, "not: " #condition); \
  } while (0)

#define CHECK_EQ(a, b)                                                                                      \
  do {                                                                                                      \
    auto left_ = (a);                                                                                       \
    auto right_ = (b);                                                                                      \
    if (!(left_ == static_cast<decltype(left_)>(right_)))                                                   \
      ::pagetide::test::Fail(__FILE__, __LINE__,                                                            \
                             std::string(#a " == " #b ", got ") + ::pagetide::test::Show(left_) + " and " + \
                                 ::pagetide::test::Show(static_cast<decltype(left_)>(right_)));             \
  } while (0)

// `error` (an Error) must be none.
#define CHECK_OK(error)                                                                                        \
  do {                                                                                                         \
    auto error_ = (error);                                                                                     \
    if (!error_.ok()) ::pagetide::test::Fail(__FILE__, __LINE__, std::string(#error ": ") + error_.Message()); \
  } while (0)

#define CHECK_CONTAINS(text, part)                                                                         \
  do {                                                                                                     \
    std::string text_ = (text);                                                                            \
    if (text_.find(part) == std::string::npos)                                                             \
      ::pagetide::test::Fail(__FILE__, __LINE__, "\"" + text_ + "\" does not contain \"" + (part) + "\""); \
  } while (0)

template <typename T>
std::string Show(const T& value) {
  if constexpr (std::is_enum_v<T>) {
    return std::to_string(static_cast<int64_t>(value));
  } else if constexpr (std::is_convertible_v<T, std::string>) {
    return std::string(value);
  } else {
    return std::to_string(value);
  }
}

// A folder of this test alone, on tmpfs where there is one; the runner removes it.
const std::string& Folder();
bool IsRoot();
// Huge pages of 2 MiB that the runner could reserve (it gives them back).
bool HugePages();
// Seed of every random order; PAGETIDE_TEST_SEED repeats a run.
uint64_t Seed();
// Runs `body` in a forked child, as user and group 65534 when root; its failures are the test's.
void AsNobody(TestBody body);
uint64_t NowNs();

// Small and repeatable; not for secrets.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  uint64_t Below(uint64_t n) { return Next() % n; }

 private:
  uint64_t state_;
};

}  // namespace pagetide::test
