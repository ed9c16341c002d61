#include "pipeline/model/model.h"

#include <algorithm>
#include <utility>

#include "parallel/device/device_memory.h"
#include "parallel/error.h"
#include "pipeline/kernels/cpu.h"
#include "pipeline/model/backend.h"
#include "pipeline/model/weights.h"

namespace switchyard {

namespace {

DType matmul_type(Precision precision) { return precision == Precision::bf16 ? DType::bf16 : DType::f32; }

std::unique_ptr<Backend> make_backend(const ModelConfig& config, const ModelOptions& options) {
  const DType type = matmul_type(options.precision);
  return options.device == Device::gpu
             ? make_gpu_backend(config, type, options.attention, options.context, options.grouped_matmul)
             : make_cpu_backend(config, type);
}

/// What one half of a layer adds to the residual stream: at once, or, where a norm comes before, summed apart first.
class Branch {
 public:
  Branch(Tensor& x, const Norm* norm, const Backend& backend) : x_(x), norm_(norm), backend_(backend) {
    if (norm != nullptr) apart_ = backend.zeros(x.rows(), x.cols());
  }
  /// What to add to.
  Tensor& sum() { return norm_ == nullptr ? x_ : apart_; }
  /// x += norm(sum), once all is added.
  void join() {
    if (norm_ != nullptr) backend_.add_rows(x_, norm_->apply(apart_, DType::f32));
  }

 private:
  Tensor& x_;
  const Norm* norm_;
  const Backend& backend_;
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
  bool overlap;
  ExpertPlacement placement;
  bool equal_packing_checked = false;
  const Communicator* comm;
  ExpertTransport* transport;
  std::unique_ptr<Backend> backend;
  Weights weights;
  StepWatch watch;

