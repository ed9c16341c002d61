#pragma once

#include <string>
#include <string_view>

#include "pipeline/analysis/statistics.h"

namespace switchyard {

/// Statistics of counts that others have published: JSON {"DATASET": {"LAYER": [slots of expert 0, 1, ...]}}, or
/// {"MODEL": {"DATASET": ...}} with `model_key` to choose one where there are several; members that are no objects,
/// such as a source, are passed over. A layer is its number in the decoder. Only what follows from slots by layer and
/// expert is known: the order of choices is not, so that /load/slot_count has them all as first choices. `file` is
/// named in errors. Throws Error of counts that top_k choices of every token in every layer cannot give.
Statistics statistics_of_counts(std::string_view json_text, const std::string& model_key, int top_k,
                                const std::string& file);

}  // namespace switchyard
