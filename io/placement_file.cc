#include "io/placement_file.h"

#include <cstdint>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "io/mapped_file.h"
#include "io/strict_json.h"
#include "parallel/error.h"

namespace switchyard {
namespace {

using nlohmann::json;

constexpr const char* kRemedy = "see --placement in the manual for the file's form";

/// What a run needs of the file.
struct Demand {
  std::string where;
  int n_layers, n_experts, n_ranks;
};

std::int32_t read_rank(const json& value, std::size_t layer, std::size_t expert, const Demand& demand) {
  const std::string place = "layer " + std::to_string(layer) + ", expert " + std::to_string(expert);
  if (!value.is_number_integer()) throw Error(place + ": the rank is not an integer", demand.where, kRemedy);
  const bool negative = !value.is_number_unsigned();
  const auto rank = negative ? 0 : value.get<std::uint64_t>();
  if (negative || rank >= static_cast<std::uint64_t>(demand.n_ranks)) {
    throw Error(place + ": rank " + value.dump() + " is outside 0 to " + std::to_string(demand.n_ranks - 1),
                demand.where, "run with as many ranks as the placement was made for");
  }
  return static_cast<std::int32_t>(rank);
}

LayerPlacement read_layer(const json& row, std::size_t layer, const Demand& demand) {
  const std::string place = "layer " + std::to_string(layer);
  if (!row.is_array()) throw Error(place + ": not a list of ranks", demand.where, kRemedy);
  if (row.size() != static_cast<std::size_t>(demand.n_experts)) {
    throw Error(
        place + ": " + std::to_string(row.size()) + " ranks for " + std::to_string(demand.n_experts) + " experts",
        demand.where, "use a placement made for this model");
  }
  std::vector<std::int32_t> rank_of_expert;
  for (std::size_t expert = 0; expert < row.size(); ++expert) {
    rank_of_expert.push_back(read_rank(row[expert], layer, expert, demand));
  }
  return {std::move(rank_of_expert), demand.n_ranks};
}

void check_rank_count(const json& root, const Demand& demand) {
  const auto found = root.find("n_ranks");
  if (found == root.end()) return;
  if (!found->is_number_integer()) throw Error("'n_ranks' is not an integer", demand.where, kRemedy);
  if (*found != demand.n_ranks) {
    throw Error("made for " + found->dump() + " ranks; this run has " + std::to_string(demand.n_ranks), demand.where,
                "run with as many ranks as the placement was made for");
  }
}

}  // namespace

ExpertPlacement read_placement_file(const std::filesystem::path& path, int n_layers, int n_experts, int n_ranks) {
  const Demand demand{path.string(), n_layers, n_experts, n_ranks};
  const MappedFile file(path);
  const auto* const text = reinterpret_cast<const char*>(file.bytes().data());
  const json root = parse_strict_json({text, file.bytes().size()}, demand.where);
  if (!root.is_object() || !root.contains("rank_of_expert") || !root["rank_of_expert"].is_array()) {
    throw Error("no list 'rank_of_expert' in it", demand.where, kRemedy);
  }
  check_rank_count(root, demand);

  const json& rows = root["rank_of_expert"];
  const auto layers = static_cast<std::size_t>(n_layers);
  if (rows.size() != 1 && rows.size() != layers) {
    throw Error("'rank_of_expert' has " + std::to_string(rows.size()) + " rows; this model has " +
                    std::to_string(n_layers) + " MoE layers",
                demand.where, "give one row per MoE layer, or one for all of them");
  }
  std::vector<LayerPlacement> placement;
  for (std::size_t row = 0; row < rows.size(); ++row) placement.push_back(read_layer(rows[row], row, demand));
  if (rows.size() == 1) placement.assign(layers, LayerPlacement(placement.front()));
  return ExpertPlacement(std::move(placement));
}

std::string to_placement_json(const ExpertPlacement& placement) {
  json rows = json::array();
  for (int layer = 0; layer < placement.n_layers(); ++layer) {
    const LayerPlacement& from = placement.layer(layer);
    json row = json::array();
    for (int expert = 0; expert < from.n_experts(); ++expert) row.push_back(from.rank_of(expert));
    rows.push_back(std::move(row));
  }
  const int n_ranks = placement.n_layers() == 0 ? 0 : placement.layer(0).n_ranks();
  return json{{"n_ranks", n_ranks}, {"rank_of_expert", std::move(rows)}}.dump() + "\n";
}

}  // namespace switchyard
