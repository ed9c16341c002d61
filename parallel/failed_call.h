#pragma once

#include <source_location>
#include <string>
#include <string_view>

#include "parallel/error.h"

namespace switchyard {

/// The error of a call into a foreign library that failed: "MPI_Bcast failed: text" at "file.cc:12". call: its source
/// text, of which the part before the first parenthesis is named.
Error failed_call(std::string_view call, const std::string& text, std::source_location where,
                  const std::string& remedy = {});

}  // namespace switchyard
