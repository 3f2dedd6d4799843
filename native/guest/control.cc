#include "guest/control.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>

#include "guest/json.h"

namespace guest {

namespace {

constexpr size_t kLongestLine = 64u << 10;
constexpr int kMostConnections = 32;
constexpr uint64_t kMostTouched = 1024;  // frames in one request: bounds the answer

std::string Error(const std::string& text) {
  return "{\"ok\":false,\"error\":" + JsonQuote(text) + "}\n";
}
std::string Field(const char* name, const std::string& json) {
  return std::string(",\"") + name + "\":" + json;
}
std::string Field(const char* name, uint64_t value) {
  return Field(name, std::to_string(value));
}
std::string Field(const char* name, int64_t value) {
  return Field(name, std::to_string(value));
}
std::string Field(const char* name, bool value) {
  return Field(name, std::string(value ? "true" : "false"));
}
std::string Okay(const std::string& fields) {
  return "{\"ok\":true" + fields + "}\n";
}

const char* NameOf(Workload::State state) {
  switch (state) {
    case Workload::State::kIncoming:
      return "incoming";
    case Workload::State::kPaused:
      return "paused";
    case Workload::State::kRunning:
      break;
  }
  return "running";
}

bool MakeAddress(const std::string& path, struct sockaddr_un* address, std::string* error) {
  *address = {};
  address->sun_family = AF_UNIX;
  if (path.size() >= sizeof address->sun_path) {
    *error = "control socket path is too long (107 bytes at most)";
    return false;
  }
  memcpy(address->sun_path, path.c_str(), path.size());
  return true;
}

}  // namespace

// One client. Reads ahead, so the bytes after a request's line may be in `ahead` already.
struct Control::Connection {
  int fd;
  std::string ahead;

  ~Connection() { close(fd); }

  bool Fill() {
    char buffer[64 << 10];
    ssize_t got;
    do {
      got = recv(fd, buffer, sizeof buffer, 0);
    } while (got < 0 && errno == EINTR);
    if (got <= 0) return false;
    ahead.append(buffer, static_cast<size_t>(got));
    return true;
  }

  enum class Read { kLine, kTooLong, kEnd };
  Read Line(std::string* line) {
    for (size_t searched = 0;;) {
      const size_t end = ahead.find('\n', searched);
      if (end != std::string::npos && end <= kLongestLine) {
        line->assign(ahead, 0, end);
        ahead.erase(0, end + 1);
        return Read::kLine;
      }
      if (end != std::string::npos || ahead.size() > kLongestLine) return Read::kTooLong;
      searched = ahead.size();
      if (!Fill()) return Read::kEnd;
    }
  }

  bool Bytes(size_t count, std::vector<uint8_t>* out) {
    while (ahead.size() < count) {
      if (!Fill()) return false;
    }
    out->assign(ahead.begin(), ahead.begin() + static_cast<ptrdiff_t>(count));
    ahead.erase(0, count);
    return true;
  }

  bool Write(const void* data, size_t bytes) {
    const auto* at = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t sent = send(fd, at, bytes, MSG_NOSIGNAL);
      if (sent < 0 && errno == EINTR) continue;
      if (sent <= 0) return false;
      at += sent;
      bytes -= static_cast<size_t>(sent);
    }
    return true;
  }
  bool Write(const std::string& text) { return Write(text.data(), text.size()); }
};

bool Control::Bind(const std::string& path, std::string* error) {
  struct sockaddr_un address;
  if (!MakeAddress(path, &address, error)) return false;
  const auto* where = reinterpret_cast<const struct sockaddr*>(&address);
  listener_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (listener_ < 0) {
    *error = SystemError("socket");
    return false;
  }
  const mode_t before = umask(0177);
  int failed = bind(listener_, where, sizeof address);
  struct stat info = {};
  if (failed != 0 && errno == EADDRINUSE && lstat(path.c_str(), &info) == 0 && S_ISSOCK(info.st_mode)) {
    // Left over by a guest that died, or in use by one that lives: only the first refuses connections.
    const int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const bool dead = connect(probe, where, sizeof address) != 0 && errno == ECONNREFUSED;
    close(probe);
    errno = EADDRINUSE;
    if (dead && unlink(path.c_str()) == 0) failed = bind(listener_, where, sizeof address);
  }
  umask(before);
  if (failed != 0) {
    *error = SystemError("control socket " + path);
    return false;
  }
  path_ = path;
  return true;
}

void Control::Unlink() {
  if (!path_.empty()) unlink(path_.c_str());
}

bool Control::Serve(void (*quit)(), std::string* error) {
  quit_ = quit;
  if (listen(listener_, 64) != 0) {
    *error = SystemError("listen");
    return false;
  }
  std::thread([this] { Accept(); }).detach();
  return true;
}

