#include "pipeline/continued_placement.h"

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "io/routing_reader.h"
#include "pipeline/analysis/dispatch_values.h"
#include "pipeline/analysis/placement_plan.h"

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
  const LayerPlacement& layer = placement.layer(0);
  const std::vector<LayerPlan> plans =
      plans_of_record(copies.rank, copies.logical, static_cast<std::size_t>(layer.n_physical()),
                      static_cast<std::size_t>(placement.n_layers()), static_cast<std::size_t>(layer.n_experts()));
  return as_placement(plans, comm.size(), layer.rule());
}

}  // namespace switchyard
