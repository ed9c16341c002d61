#pragma once

#include <cstddef>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard {

/// A dotted path into JSON, "meta_info.routed_experts". A number names an element of a list; a list that is met without
/// one stands for each of its elements: "choices.routed_experts" finds one value for every choice.
class JsonPath {
 public:
  /// The element that a path took at each list without a number, by the keys that lead there.
  using Elements = std::map<std::string, std::size_t>;
  struct Found {
    const nlohmann::json* value = nullptr;
    Elements elements;
  };

  explicit JsonPath(std::string_view text);
  /// All values, in order; null ones and missing ones are left out.
  std::vector<Found> all(const nlohmann::json& root) const;
  /// The value beside those that took `elements`, nullptr when there is none or it is null.
  const nlohmann::json* beside(const nlohmann::json& root, const Elements& elements) const;

 private:
  std::vector<std::string> keys_;
};

}  // namespace switchyard
