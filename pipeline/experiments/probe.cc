#include "pipeline/experiments/probe.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <optional>
#include <span>
#include <utility>

#include "parallel/device/device_memory.h"
#include "pipeline/batching.h"
#include "pipeline/experiments/forced_experts.h"
#include "pipeline/experiments/layer_place.h"
#include "pipeline/kernels/rows.h"

namespace switchyard {
namespace {

/// Forces the experts of a dataset's tokens while they pass.
class DatasetProbe : public RoutingObserver {
 public:
  DatasetProbe(const Model& model, const ExpertPlacement& placement, const ProbeOptions& options,
               const Communicator& comm);

  /// Tokens of the dataset before each token of the batch that comes next, [n].
  void begin_step(std::vector<std::uint64_t> ordinals) { ordinals_ = std::move(ordinals); }
  void ffn_input(int moe_layer, TensorView h) override;
  void decide(int moe_layer, Routing& routing) override;

  /// Collective. Adds the figures to what the dataset's tokens and documents say.
  void finish(ProbedDataset& dataset) const;

 private:
  void keep_choices(std::size_t place, const Routing& routing);

  const Model& model_;
  const ExpertPlacement& placement_;
  const ProbeOptions& options_;
  const Communicator& comm_;
  std::size_t top_k_;
  std::vector<ProbeSums> sums_;              // by layer probed
  std::vector<std::uint64_t> shown_expert_;  // [shown_tokens, layers, k], 0 for tokens of other ranks
  std::vector<double> shown_weight_;
  std::vector<std::uint64_t> ordinals_;  // [n]
  Tensor rows_;                          // [n, d_model] the layer's input, as experts read it
};

DatasetProbe::DatasetProbe(const Model& model, const ExpertPlacement& placement, const ProbeOptions& options,
                           const Communicator& comm)
    : model_(model),
      placement_(placement),
      options_(options),
      comm_(comm),
      top_k_(static_cast<std::size_t>(model.config().top_k)),
      shown_expert_(options.shown_tokens * options.moe_layers.size() * top_k_),
      shown_weight_(shown_expert_.size()) {
  for (const int layer : options.moe_layers)
    sums_.emplace_back(placement.layer(layer), comm.rank(), model.config().d_ff,
                       "layer " + std::to_string(model.config().moe_layers[static_cast<std::size_t>(layer)]));
}

void DatasetProbe::ffn_input(int moe_layer, TensorView h) {
  if (!place_of_layer(options_.moe_layers, moe_layer)) return;
  std::vector<std::int32_t> in_order(static_cast<std::size_t>(h.rows()));
  std::iota(in_order.begin(), in_order.end(), 0);
  const Tensor downloaded = h.device() == Device::gpu ? copy_to(Device::cpu, h) : Tensor();
  rows_ = gather_slots(h.device() == Device::gpu ? downloaded : h, in_order, 1,
                       options_.precision == Precision::f32 ? DType::f32 : DType::bf16);
}

void DatasetProbe::decide(int moe_layer, Routing& routing) {
  const std::optional<std::size_t> place = place_of_layer(options_.moe_layers, moe_layer);
  if (!place) return;
  bring_to_host(routing, "layer " + std::to_string(model_.config().moe_layers[static_cast<std::size_t>(moe_layer)]));
  keep_choices(*place, routing);
  ProbeSums& sums = sums_[*place];
  const ForcedExpertsSink sink = {
      .states = [&](int expert, TensorView states) { sums.add_states(expert, states); },
      .outputs =
          [&](std::int64_t first, const ExpertOutputs& outputs) {
            sums.add_outputs(outputs, routing.probabilities.rows(first, first + outputs.n_tokens()));
          },
  };
  run_forced_experts(model_, placement_.layer(moe_layer), moe_layer, rows_, sink, comm_);
}

void DatasetProbe::keep_choices(std::size_t place, const Routing& routing) {
  for (std::size_t t = 0; t < ordinals_.size(); ++t) {
    if (ordinals_[t] >= options_.shown_tokens) continue;
    const std::size_t to = (ordinals_[t] * options_.moe_layers.size() + place) * top_k_;
    for (std::size_t j = 0; j < top_k_; ++j) {
      shown_expert_[to + j] = static_cast<std::uint64_t>(routing.ids[t * top_k_ + j]);
      shown_weight_[to + j] = static_cast<double>(routing.weights[t * top_k_ + j]);
    }
  }
}

void DatasetProbe::finish(ProbedDataset& dataset) const {
  for (const ProbeSums& sums : sums_) dataset.layers.push_back(sums.finish(dataset.tokens, comm_));
  const std::size_t kept = dataset.shown.size() * options_.moe_layers.size() * top_k_;
  dataset.shown_expert.assign(shown_expert_.begin(), shown_expert_.begin() + static_cast<std::ptrdiff_t>(kept));
  dataset.shown_weight.assign(shown_weight_.begin(), shown_weight_.begin() + static_cast<std::ptrdiff_t>(kept));
  comm_.sum_to_root(std::span<std::uint64_t>(dataset.shown_expert));
  comm_.sum_to_root(std::span<double>(dataset.shown_weight));
}

/// Tokens of the corpus before each token of windows [first, last).
std::vector<std::uint64_t> ordinals_of(const Block& block, std::size_t first, std::size_t last) {
  std::vector<std::uint64_t> ordinals;
  for (std::size_t w = first; w < last; ++w)
    for (std::int64_t p = 0; p < block.windows[w].count; ++p)
      ordinals.push_back(block.corpus_first_token + block.windows[w].first + static_cast<std::uint64_t>(p));
  return ordinals;
}

/// Collective. All tokens of a block through the model, `on_step` with the share done after each step.
void run_block(const Block& block, Model& model, DatasetProbe& probe, const ProbeOptions& options,
               const std::function<void(double)>& on_step, const Communicator& comm) {
  const std::vector<std::size_t> shares = window_shares(block.windows, comm.size());
  const auto rank = static_cast<std::size_t>(comm.rank());
  const auto mine = pack_batches(block.windows, shares[rank], shares[rank + 1], options.batch_tokens);
  const auto n_steps = static_cast<std::size_t>(comm.max(static_cast<std::int64_t>(mine.size())));
  const int layers = model.config().moe_layers[static_cast<std::size_t>(options.moe_layers.back())] + 1;
  for (std::size_t s = 0; s < n_steps; ++s) {
    const auto [first, last] = s < mine.size() ? mine[s] : std::pair<std::size_t, std::size_t>{0, 0};
    const Batch batch = make_batch(block, first, last);
    probe.begin_step(ordinals_of(block, first, last));
    Tensor x = model.embed(batch);
    model.run_layers(x, batch, 0, layers, probe);
    if (comm.rank() == 0) on_step(static_cast<double>(s + 1) / static_cast<double>(n_steps));
  }
}

}  // namespace

std::vector<ProbedDataset> probe_experts(BlockSource& source, std::size_t n_datasets, Model& model,
                                         const ExpertPlacement& placement, const ProbeOptions& options,
                                         const std::function<void(const RouteProgress&)>& on_step,
                                         const Communicator& comm) {
  std::vector<ProbedDataset> datasets(n_datasets);
  std::optional<DatasetProbe> probe;
  std::vector<std::string> documents;  // ids of all corpora, rank 0
  std::uint64_t done = 0;
  while (const std::optional<Block> block = source.next()) {
    ProbedDataset& dataset = datasets[block->corpus];
    if (!probe) probe.emplace(model, placement, options, comm);
    for (const DocumentRow& document : block->documents) documents.push_back(document.id);
    const auto report = [&](double share) {
      const auto of_block = static_cast<std::uint64_t>(share * static_cast<double>(block->tokens.size()));
      on_step({block->corpus, block->corpus_first_token + of_block,
               block->after.corpus == block->corpus ? block->after.chunk : CorpusCursor{}, done + of_block,
               std::numeric_limits<double>::quiet_NaN()});
    };
    run_block(*block, model, *probe, options, report, comm);
    for (const Window& window : block->windows)
      for (std::int64_t p = 0; p < window.count && dataset.shown.size() < options.shown_tokens; ++p)
        dataset.shown.push_back({block->tokens[window.first + static_cast<std::uint64_t>(p)],
                                 static_cast<std::uint32_t>(p),
                                 comm.rank() == 0 ? documents[window.document] : std::string()});
    done += block->tokens.size();
    dataset.tokens += block->tokens.size();
    dataset.documents += block->documents.size();
    if (!block->last_of_corpus) continue;
    probe->finish(dataset);
    probe.reset();
  }
  return datasets;
}

}  // namespace switchyard
