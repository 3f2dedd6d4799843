// Real content for guest memory: the files of the machine it runs on, page by page, as a page cache would hold them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace guest {

// The pages of all regular files below a folder, depth first, names in byte order: the same on every run and host with
// the same files. A file's last page is padded with zeros. Begins again at the end.
class FileContent {
 public:
  explicit FileContent(std::string folder) : folder_(std::move(folder)), buffer_(kBuffer) {}
  ~FileContent();
  FileContent(const FileContent&) = delete;
  FileContent& operator=(const FileContent&) = delete;

  // The next page (4096 bytes), valid until the next call; null where the folder has no readable content.
  const uint8_t* Next();

 private:
  static constexpr size_t kBuffer = 1u << 20;
  struct Level {
    std::string path;
    std::vector<std::string> names;  // sorted
    size_t next;
  };
  bool Refill();
  bool OpenNextFile();
  void Enter(const std::string& path);

  std::string folder_;
  std::vector<uint8_t> buffer_;
  size_t at_ = 0;
  size_t end_ = 0;
  int fd_ = -1;
  std::vector<Level> levels_;
  bool any_ = false;  // this walk of the folder has found content
};

}  // namespace guest
