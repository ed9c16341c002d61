#include "pipeline/model/family.h"

#include <algorithm>

#include "parallel/error.h"

namespace switchyard {

extern const Family kMixtral, kMistral, kDeepseek, kGrok1;  // families/

std::span<const Family* const> families() {
  static constexpr std::array kAll = {&kMixtral, &kMistral, &kDeepseek, &kGrok1};
  return kAll;
}

std::string known_families() {
  std::string known;
  for (const Family* family : families()) known += (known.empty() ? "" : ", ") + std::string(family->model_type);
  return known;
}

const Family& find_family(std::string_view model_type, const std::string& where) {
  const auto found = std::ranges::find(families(), model_type, &Family::model_type);
  if (found != families().end()) return **found;
  throw Error("model_type \"" + std::string(model_type) + "\" is not a known family", where,
              "known are " + known_families());
}

std::string numbered(std::string_view pattern, int number) {
  std::string name(pattern);
  if (const auto at = name.find("{}"); at != std::string::npos) name.replace(at, 2, std::to_string(number));
  return name;
}

}  // namespace switchyard