void Control::Accept() {
  for (;;) {
    const int fd = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) {
      // Out of descriptors or memory: that passes; nothing else can be done about it here.
      if (errno != EINTR && errno != ECONNABORTED) std::this_thread::sleep_for(std::chrono::milliseconds(10));
      continue;
    }
    if (connections_.fetch_add(1) >= kMostConnections) {
      connections_--;
      const std::string text = Error("too many connections");
      send(fd, text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      close(fd);
      continue;
    }
    std::thread([this, fd] {
      Talk(fd);
      connections_--;
    }).detach();
  }
}

void Control::Talk(int fd) {
  Connection connection{fd, {}};
  for (std::string line;;) {
    switch (connection.Line(&line)) {
      case Connection::Read::kEnd:
        return;
      case Connection::Read::kTooLong:
        connection.Write(Error("request is longer than 64 KiB"));
        return;
      case Connection::Read::kLine:
        if (!Answer(&connection, line)) return;
    }
  }
}

// Returns false where the connection is to end.
bool Control::Answer(Connection* connection, const std::string& line) {
  JsonObject request;
  if (!request.Parse(line)) {
    connection->Write(Error("request is no JSON object"));
    return false;
  }
  const std::string* name = request.String("cmd");
  if (name == nullptr) return connection->Write(Error("cmd is missing"));
  const std::string& cmd = *name;
  std::string error;
  int64_t moment = 0;
  const auto answer_moment = [&](bool good) {
    return connection->Write(good ? Okay(Field("unixMicros", moment)) : Error(error));
  };

  if (cmd == "status") return connection->Write(Status());
  if (cmd == "stats") return connection->Write(Stats());
  if (cmd == "pause") return answer_moment(workload_->Pause(&moment, &error));
  if (cmd == "resume") return answer_moment(workload_->Resume(&moment, &error));
  if (cmd == "verify") return connection->Write(Verify());
  if (cmd == "reset-stats") {
    workload_->ResetStats();
    return connection->Write(Okay(""));
  }
  if (cmd == "quit") {
    connection->Write(Okay(""));
    quit_();
    return false;
  }
  if (cmd == "save") {
    std::vector<uint8_t> bytes;
    if (!workload_->Save(&bytes, &error)) return connection->Write(Error(error));
    return connection->Write(Okay(Field("bytes", uint64_t{bytes.size()}))) &&
           connection->Write(bytes.data(), bytes.size());
  }
  if (cmd == "load") {
    uint64_t count = 0;
    if (!request.Count("bytes", &count) || count > kMaxStateBytes) {
      // What follows can't be told from requests any more.
      connection->Write(Error("bytes is missing or more than 64 MiB"));
      return false;
    }
    std::vector<uint8_t> bytes;
    if (!connection->Bytes(count, &bytes)) return false;
    const bool good = workload_->Load(bytes, &error);
    moment = UnixMicros();
    return answer_moment(good);
  }

  if (cmd != "touch" && cmd != "digest" && cmd != "poke" && cmd != "copy" && cmd != "remove") {
    return connection->Write(Error("unknown cmd " + cmd));
  }
  uint64_t frame = 0;
  uint64_t count = 1;
  const bool has_count = request.Count("count", &count);
  if (!request.Count("frame", &frame) || frame >= memory_->frames() || (has_count && count == 0) ||
      count > memory_->frames() - frame) {
    return connection->Write(Error("frame or count is missing or out of range"));
  }
  if (cmd == "touch") {
    if (count > kMostTouched) return connection->Write(Error("at most 1024 frames at once"));
    return connection->Write(Touch(frame, count));
  }
  if (cmd == "digest") {
    const uint64_t unit = frame * (memory_->page_size() / kUnit);
    const bool data = workload_->state() != Workload::State::kIncoming && unit < workload_->data_units();
    return connection->Write(
        Okay(Field("frame", frame) + Field("hash", JsonHash(HashWords(memory_->Unit(unit), memory_->page_size()))) +
             Field("zero", IsZeroUnit(memory_->Unit(unit))) + Field("hot", data && workload_->IsHot(unit)) +
             Field("expected", data ? JsonHash(workload_->Expected(unit)) : "null")));
  }
  if (cmd == "poke") {
    uint64_t hash = 0;
    if (!workload_->Poke(frame, &hash, &error)) return connection->Write(Error(error));
    return connection->Write(Okay(Field("hash", JsonHash(hash))));
  }
  if (cmd == "copy") {
    uint64_t from = 0;
    if (!request.Count("from", &from)) return connection->Write(Error("from is missing"));
    return connection->Write(workload_->Copy(frame, from, count, &error) ? Okay("") : Error(error));
  }
  const std::string* how = request.String("how");
  if (how == nullptr || (*how != "dontneed" && *how != "remove" && *how != "punch")) {
    return connection->Write(Error("how must be dontneed, remove or punch"));
  }
  const Memory::Remove remove = *how == "dontneed" ? Memory::Remove::kDontNeed
                                : *how == "remove" ? Memory::Remove::kRemove
                                                   : Memory::Remove::kPunch;
  return connection->Write(workload_->Give(frame, count, remove, &error) ? Okay("") : Error(error));
}

