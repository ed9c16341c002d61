#include "pipeline/analysis/experiment.h"

#include <algorithm>
#include <array>
#include <iterator>

#include "io/hdf5/file.h"
#include "io/stats_file.h"
#include "parallel/error.h"
#include "pipeline/analysis/model_fact_tables.h"

namespace switchyard {
namespace {

constexpr std::array<std::string_view, 5> kKinds = {"ablation", "placement", "probe", "simulation", "weights"};

std::string format_of(std::string_view kind) { return std::string("switchyard-") + std::string(kind); }

}  // namespace

std::string experiment_kind(const std::filesystem::path& path) {
  if (!std::filesystem::is_regular_file(path)) return {};
  const auto file = hdf5::File::open(path, hdf5::File::Access::read);
  const std::string format = file.string_attribute("/", "format").value_or("");
  const auto found = std::ranges::find_if(kKinds, [&](std::string_view kind) { return format == format_of(kind); });
  return found == kKinds.end() ? std::string() : std::string(*found);
}

void write_experiment(const std::filesystem::path& path, const Experiment& experiment,
                      const std::vector<std::pair<std::string, std::string>>& groups, const std::string& program) {
  std::map<std::string, std::string> attributes = experiment.settings;
  attributes["format"] = format_of(experiment.kind);
  attributes["program"] = program;
  std::vector<Table> tables = model_fact_tables(experiment.model);
  tables.insert(tables.end(), experiment.tables.begin(), experiment.tables.end());
  std::map<std::string, std::string> descriptions(groups.begin(), groups.end());
  descriptions["/model"] = "the model's MoE layers";
  write_tables(path, attributes, descriptions, tables);
}

Experiment read_experiment(const std::filesystem::path& path) {
  Experiment experiment;
  experiment.kind = experiment_kind(path);
  if (experiment.kind.empty())
    throw Error("is not the result of an experiment", path.string(), "name what ablate, place, probe or weights wrote");
  experiment.source = path.string();
  experiment.settings = hdf5::File::open(path, hdf5::File::Access::read).string_attributes("/");
  std::vector<Table> tables = read_tables(path, format_of(experiment.kind));
  experiment.model = model_facts_from(TableIndex(tables, "", path.string()));
  std::ranges::copy_if(std::make_move_iterator(tables.begin()), std::make_move_iterator(tables.end()),
                       std::back_inserter(experiment.tables),
                       [](const Table& table) { return !table.path.starts_with("/model/"); });
  return experiment;
}

}  // namespace switchyard
