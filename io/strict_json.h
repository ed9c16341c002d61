#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace switchyard {

/// Parses JSON, and refuses a key given twice in one object, of which the parser would silently keep the last, and a
/// zero byte, where it would silently stop. Throws Error naming `where` and the fault.
nlohmann::json parse_strict_json(std::string_view text, const std::string& where);

/// A name out of a foreign file, quoted for a message: control characters become '?', and a long one is cut.
std::string quote_name(std::string_view name);

}  // namespace switchyard
