// The resident index by number, for the parts of the addon that use it.
#pragma once

#include "addon/registry.h"
#include "core/resident_index.h"

namespace pagetide {

// What a thread that serves a guest may look up: pages of one domain.
struct ResidentLookups {
  std::shared_ptr<ResidentIndex> index;
  uint32_t domain;
};

Registry<ResidentLookups>& Lookups();

}  // namespace pagetide