std::string Control::Status() const {
  const Workload::Snapshot now = workload_->Look();
  std::string regions = "[";
  for (const Region& region : memory_->regions()) {
    if (regions.size() > 1) regions += ",";
    regions += "{\"hostAddress\":" + std::to_string(reinterpret_cast<uint64_t>(region.address)) +
               Field("size", region.size) + Field("offset", region.offset) + "}";
  }
  constexpr const char* kKinds[] = {"", "page", "hole", "table", "root"};
  std::string failures = "[";
  for (const Failure& failure : now.failures) {
    if (failures.size() > 1) failures += ",";
    failures += "{\"kind\":" + JsonQuote(kKinds[failure.kind <= Failure::kRoot ? failure.kind : 0]) +
                Field("frame", failure.unit * kUnit / memory_->page_size()) + Field("offset", failure.unit * kUnit) +
                Field("expected", JsonHash(failure.expected)) + Field("actual", JsonHash(failure.actual)) +
                Field("operation", failure.operation) + "}";
  }
  return Okay(Field("state", JsonQuote(NameOf(workload_->state()))) + Field("pid", uint64_t(getpid())) +
              Field("memorySize", memory_->size()) + Field("pageSize", memory_->page_size()) +
              Field("frames", memory_->frames()) + Field("private", memory_->is_private()) +
              Field("memoryFile", memory_->is_private() ? "null" : JsonQuote(memory_->path())) +
              Field("regions", regions + "]") +
              Field("uffd", userfault_->fd < 0 ? "null" : std::to_string(userfault_->fd)) +
              Field("userModeOnly", userfault_->user_mode_only) + Field("threads", uint64_t{workload_->threads()}) +
              Field("seed", JsonQuote(std::to_string(now.seed))) + Field("writeRate", JsonDecimal(now.write_rate)) +
              Field("readRate", JsonDecimal(now.read_rate)) + Field("workingSet", JsonDecimal(now.working_set)) +
              Field("zeroFraction", JsonDecimal(now.zero_fraction)) + Field("operations", now.operations) +
              Field("beat", now.last_beat) + Field("root", JsonHash(now.root)) + Field("chain", JsonHash(now.chain)) +
              Field("failureCount", now.failure_count) + Field("failures", failures + "]"));
}

std::string Control::Stats() const {
  const Workload::Snapshot now = workload_->Look();
  const StallHistogram::Summary stalls = workload_->Stalls();
  return Okay(Field("longestGapMs", JsonDecimal(static_cast<double>(now.longest_gap) / 1000)) +
              Field("stalls",
                    "{\"count\":" + std::to_string(stalls.count) + Field("p50Us", JsonDecimal(stalls.p50_us)) +
                        Field("p99Us", JsonDecimal(stalls.p99_us)) + Field("maxUs", JsonDecimal(stalls.max_us)) + "}") +
              Field("operations", now.operations));
}

std::string Control::Verify() {
  Workload::Verdict verdict = {};
  std::string error;
  if (!workload_->Verify(&verdict, &error)) return Error(error);
  std::string bad = "[";
  for (const uint64_t page : verdict.bad) bad += (bad.size() > 1 ? "," : "") + std::to_string(page);
  return Okay(Field("verified", verdict.verified) + Field("checked", memory_->frames()) + Field("bad", bad + "]") +
              Field("badCount", verdict.bad_count) + Field("detail", JsonQuote(verdict.detail)));
}

// Where the workload runs, a frame may be written while it is read, and its hash mean nothing.
std::string Control::Touch(uint64_t frame, uint64_t count) const {
  const uint64_t units = memory_->page_size() / kUnit;
  std::string touched = "[";
  for (uint64_t i = 0; i < count; i++) {
    const uint8_t* page = memory_->Unit((frame + i) * units);
    const uint64_t before = NowNs(CLOCK_MONOTONIC);
    [[maybe_unused]] const uint8_t byte = *static_cast<const volatile uint8_t*>(page);
    const uint64_t ns = NowNs(CLOCK_MONOTONIC) - before;
    if (i > 0) touched += ",";
    touched += "{\"hash\":" + JsonHash(HashWords(page, memory_->page_size())) + Field("ns", ns) + "}";
  }
  return Okay(Field("touched", touched + "]"));
}

}  // namespace guest
