#include "pipeline/model/model.h"

#include <algorithm>
#include <utility>

#include "parallel/error.h"
#include "pipeline/kernels/attention.h"
#include "pipeline/kernels/cpu.h"
#include "pipeline/kernels/matmul.h"
#include "pipeline/kernels/router.h"
#include "pipeline/kernels/rows.h"
#include "pipeline/kernels/token_loss.h"
#include "pipeline/model/weights.h"

namespace switchyard {

namespace {

DType matmul_type(Precision precision) { return precision == Precision::bf16 ? DType::bf16 : DType::f32; }

/// Notes when each part ended.
class Stopwatch {
 public:
  void start() {
    times_.laps.clear();
    times_.begin = StepTimes::Clock::now();
  }
  void lap(Part part, int moe_layer = -1) { times_.laps.push_back({part, moe_layer, StepTimes::Clock::now()}); }
  StepTimes take() { return std::exchange(times_, {}); }

 private:
  StepTimes times_;
};

/// What one half of a layer adds to the residual stream: at once, or, where a norm comes before, summed apart first.
class Branch {
 public:
  Branch(Tensor& x, std::span<const float> norm) : x_(x), norm_(norm) {
    if (norm.empty()) return;
    apart_ = Tensor(DType::f32, x.rows(), x.cols());
    std::fill_n(apart_.data<float>(), x.rows() * x.cols(), 0.0F);
  }
  /// What to add to.
  Tensor& sum() { return norm_.empty() ? x_ : apart_; }
  /// x += norm(sum), once all is added.
  void join(float epsilon) {
    if (!norm_.empty()) add_rows(x_, rms_norm(apart_, norm_, epsilon, DType::f32));
  }

 private:
  Tensor& x_;
  std::span<const float> norm_;
  Tensor apart_;  // [n, d_model] f32
};

void check_placement(const ModelConfig& config, const ExpertPlacement& placement, int n_ranks) {
  if (config.n_experts == 0) return;
  if (placement.n_layers() != config.n_moe_layers()) {
    throw Error("the placement has " + std::to_string(placement.n_layers()) + " layers, the model " +
                std::to_string(config.n_moe_layers()) + " MoE layers");
  }
  for (int layer = 0; layer < placement.n_layers(); ++layer) {
    const LayerPlacement& experts = placement.layer(layer);
    if (experts.n_experts() != config.n_experts || experts.n_ranks() != n_ranks) {
      throw Error("the placement spreads " + std::to_string(experts.n_experts()) + " experts over " +
                      std::to_string(experts.n_ranks()) + " ranks, but there are " + std::to_string(config.n_experts) +
                      " experts and " + std::to_string(n_ranks) + " ranks",
                  "layer " + std::to_string(layer));
    }
  }
}

void check_batch(const Batch& batch, const ModelConfig& config) {
  const auto n = static_cast<std::int32_t>(batch.tokens.size());
  const auto& offsets = batch.window_offsets;
  const bool ascending = std::ranges::adjacent_find(offsets, std::greater_equal<>()) == offsets.end();
  if (offsets.empty() || offsets.front() != 0 || offsets.back() != n || !ascending) {
    throw Error("a batch's window offsets do not ascend from 0 to its " + std::to_string(n) + " tokens");
  }
  if (batch.targets.size() != batch.tokens.size()) {
    throw Error("a batch has " + std::to_string(n) + " tokens but " + std::to_string(batch.targets.size()) +
                " targets");
  }
  for (std::size_t t = 0; t < batch.tokens.size(); ++t) {
    if (batch.tokens[t] >= static_cast<std::uint32_t>(config.vocabulary) || batch.targets[t] >= config.vocabulary) {
      throw Error("token id " + std::to_string(std::max<std::int64_t>(batch.tokens[t], batch.targets[t])) +
                      " is not in the model's vocabulary of " + std::to_string(config.vocabulary),
                  "token " + std::to_string(t) + " of the batch", "use the tokenizer that belongs to the model");
    }
  }
}

void check_continued(const Batch& batch, const KvCache& cache) {
  const std::size_t n_windows = batch.window_offsets.size() - 1;
  if (batch.sequence.size() != n_windows || batch.start.size() != n_windows)
    throw Error("a batch does not say which sequences its " + std::to_string(n_windows) + " windows continue");
  for (std::size_t w = 0; w < n_windows; ++w) {
    const std::int64_t end = batch.start[w] + batch.window_offsets[w + 1] - batch.window_offsets[w];
    const auto sequence = static_cast<std::size_t>(batch.sequence[w]);
    if (sequence >= cache.n_sequences() || batch.start[w] < 0 || end > cache.most_tokens(sequence))
      throw Error("token " + std::to_string(end) + " of sequence " + std::to_string(batch.sequence[w]) +
                  " does not fit the cache");
  }
}

}  // namespace

struct Model::State {
  ModelConfig config;
  DType type;
  ExpertPlacement placement;
  bool equal_packing_checked = false;
  const Communicator* comm;
  ExpertTransport* transport;
  Weights weights;
  AttentionShape attention_shape;
  RopeTable rope;
  Stopwatch stopwatch;

