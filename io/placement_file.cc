#include "io/placement_file.h"

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
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
  CopyRule rule;
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

/// The ranks of an expert's copies, ascending.
std::vector<std::int32_t> read_ranks(const json& value, std::size_t layer, std::size_t expert, const Demand& demand) {
  if (!value.is_array()) return {read_rank(value, layer, expert, demand)};
  const std::string place = "layer " + std::to_string(layer) + ", expert " + std::to_string(expert);
  if (value.empty()) throw Error(place + ": an empty list of ranks", demand.where, kRemedy);
  std::vector<std::int32_t> ranks;
  for (const json& rank : value) ranks.push_back(read_rank(rank, layer, expert, demand));
  std::ranges::sort(ranks);
  if (const auto twice = std::ranges::adjacent_find(ranks); twice != ranks.end())
    throw Error(place + ": two copies on rank " + std::to_string(*twice), demand.where,
                "a rank holds one copy of an expert at most");
  return ranks;
}

LayerPlacement read_layer(const json& row, std::size_t layer, const Demand& demand) {
  const std::string place = "layer " + std::to_string(layer);
  if (!row.is_array()) throw Error(place + ": not a list of ranks", demand.where, kRemedy);
  if (row.size() != static_cast<std::size_t>(demand.n_experts)) {
    throw Error(
        place + ": " + std::to_string(row.size()) + " ranks for " + std::to_string(demand.n_experts) + " experts",
        demand.where, "use a placement made for this model");
  }
  std::vector<std::vector<std::int32_t>> ranks_of_expert;
  for (std::size_t expert = 0; expert < row.size(); ++expert) {
    ranks_of_expert.push_back(read_ranks(row[expert], layer, expert, demand));
  }
  return {ranks_of_expert, demand.n_ranks, demand.rule};
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

ExpertPlacement read_placement_file(const std::filesystem::path& path, int n_layers, int n_experts, int n_ranks,
                                    CopyRule rule) {
  const Demand demand{path.string(), n_layers, n_experts, n_ranks, rule};
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
  for (std::size_t row = 0; row < rows.size(); ++row) {
    placement.push_back(read_layer(rows[row], row, demand));
    if (placement.back().n_physical() != placement.front().n_physical())
      throw Error("layer " + std::to_string(row) + " has " + std::to_string(placement.back().n_physical()) +
                      " copies of experts, layer 0 " + std::to_string(placement.front().n_physical()),
                  demand.where, "give every layer as many");
  }
  if (rows.size() == 1) placement.assign(layers, LayerPlacement(placement.front()));
  return ExpertPlacement(std::move(placement));
}

std::string to_placement_json(const ExpertPlacement& placement) {
  json rows = json::array();
  for (int layer = 0; layer < placement.n_layers(); ++layer) {
    const LayerPlacement& from = placement.layer(layer);
    json row = json::array();
    for (int expert = 0; expert < from.n_experts(); ++expert) {
      const std::span<const std::int32_t> ranks = from.ranks_of(expert);
      row.push_back(ranks.size() == 1 ? json(ranks.front()) : json(std::vector(ranks.begin(), ranks.end())));
    }
    rows.push_back(std::move(row));
  }
  const int n_ranks = placement.n_layers() == 0 ? 0 : placement.layer(0).n_ranks();
  return json{{"n_ranks", n_ranks}, {"rank_of_expert", std::move(rows)}}.dump() + "\n";
}

}  // namespace switchyard
