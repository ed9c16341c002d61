#include "pipeline/model/expert_moves.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "io/fingerprint.h"
#include "parallel/bf16.h"
#include "parallel/error.h"

namespace switchyard {
namespace {

/// A matrix no two of whose neighbouring values are equal: packed otherwise, its bytes are others.
Tensor pattern(std::int64_t rows, std::int64_t cols, DType type) {
  Tensor values(type, rows, cols);
  for (std::int64_t i = 0; i < rows * cols; ++i) {
    const auto value = static_cast<float>(i % 251);
    if (type == DType::bf16)
      values.data<Bf16>()[i] = Bf16(value);
    else
      values.data<float>()[i] = value;
  }
  return values;
}

/// Collective. Takes one layer's experts from a placement to the other. Every rank lists the same moves in the same
/// order, so that messages need no names. Returns what came to this rank.
ExpertMoves move_layer(Experts& experts, const LayerPlacement& from, const LayerPlacement& to,
                       const Communicator& comm) {
  const auto mine = from.experts_of(comm.rank());
  const auto local_before = [&](int expert) {
    return static_cast<std::size_t>(std::ranges::lower_bound(mine, expert) - mine.begin());
  };
  ExpertMoves moves;
  std::map<int, std::size_t> rooms;  // by expert, as Experts::rearrange counts them
  std::vector<Communicator::Outgoing> outgoing;
  std::vector<Communicator::Incoming> incoming;
  for (int copy = 0; copy < to.n_physical(); ++copy) {
    const int expert = to.logical_of(copy);
    const int target = to.rank_of(copy);
    const auto holders = from.ranks_of(expert);
    if (std::ranges::count(holders, target) > 0) continue;
    const int source = holders[static_cast<std::size_t>(copy) % holders.size()];
    if (target == comm.rank()) {
      rooms.emplace(expert, experts.size() + rooms.size());
      for (const std::span<std::byte> part : experts.room_for_one()) {
        incoming.push_back({source, part});
        moves.bytes += part.size();
      }
      ++moves.experts;
    } else if (source == comm.rank()) {
      for (const std::span<std::byte> part : experts.leaving(local_before(expert))) outgoing.push_back({target, part});
    }
  }
  comm.exchange(outgoing, incoming);
  std::vector<std::size_t> which;
  for (const int expert : to.experts_of(comm.rank())) {
    const auto room = rooms.find(expert);
    which.push_back(room == rooms.end() ? local_before(expert) : room->second);
  }
  experts.rearrange(which);
  return moves;
}

}  // namespace

void require_equal_packing(const ModelConfig& config, DType type, const Communicator& comm) {
  const Tensor wide = pattern(config.d_ff, config.d_model, type);
  const Tensor tall = pattern(config.d_model, config.d_ff, type);
  GatedFfn expert(wide, wide, tall, config.activation);
  Fingerprint layout;
  for (const std::span<std::byte> part : expert.parts()) layout.add(part);
  const std::vector<std::string> layouts = comm.all_gather(layout.hex());
  for (std::size_t rank = 1; rank < layouts.size(); ++rank)
    if (layouts[rank] != layouts[0])
      throw Error("the CPU of rank " + std::to_string(rank) + " keeps weights in another layout than that of rank 0",
                  "moving experts between ranks", "run on CPUs of one kind, or without --rebalance-every");
}

ExpertMoves move_experts(Weights& weights, const ExpertPlacement& from, const ExpertPlacement& to,
                         const Communicator& comm) {
  ExpertMoves mine;
  for (Layer& layer : weights.layers) {
    if (layer.moe_layer < 0) continue;
    const ExpertMoves moved = move_layer(*layer.experts, from.layer(layer.moe_layer), to.layer(layer.moe_layer), comm);
    mine.experts += moved.experts;
    mine.bytes += moved.bytes;
  }
  return {comm.sum(mine.experts), static_cast<std::uint64_t>(comm.sum(static_cast<std::int64_t>(mine.bytes)))};
}

}  // namespace switchyard