  void add_attention(Tensor& x, const Layer& layer, const Batch& batch, KvCache* cache);
  Tensor attend(TensorView qkv, const Layer& layer, const Batch& batch, KvCache* cache);
  void add_experts(Tensor& x, const Layer& layer, RoutingObserver& observer);
  void add_dense(Tensor& x, const Layer& layer);
};

Model::Model(const Checkpoint& checkpoint, const ModelConfig& config, const ExpertPlacement& placement,
             const Communicator& comm, ExpertTransport& transport, ModelOptions options) {
  check_placement(config, placement, comm.size());
  if (options.precision == Precision::bf16 && !cpu_has_bf16()) {
    throw Error("this CPU does not multiply bf16 (it has neither AMX nor AVX512-BF16)", "", "use --precision f32");
  }
  const DType type = matmul_type(options.precision);
  state_.reset(new State{.config = config,
                         .type = type,
                         .placement = placement,
                         .comm = &comm,
                         .transport = &transport,
                         .weights = load_weights(checkpoint, config, placement, comm.rank(), type),
                         .attention_shape = {.n_heads = config.n_heads,
                                             .n_kv_heads = config.n_kv_heads,
                                             .head_dim = config.head_dim,
                                             .sliding_window = config.sliding_window,
                                             .scale = config.attention_scale,
                                             .softcap = config.attention_softcap},
                         .rope = RopeTable(config.rope_theta, config.head_dim),
                         .stopwatch = {}});
}

Model::~Model() = default;
Model::Model(Model&&) noexcept = default;

TokenLosses Model::forward(const Batch& batch, RoutingObserver& observer) {
  Tensor x = embed(batch);  // [n, d_model] f32
  run_layers(x, batch, 0, state_->config.n_layers, observer);
  return head(x, batch);
}

Tensor Model::embed(const Batch& batch) {
  check_batch(batch, state_->config);
  state_->stopwatch.start();
  return switchyard::embed(state_->weights.embedding, batch.tokens, state_->config.embedding_scale);
}

void Model::run_layers(Tensor& x, const Batch& batch, int first, int last, RoutingObserver& observer, KvCache* cache) {
  State& s = *state_;
  if (cache != nullptr) check_continued(batch, *cache);
  for (int index = first; index < last; ++index) {
    const Layer& layer = s.weights.layers[static_cast<std::size_t>(index)];
    s.add_attention(x, layer, batch, cache);
    if (layer.router) {
      s.add_experts(x, layer, observer);
    } else {
      s.add_dense(x, layer);
    }
    observer.layer_output(index, x);
    s.stopwatch.lap(Part::observe);
  }
}

TokenLosses Model::head(TensorView x, const Batch& batch) {
  State& s = *state_;
  const Tensor last = rms_norm(x, s.weights.final_norm, s.config.norm_epsilon, s.type);  // [n, d_model]
  TokenLosses losses = token_loss(last, s.weights.head, batch.targets);
  s.stopwatch.lap(Part::head);
  return losses;
}

void Model::State::add_attention(Tensor& x, const Layer& layer, const Batch& batch, KvCache* cache) {
  const Tensor h = rms_norm(x, layer.attention_norm, config.norm_epsilon, type);  // [n, d_model]
  const Tensor qkv = matmul(h, layer.qkv);                                        // [n, qkv columns] f32
  Branch branch(x, layer.attention_post_norm);
  add_matmul(branch.sum(), attend(qkv, layer, batch, cache), layer.output);
  branch.join(config.norm_epsilon);
  stopwatch.lap(Part::attention, layer.moe_layer);
}

Tensor Model::State::attend(TensorView qkv, const Layer& layer, const Batch& batch, KvCache* cache) {
  if (cache != nullptr)
    return continue_attention(qkv, {batch.window_offsets, batch.sequence, batch.start}, attention_shape, rope, type,
                              cache->layer(layer.index));
  const Heads heads = split_heads(qkv, batch.window_offsets, attention_shape, rope, type);  // rotated
  return attention(heads, batch.window_offsets, attention_shape);
}

// x += shared(h) + sum over k of weight * expert(h), the experts spread over ranks. Collective.
void Model::State::add_experts(Tensor& x, const Layer& layer, RoutingObserver& observer) {
  const int moe_layer = layer.moe_layer;
  const Tensor h = rms_norm(x, layer.ffn_norm, config.norm_epsilon, DType::f32);  // [n, d_model]
  observer.ffn_input(moe_layer, h);
  Routing routing = route(h, *layer.router, config.router_rule(), "layer " + std::to_string(layer.index));
  observer.decide(moe_layer, routing);
  const std::vector<float> combine_weights = routing.weights;  // the observer may keep the routing
  stopwatch.lap(Part::router, moe_layer);

  const auto plan = ExchangePlan::make(routing.expert_ids(), placement.layer(moe_layer), *comm);
  Exchange out = transport->start_dispatch(plan, gather_slots(h, plan.pack_order(), config.top_k, type));  // in flight
  stopwatch.lap(Part::dispatch, moe_layer);
  observer.observe(moe_layer, std::move(routing), plan);  // ... while this is recorded
  stopwatch.lap(Part::record, moe_layer);
  Branch branch(x, layer.ffn_post_norm);
  if (layer.shared) {  // ... and every token visits these
    add_gated_ffn(branch.sum(), rms_norm(x, layer.ffn_norm, config.norm_epsilon, type), *layer.shared);
    stopwatch.lap(Part::shared, moe_layer);
  }
  Tensor arrived = std::move(out).finish();
  stopwatch.lap(Part::dispatch_wait, moe_layer);
  const Tensor rows = gather(std::move(arrived), plan.group_order());  // [n_receive, d_model]
  stopwatch.lap(Part::group, moe_layer);

  Tensor done = run_experts(rows, plan.rows_per_expert(), layer.ffns);
  stopwatch.lap(Part::experts, moe_layer);

  Exchange back = transport->start_combine(plan, scatter(std::move(done), plan.group_order()));
  stopwatch.lap(Part::scatter, moe_layer);
  const Tensor returned = std::move(back).finish();  // [n * k, d_model], packed order
  stopwatch.lap(Part::combine_wait, moe_layer);
  observer.expert_outputs(moe_layer, returned, plan);
  add_weighted(branch.sum(), returned, combine_weights, plan.pack_order());
  branch.join(config.norm_epsilon);
  stopwatch.lap(Part::combine, moe_layer);
}

void Model::State::add_dense(Tensor& x, const Layer& layer) {
  const Tensor h = rms_norm(x, layer.ffn_norm, config.norm_epsilon, type);
  Branch branch(x, layer.ffn_post_norm);
  add_gated_ffn(branch.sum(), h, layer.ffns.front());
  branch.join(config.norm_epsilon);
  stopwatch.lap(Part::dense);
}

KvCache Model::make_cache(std::span<const std::int64_t> most_tokens) const {
  return {state_->config, most_tokens, state_->type};
}

std::span<const GatedFfn> Model::local_experts(int moe_layer) const {
  const auto index = static_cast<std::size_t>(state_->config.moe_layers[static_cast<std::size_t>(moe_layer)]);
  return state_->weights.layers[index].ffns;
}

Tensor Model::logits(TensorView hidden) const {
  return matmul(rms_norm(hidden, state_->weights.final_norm, state_->config.norm_epsilon, state_->type),
                state_->weights.head);
}

const ModelConfig& Model::config() const { return state_->config; }

const ExpertPlacement& Model::placement() const { return state_->placement; }

ExpertMoves Model::move_experts(const ExpertPlacement& placement) {
  State& s = *state_;
  check_placement(s.config, placement, s.comm->size());
  if (!std::exchange(s.equal_packing_checked, true)) require_equal_packing(s.config, s.type, *s.comm);
  const ExpertMoves moves = switchyard::move_experts(s.weights, s.config, s.placement, placement, s.type, *s.comm);
  s.placement = placement;
  return moves;
}

StepTimes Model::take_times() { return state_->stopwatch.take(); }

std::uint64_t Model::row_bytes() const {
  return static_cast<std::uint64_t>(state_->config.d_model * size_of(state_->type));
}

ModelMemory Model::memory(const ModelConfig& config, const ExpertPlacement& placement, int rank, Precision precision,
                          std::int64_t batch_tokens) {
  const auto element = static_cast<std::uint64_t>(size_of(matmul_type(precision)));
  const auto n = static_cast<std::uint64_t>(batch_tokens);
  const auto d = static_cast<std::uint64_t>(config.d_model);
  const auto layers = static_cast<std::uint64_t>(config.n_layers);
  const auto vocabulary = static_cast<std::uint64_t>(config.vocabulary);
  const auto head_dim = static_cast<std::uint64_t>(config.head_dim);
  const std::uint64_t width = static_cast<std::uint64_t>(config.n_heads) * head_dim;
  const std::uint64_t qkv = width + 2 * static_cast<std::uint64_t>(config.n_kv_heads) * head_dim;
  const auto moe_layers = static_cast<std::uint64_t>(config.n_moe_layers());
  const auto ffn_bytes = [&](int d_ff) { return 3 * d * static_cast<std::uint64_t>(d_ff) * element; };

  ModelMemory memory;
  memory.replicated_bytes =
      2 * vocabulary * d * element + layers * (qkv + width) * d * element + (2 * layers + 1) * d * 4;
  memory.replicated_bytes += (layers - moe_layers) * ffn_bytes(config.dense_d_ff);
  memory.replicated_bytes +=
      moe_layers * (ffn_bytes(config.shared_d_ff) + static_cast<std::uint64_t>(config.n_experts) * d * 4);
  for (int layer = 0; layer < placement.n_layers(); ++layer) {
    memory.expert_bytes += placement.layer(layer).experts_of(rank).size() * ffn_bytes(config.d_ff);
  }
  const std::uint64_t attention = n * (qkv * 4 + qkv * element + 2 * width * element);
  // Rows sent, arrived, grouped and returned: as many of each when experts are evenly used.
  const std::uint64_t experts = n * d * 4 + 4 * n * static_cast<std::uint64_t>(config.top_k) * d * element +
                                n * static_cast<std::uint64_t>(config.n_experts) * 8;
  memory.activation_bytes = n * d * 4 + std::max(attention, experts);
  return memory;
}

Precision best_precision() { return cpu_has_bf16() ? Precision::bf16 : Precision::f32; }

}  // namespace switchyard
