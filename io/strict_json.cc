#include "io/strict_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <vector>

#include "parallel/error.h"

namespace switchyard {

nlohmann::json parse_strict_json(std::string_view text, const std::string& where) {
  // The parser takes a zero byte for the end of its input.
  if (const auto zero = text.find('\0'); zero != std::string_view::npos) {
    throw Error("a zero byte at byte " + std::to_string(zero), where);
  }
  using Event = nlohmann::json::parse_event_t;
  std::vector<std::unordered_set<std::string>> open_objects;
  const auto refuse_duplicates = [&](int /*depth*/, Event event, nlohmann::json& value) {
    if (event == Event::object_start) open_objects.emplace_back();
    if (event == Event::object_end) open_objects.pop_back();
    if (event == Event::key && !open_objects.back().insert(value.get_ref<const std::string&>()).second) {
      throw Error("the key " + quote_name(value.get_ref<const std::string&>()) + " is given twice", where);
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text, refuse_duplicates);
  } catch (const nlohmann::json::parse_error& error) {
    throw Error("not valid JSON at byte " + std::to_string(error.byte), where);
  }
}

std::string quote_name(std::string_view name) {
  constexpr std::size_t kLongest = 200;
  std::string text(name.substr(0, kLongest));
  std::replace_if(
      text.begin(), text.end(), [](unsigned char byte) { return byte < 0x20 || byte == 0x7f; }, '?');
  return "'" + text + (name.size() > kLongest ? "...'" : "'");
}

}  // namespace switchyard
