// Keys of domains by number, for the parts of the addon that use one.
#pragma once

#include "addon/registry.h"
#include "core/tags.h"

namespace pagetide {

Registry<DomainKey>& DomainKeys();

}  // namespace pagetide
