#pragma once

#include <nlohmann/json.hpp>

#include "pipeline/block_source.h"

namespace switchyard {

/// A place between two blocks as a run writes it down, and read back.
nlohmann::json as_json(const SourcePosition& position);
SourcePosition source_position(const nlohmann::json& json);

}  // namespace switchyard