  void add_attention(Tensor& x, const Layer& layer, BatchAttention& attention);
  void add_experts(Tensor& x, const Layer& layer, RoutingObserver& observer);
  void add_dense(Tensor& x, const Layer& layer);
};

Model::Model(const Checkpoint& checkpoint, const ModelConfig& config, const ExpertPlacement& placement,
             const Communicator& comm, ExpertTransport& transport, ModelOptions options,
             const LoadProgress& on_progress) {
  check_placement(config, placement, comm.size());
  std::unique_ptr<Backend> backend = make_backend(config, options);
  const ModelMemory all = memory(config, placement, comm.rank(), options, 0);
  std::function<void(std::uint64_t)> on_bytes;
  if (on_progress) on_bytes = [&](std::uint64_t there) { on_progress(there, all.replicated_bytes + all.expert_bytes); };
  Weights weights = load_weights(checkpoint, config, placement, comm.rank(), *backend, on_bytes);
  StepWatch watch(backend->make_clock());
  state_.reset(new State{.config = config,
                         .type = matmul_type(options.precision),
                         .overlap = options.overlap,
                         .placement = placement,
                         .comm = &comm,
                         .transport = &transport,
                         .backend = std::move(backend),
                         .weights = std::move(weights),
                         .watch = std::move(watch)});
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
  state_->watch.start();
  return state_->weights.embedding->rows(batch.tokens);
}

void Model::run_layers(Tensor& x, const Batch& batch, int first, int last, RoutingObserver& observer, KvCache* cache) {
  State& s = *state_;
  if (cache != nullptr) check_continued(batch, *cache);
  const std::unique_ptr<BatchAttention> attention = s.backend->make_attention(batch, cache);
  for (int index = first; index < last; ++index) {
    const Layer& layer = s.weights.layers[static_cast<std::size_t>(index)];
    s.add_attention(x, layer, *attention);
    if (layer.router) {
      s.add_experts(x, layer, observer);
    } else {
      s.add_dense(x, layer);
    }
    observer.layer_output(index, x);
    s.watch.lap(Part::observe);
  }
}

TokenLosses Model::head(TensorView x, const Batch& batch) {
  State& s = *state_;
  const Tensor last = s.weights.final_norm->apply(x, s.type);  // [n, d_model]
  TokenLosses losses = s.weights.head->losses(last, batch.targets);
  s.watch.lap(Part::head);
  return losses;
}

void Model::State::add_attention(Tensor& x, const Layer& layer, BatchAttention& attention) {
  const Tensor h = layer.attention_norm->apply(x, type);  // [n, d_model]
  const Tensor qkv = layer.qkv->multiply(h);              // [n, qkv columns] f32
  Branch branch(x, layer.attention_post_norm.get(), *backend);
  layer.output->add_product(branch.sum(), attention.attend(qkv, layer.index));
  branch.join();
  watch.lap(Part::attention, layer.moe_layer);
}

// x += shared(h) + sum over k of weight * expert(h), the experts spread over ranks. Where rows fly while experts run,
// it goes in two halves of the tokens; a row's bits are the same. Collective.
void Model::State::add_experts(Tensor& x, const Layer& layer, RoutingObserver& observer) {
  const int moe_layer = layer.moe_layer;
  const Tensor h = layer.ffn_norm->apply(x, DType::f32);  // [n, d_model]
  observer.ffn_input(moe_layer, h);
  const std::string where = "layer " + std::to_string(layer.index);
  Routing routing = layer.router->route(h, where);
  observer.decide(moe_layer, routing);
  watch.lap(Part::router, moe_layer);

  // Rows are packed before the host knows how many go where, so that a GPU has work until it does.
  const int n_parts = overlap && comm->size() > 1 ? 2 : 1;
  BufferSource* const to_send = transport->row_memory();
  const std::unique_ptr<SentSlots> sent =
      backend->send_slots(routing, where, placement.layer(moe_layer), comm->rank(), n_parts, to_send);
  std::vector<Tensor> packed;
  for (int part = 0; part < n_parts; ++part) packed.push_back(sent->pack(part, h));
  const std::vector<ExchangePlan> plans =
      ExchangePlan::make_parts(sent->rows_by_place(), n_parts, placement.layer(moe_layer), *comm);
  std::vector<Exchange> out;
  for (std::size_t p = 0; p < plans.size(); ++p)
    out.push_back(transport->start_dispatch(plans[p], std::move(packed[p])));  // in flight
  std::vector<std::unique_ptr<ArrivedRows>> of_experts;
  for (const ExchangePlan& plan : plans) of_experts.push_back(backend->arrived_rows(plan, to_send));
  watch.lap(Part::dispatch, moe_layer);
  observer.observe(moe_layer, std::move(routing), plans);  // ... while this is recorded
  watch.lap(Part::record, moe_layer);
  Branch branch(x, layer.ffn_post_norm.get(), *backend);
  if (layer.shared) {  // ... and every token visits these
    layer.shared->add_to(branch.sum(), layer.ffn_norm->apply(x, type));
    watch.lap(Part::shared, moe_layer);
  }
  std::vector<Exchange> back;
  for (std::size_t p = 0; p < plans.size(); ++p) {  // the experts of one part run while the other's rows fly
    Tensor arrived = std::move(out[p]).finish();
    watch.lap(Part::dispatch_wait, moe_layer);
    const Tensor rows = of_experts[p]->group(std::move(arrived));  // [n_receive, d_model]
    watch.lap(Part::group, moe_layer);
    Tensor done = layer.experts->run(rows, of_experts[p]->counts());
    watch.lap(Part::experts, moe_layer);
    back.push_back(transport->start_combine(plans[p], of_experts[p]->ungroup(std::move(done))));
    watch.lap(Part::scatter, moe_layer);
  }
  for (int part = 0; part < n_parts; ++part) {
    // [n_send, d_model], packed order
    const Tensor returned = std::move(back[static_cast<std::size_t>(part)]).finish();
    watch.lap(Part::combine_wait, moe_layer);
    observer.expert_outputs(moe_layer, [&] { return sent->norms(part, returned); });
    sent->add_weighted(part, branch.sum(), returned);
    watch.lap(Part::combine, moe_layer);
  }
  branch.join();
  watch.lap(Part::combine, moe_layer);
}

void Model::State::add_dense(Tensor& x, const Layer& layer) {
  const Tensor h = layer.ffn_norm->apply(x, type);
  Branch branch(x, layer.ffn_post_norm.get(), *backend);
  layer.dense->add_to(branch.sum(), h);
  branch.join();
  watch.lap(Part::dense);
}

KvCache Model::make_cache(std::span<const std::int64_t> most_tokens) const {
  return {state_->config, most_tokens, state_->type, state_->backend->device()};
}

void Model::force_experts(
    int moe_layer, TensorView rows,
    const std::function<void(int local_expert, TensorView states, TensorView outputs)>& on_expert) const {
  const auto index = static_cast<std::size_t>(state_->config.moe_layers[static_cast<std::size_t>(moe_layer)]);
  const Experts& experts = *state_->weights.layers[index].experts;
  const bool on_gpu = state_->backend->device() == Device::gpu;
  const Tensor uploaded = on_gpu ? copy_to(Device::gpu, rows) : Tensor();
  const TensorView there = on_gpu ? uploaded : rows;
  const auto to_host = [&](Tensor made) { return on_gpu ? copy_to(Device::cpu, made) : std::move(made); };
  std::vector<std::int32_t> counts(experts.size());
  for (std::size_t e = 0; e < experts.size(); ++e) {
    counts[e] = static_cast<std::int32_t>(rows.rows());
    const Tensor states = to_host(experts.gate_states(there, e));
    on_expert(static_cast<int>(e), states, to_host(experts.run(there, counts)));
    counts[e] = 0;
  }
}

Tensor Model::logits(TensorView x, std::span<const std::int32_t> rows) const {
  const Tensor taken = state_->backend->take_rows(x, rows);
  return state_->weights.head->logits(state_->weights.final_norm->apply(taken, state_->type));
}

const ModelConfig& Model::config() const { return state_->config; }

const ExpertPlacement& Model::placement() const { return state_->placement; }

ExpertMoves Model::move_experts(const ExpertPlacement& placement) {
  State& s = *state_;
  check_placement(s.config, placement, s.comm->size());
  if (s.backend->device() == Device::cpu && !std::exchange(s.equal_packing_checked, true))
    require_equal_packing(s.config, s.type, *s.comm);
  const ExpertMoves moves = switchyard::move_experts(s.weights, s.placement, placement, *s.comm);
  s.placement = placement;
  return moves;
}

void Model::set_overlap(bool overlap) { state_->overlap = overlap; }

StepTimes Model::take_times() { return state_->watch.take(); }

std::uint64_t Model::row_bytes() const {
  return static_cast<std::uint64_t>(state_->config.d_model * size_of(state_->type));
}

ModelMemory Model::memory(const ModelConfig& config, const ExpertPlacement& placement, int rank, ModelOptions options,
                          std::int64_t batch_tokens) {
  const auto element = static_cast<std::uint64_t>(size_of(matmul_type(options.precision)));
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
  const auto slots = n * static_cast<std::uint64_t>(config.top_k);
  const std::uint64_t rows = slots * d * element;
  std::uint64_t experts = n * d * 4 + 4 * rows + n * static_cast<std::uint64_t>(config.n_experts) * 8;
  std::uint64_t others = 0;
  if (options.device == Device::gpu) {
    // A GPU's kernels hold whole what the CPU's make tile by tile: gate and up, unless they meet where they are summed,
    // and a chunk of the logits.
    const auto gated = [&](std::uint64_t n_rows, int d_ff) {
      return n_rows * static_cast<std::uint64_t>(d_ff) * (8 + element);
    };
    experts += options.grouped_matmul == GroupedMatmulKind::cutlass
                   ? slots * static_cast<std::uint64_t>(config.d_ff) * element
                   : gated(slots, config.d_ff);
    experts += gated(n, config.shared_d_ff);
    others = std::max(gated(n, config.dense_d_ff), n * 4 * std::min<std::uint64_t>(vocabulary, Head::kColumns));
    others += n * d * (4 + element);
  }
  // Experts' rows are sent, arrive, are grouped and return: as many of each when experts are evenly used.
  memory.activation_bytes = n * d * 4 + std::max({attention, experts, others});
  if (options.device == Device::gpu) {  // all layers' routing, until a step is recorded
    const auto numbers = static_cast<std::uint64_t>(config.n_experts + 2 * config.top_k + kRoutingFigures);
    memory.activation_bytes += moe_layers * n * numbers * 4;
  }
  memory.transport_bytes = 2 * rows;
  return memory;
}

Precision best_precision() { return cpu_has_bf16() ? Precision::bf16 : Precision::f32; }

}  // namespace switchyard
