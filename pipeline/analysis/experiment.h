#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/hdf5/table.h"
#include "io/routing_schema.h"

namespace switchyard {

/// What an experiment on a model found: its file's tables, /model/* apart.
struct Experiment {
  std::string kind;                             // "ablation", "placement", "probe", "simulation", "weights"
  std::string source;                           // the file it was read from
  std::map<std::string, std::string> settings;  // root attributes: how it was made
  ModelFacts model;
  std::vector<Table> tables;
};

/// `kind` of a file whose root attribute `format` is "switchyard-KIND" of an experiment; empty of every other file,
/// also of one that is not there.
std::string experiment_kind(const std::filesystem::path& path);

/// Writes settings, /model and the tables; whole or not at all. groups: path and description of each group of the
/// tables. program: name, version and commit. Throws Error naming the path.
void write_experiment(const std::filesystem::path& path, const Experiment& experiment,
                      const std::vector<std::pair<std::string, std::string>>& groups, const std::string& program);
/// Throws Error when it is no experiment, of a newer major version, or damaged.
Experiment read_experiment(const std::filesystem::path& path);

}  // namespace switchyard
