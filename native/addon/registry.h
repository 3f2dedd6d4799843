// Things that several threads of the process use at once, by number: sessions and arenas. A JavaScript object of one
// thread cannot be handed to another, but its number can.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

namespace pagetide {

template <typename T>
class Registry {
 public:
  uint32_t Add(std::shared_ptr<T> item) {
    std::lock_guard lock(mutex_);
    items_[++last_] = std::move(item);
    return last_;
  }
  std::shared_ptr<T> Find(uint32_t id) {
    std::lock_guard lock(mutex_);
    auto found = items_.find(id);
    return found == items_.end() ? nullptr : found->second;
  }
  std::shared_ptr<T> Remove(uint32_t id) {
    std::lock_guard lock(mutex_);
    auto found = items_.find(id);
    if (found == items_.end()) return nullptr;
    std::shared_ptr<T> item = std::move(found->second);
    items_.erase(found);
    return item;
  }

 private:
  std::mutex mutex_;
  std::map<uint32_t, std::shared_ptr<T>> items_;
  uint32_t last_ = 0;
};

}  // namespace pagetide
