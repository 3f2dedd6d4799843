#include "guest/fill.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "guest/hash.h"

namespace guest {

FileContent::~FileContent() {
  if (fd_ >= 0) close(fd_);
}

const uint8_t* FileContent::Next() {
  if (at_ == end_ && !Refill()) return nullptr;
  const uint8_t* page = buffer_.data() + at_;
  at_ += kUnit;
  return page;
}

bool FileContent::Refill() {
  for (;;) {
    if (fd_ < 0 && !OpenNextFile()) return false;
    size_t got = 0;
    while (got < kBuffer) {
      const ssize_t n = read(fd_, buffer_.data() + got, kBuffer - got);
      if (n <= 0) break;  // an unreadable rest is as good as the end: this is only content
      got += static_cast<size_t>(n);
    }
    if (got < kBuffer) {
      close(fd_);
      fd_ = -1;
    }
    if (got == 0) continue;
    const size_t padded = (got + kUnit - 1) / kUnit * kUnit;
    memset(buffer_.data() + got, 0, padded - got);
    at_ = 0;
    end_ = padded;
    return any_ = true;
  }
}

bool FileContent::OpenNextFile() {
  if (levels_.empty()) Enter(folder_);
  while (!levels_.empty()) {
    Level& level = levels_.back();
    if (level.next == level.names.size()) {
      levels_.pop_back();
      // At the end: once more, unless this walk found nothing.
      if (levels_.empty() && any_) {
        any_ = false;
        Enter(folder_);
      }
      continue;
    }
    const std::string path = level.path + "/" + level.names[level.next++];
    struct stat info = {};
    if (lstat(path.c_str(), &info) != 0) continue;
    if (S_ISDIR(info.st_mode)) Enter(path);
    if (!S_ISREG(info.st_mode) || info.st_size == 0) continue;
    fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd_ >= 0) return true;
  }
  return false;
}

void FileContent::Enter(const std::string& path) {
  DIR* folder = opendir(path.c_str());
  if (folder == nullptr) return;
  Level level{path, {}, 0};
  while (const dirent* entry = readdir(folder)) {
    if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) level.names.emplace_back(entry->d_name);
  }
  closedir(folder);
  std::sort(level.names.begin(), level.names.end());
  levels_.push_back(std::move(level));
}

}  // namespace guest
