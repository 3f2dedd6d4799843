// Keys of domains by number, for the parts of the addon that use one.
#pragma once

#include <memory>

#include "addon/registry.h"
#include "addon/support.h"
#include "core/tags.h"

namespace pagetide {

Registry<DomainKey>& DomainKeys();

// The key whose number is argument `index`; nullptr after throwing.
std::shared_ptr<DomainKey> GetKey(const Napi::CallbackInfo& info, size_t index);

}  // namespace pagetide
