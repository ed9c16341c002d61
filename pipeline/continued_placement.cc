#include "pipeline/continued_placement.h"

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "io/routing_reader.h"
#include "pipeline/analysis/dispatch_values.h"

namespace switchyard {
namespace {

/// Ranks and experts of all layers' copies, as /dispatch has them; nothing where another placement is to begin.
struct RecordedCopies {
  std::vector<std::int32_t> rank;      // [L, P]
  std::vector<std::uint16_t> logical;  // [L, P]
};

RecordedCopies read_copies(const std::filesystem::path& file, const ExpertPlacement& placement, int n_ranks) {
  const RoutingReader segment(file);
  DispatchValues dispatch(segment);
  const std::vector<std::uint64_t> shape = {static_cast<std::uint64_t>(placement.n_layers()),
                                            static_cast<std::uint64_t>(placement.n_physical())};
  if (dispatch.shape("rank_node").at(1) != static_cast<std::uint64_t>(n_ranks)) return {};
  if (dispatch.shape("placement") != shape) return {};
  return {dispatch.values<std::int32_t>("placement"), dispatch.values<std::uint16_t>("logical")};
}

}  // namespace

ExpertPlacement continued_placement(const std::optional<std::filesystem::path>& last_segment,
                                    const ExpertPlacement& placement, const Communicator& comm) {
  RecordedCopies copies;
  if (comm.rank() == 0 && last_segment && placement.n_layers() > 0)
    copies = read_copies(*last_segment, placement, comm.size());
  copies = {comm.broadcast(std::move(copies.rank)), comm.broadcast(std::move(copies.logical))};
  if (copies.rank.empty()) return placement;
  const auto of_layer = static_cast<std::size_t>(placement.n_physical());
  std::vector<LayerPlacement> layers;
  for (int l = 0; l < placement.n_layers(); ++l) {
    std::vector<std::vector<std::int32_t>> ranks_of(static_cast<std::size_t>(placement.layer(l).n_experts()));
    for (std::size_t i = layers.size() * of_layer; i < (layers.size() + 1) * of_layer; ++i)
      ranks_of.at(copies.logical[i]).push_back(copies.rank[i]);
    layers.emplace_back(ranks_of, comm.size(), placement.layer(l).rule());
  }
  return ExpertPlacement(std::move(layers));
}

}  // namespace switchyard
