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

/// One layer's experts on this rank, before and after.
class LayerMove {
 public:
  LayerMove(std::vector<GatedFfn>& ffns, const LayerPlacement& from, const LayerPlacement& to, int rank)
      : ffns_(ffns), from_(from), to_(to), rank_(rank) {}

  /// Every rank lists the same moves in the same order, so that messages need no names.
  ExpertMoves run(const ModelConfig& config, DType type, const Communicator& comm) {
    ExpertMoves moves;
    for (int copy = 0; copy < to_.n_physical(); ++copy) {
      const int expert = to_.logical_of(copy);
      const int target = to_.rank_of(copy);
      const auto holders = from_.ranks_of(expert);
      if (std::ranges::count(holders, target) > 0) continue;
      const int source = holders[static_cast<std::size_t>(copy) % holders.size()];
      if (target == rank_) {
        GatedFfn& room =
            arrived_.emplace(expert, GatedFfn(config.d_model, config.d_ff, type, config.activation)).first->second;
        for (const std::span<std::byte> part : room.parts()) {
          incoming_.push_back({source, part});
          moves.bytes += part.size();
        }
        ++moves.experts;
      } else if (source == rank_) {
        for (const std::span<std::byte> part : ffns_[local_before(expert)].parts()) outgoing_.push_back({target, part});
      }
    }
    comm.exchange(outgoing_, incoming_);
    assemble();
    return moves;
  }

 private:
  std::size_t local_before(int expert) const {
    const auto mine = from_.experts_of(rank_);
    return static_cast<std::size_t>(std::ranges::lower_bound(mine, expert) - mine.begin());
  }

  void assemble() {
    std::vector<GatedFfn> after;
    for (const int expert : to_.experts_of(rank_)) {
      const auto found = arrived_.find(expert);
      after.push_back(std::move(found == arrived_.end() ? ffns_[local_before(expert)] : found->second));
    }
    ffns_ = std::move(after);
  }

  std::vector<GatedFfn>& ffns_;
  const LayerPlacement& from_;
  const LayerPlacement& to_;
  int rank_;
  std::map<int, GatedFfn> arrived_;  // by expert
  std::vector<Communicator::Outgoing> outgoing_;
  std::vector<Communicator::Incoming> incoming_;
};

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

ExpertMoves move_experts(Weights& weights, const ModelConfig& config, const ExpertPlacement& from,
                         const ExpertPlacement& to, DType type, const Communicator& comm) {
  ExpertMoves mine;
  for (Layer& layer : weights.layers) {
    if (layer.moe_layer < 0) continue;
    const ExpertMoves moved =
        LayerMove(layer.experts->on_cpu(), from.layer(layer.moe_layer), to.layer(layer.moe_layer), comm.rank())
            .run(config, type, comm);
    mine.experts += moved.experts;
    mine.bytes += moved.bytes;
  }
  return {comm.sum(mine.experts), static_cast<std::uint64_t>(comm.sum(static_cast<std::int64_t>(mine.bytes)))};
}

}  // namespace switchyard
