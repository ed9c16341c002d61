#include "pipeline/analysis/dataset_names.h"

#include <map>

namespace switchyard {
namespace {

std::string label_of(const std::filesystem::path& source) {
  std::filesystem::path whole = std::filesystem::absolute(source).lexically_normal();
  if (!whole.has_filename()) whole = whole.parent_path();  // a folder named with a slash at its end
  if (std::filesystem::is_directory(whole)) return whole.filename().string();
  return whole.filename() == "stats.h5" ? whole.parent_path().filename().string() : whole.stem().string();
}

}  // namespace

std::vector<std::string> dataset_names(const std::vector<NamedSource>& sources) {
  std::map<std::string, int> uses;
  for (const NamedSource& source : sources)
    for (const std::string& name : source.datasets) ++uses[name];
  std::vector<std::string> names;
  for (const NamedSource& source : sources)
    for (const std::string& name : source.datasets)
      names.push_back(uses[name] > 1 ? label_of(source.path) + "/" + name : name);
  return names;
}

}  // namespace switchyard
