#include "io/served/json_path.h"

#include <algorithm>
#include <charconv>
#include <optional>

namespace switchyard {
namespace {

using nlohmann::json;

std::optional<std::size_t> as_number(const std::string& key) {
  std::size_t number = 0;
  const char* end = key.data() + key.size();
  const auto [rest, fault] = std::from_chars(key.data(), end, number);
  return fault == std::errc() && rest == end ? std::optional(number) : std::nullopt;
}

/// Follows keys from `at`; at a list without a number it takes each of the elements that `choose` names.
template <typename Choose>
void follow(const json& at, const std::vector<std::string>& keys, std::size_t next, const std::string& way,
            const JsonPath::Elements& elements, const Choose& choose, std::vector<JsonPath::Found>& found) {
  if (next == keys.size()) {
    if (!at.is_null()) found.push_back({&at, elements});
    return;
  }
  const std::string& key = keys[next];
  if (at.is_object()) {
    if (const auto member = at.find(key); member != at.end())
      follow(*member, keys, next + 1, way + '.' + key, elements, choose, found);
  } else if (at.is_array()) {
    if (const auto number = as_number(key)) {
      if (*number < at.size()) follow(at[*number], keys, next + 1, way + '.' + key, elements, choose, found);
      return;
    }
    const auto [first, last] = choose(way, at.size());
    for (std::size_t i = first; i < std::min(last, at.size()); ++i) {
      if (!at[i].is_object()) continue;  // lists in lists have no keys; a hostile line nests them without end
      JsonPath::Elements with = elements;
      with[way] = i;
      follow(at[i], keys, next, way, with, choose, found);
    }
  }
}

}  // namespace

JsonPath::JsonPath(std::string_view text) {
  while (!text.empty()) {
    const std::string_view key = text.substr(0, text.find('.'));
    keys_.emplace_back(key);
    text.remove_prefix(std::min(text.size(), key.size() + 1));
  }
}

std::vector<JsonPath::Found> JsonPath::all(const json& root) const {
  std::vector<Found> found;
  const auto each = [](const std::string&, std::size_t size) { return std::pair<std::size_t, std::size_t>(0, size); };
  follow(root, keys_, 0, "", {}, each, found);
  return found;
}

const json* JsonPath::beside(const json& root, const Elements& elements) const {
  std::vector<Found> found;
  const auto the_same = [&](const std::string& way, std::size_t) {
    const auto element = elements.find(way);
    return element == elements.end() ? std::pair<std::size_t, std::size_t>(0, 0)
                                     : std::pair(element->second, element->second + 1);
  };
  follow(root, keys_, 0, "", {}, the_same, found);
  return found.empty() ? nullptr : found.front().value;
}

}  // namespace switchyard
