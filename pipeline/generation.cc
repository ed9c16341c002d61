#include "pipeline/generation.h"

#include <algorithm>
#include <utility>

#include "parallel/stop_signal.h"
#include "pipeline/batching.h"
#include "pipeline/sampling.h"

namespace switchyard {
namespace {

constexpr std::size_t kRowsOfLogits = 64;  // held at once when tokens are drawn

/// Of a rank's documents and their answers together.
std::int64_t most_tokens(const GenerationOptions& options, std::int64_t batch_tokens) {
  return batch_tokens + options.sequences * options.tokens;
}

}  // namespace

struct Generator::Sequence {
  std::uint32_t document = 0;
  std::uint16_t group = 0;
  std::int64_t prompt = 0;  // tokens
  std::vector<std::uint32_t> answer;
  std::vector<HeldToken> tokens;  // that were run
};

struct Generator::Step {
  Batch batch;
  StepTokens tokens;
  std::vector<std::size_t> open;  // windows whose sequence gets another token
};

Generator::Generator(Model& model, Recorder& recorder, const GenerationOptions& options, const Communicator& comm)
    : model_(model), recorder_(recorder), options_(options), comm_(comm) {}

std::optional<std::vector<std::vector<std::uint32_t>>> Generator::answer(
    const Block& block, std::size_t first, std::size_t last,
    const std::function<void(double share, std::uint64_t generated)>& on_step) {
  std::vector<Sequence> sequences;
  Step step = first_step(block, first, last, sequences);
  std::vector<std::int64_t> most;
  for (const Sequence& sequence : sequences) most.push_back(sequence.prompt + options_.tokens);
  KvCache cache = model_.make_cache(most);

  std::uint64_t generated = 0;
  for (std::size_t number = 0;; ++number) {
    run(step, number, sequences, cache);
    const auto added = static_cast<std::uint64_t>(comm_.sum(static_cast<std::int64_t>(step.open.size())));
    generated += added;
    on_step(static_cast<double>(number + 1) / static_cast<double>(options_.tokens + 1), generated);
    if (added == 0) break;
    if (comm_.any(stop_signal() != 0)) return std::nullopt;
    step = next_step(step, sequences);
  }

  std::vector<HeldToken> order;
  std::vector<std::vector<std::uint32_t>> answers;
  for (Sequence& sequence : sequences) {
    order.insert(order.end(), sequence.tokens.begin(), sequence.tokens.end());
    answers.push_back(std::move(sequence.answer));
  }
  seconds_[static_cast<std::size_t>(Phase::record)] += recorder_.record_held(order);
  return answers;
}

Generator::Step Generator::first_step(const Block& block, std::size_t first, std::size_t last,
                                      std::vector<Sequence>& sequences) const {
  Step step{.batch = make_batch(block, first, last), .tokens = make_step_tokens(block, first, last), .open = {}};
  step.tokens.phase.resize(step.tokens.position.size(), static_cast<std::uint8_t>(TokenPhase::prefill));
  for (std::size_t w = first; w < last; ++w) {
    const Window& window = block.windows[w];
    step.open.push_back(sequences.size());
    step.batch.sequence.push_back(static_cast<std::int32_t>(sequences.size()));
    step.batch.start.push_back(0);
    sequences.push_back({static_cast<std::uint32_t>(window.document), window.group, window.count, {}, {}});
  }
  return step;
}

/// Runs a step, adds a token to the open windows' sequences, and hands what was seen to the recorder.
void Generator::run(Step& step, std::size_t number, std::vector<Sequence>& sequences, KvCache& cache) {
  Batch& batch = step.batch;
  Tensor x = model_.embed(batch);
  model_.run_layers(x, batch, 0, model_.config().n_layers, recorder_, &cache);
  choose(x, batch, step.open, sequences);
  TokenLosses losses = model_.head(x, batch);
  for (const std::size_t w : step.open) {
    const auto t = static_cast<std::size_t>(batch.window_offsets[w + 1]) - 1;
    if (batch.targets[t] == kPredictedTarget) batch.targets[t] = losses.predicted[t];
    sequences[static_cast<std::size_t>(batch.sequence[w])].answer.push_back(
        static_cast<std::uint32_t>(batch.targets[t]));
  }
  for (std::size_t w = 0; w < batch.sequence.size(); ++w)
    for (std::int32_t t = batch.window_offsets[w]; t < batch.window_offsets[w + 1]; ++t)
      sequences[static_cast<std::size_t>(batch.sequence[w])].tokens.push_back({number, static_cast<std::size_t>(t)});
  const PhaseSeconds seconds =
      recorder_.hold_step(batch, std::move(step.tokens), std::move(losses), model_.take_times());
  std::transform(seconds.begin(), seconds.end(), seconds_.begin(), seconds_.begin(), std::plus<>());
}

/// Sets the targets of the open windows' last tokens: what is drawn for them, or what the head will hold most likely.
void Generator::choose(TensorView x, Batch& batch, std::span<const std::size_t> open,
                       const std::vector<Sequence>& sequences) const {
  const auto last_of = [&](std::size_t w) { return static_cast<std::int64_t>(batch.window_offsets[w + 1]) - 1; };
  if (options_.temperature == 0) {
    for (const std::size_t w : open) batch.targets[static_cast<std::size_t>(last_of(w))] = kPredictedTarget;
    return;
  }
  for (std::size_t begin = 0; begin < open.size(); begin += kRowsOfLogits) {
    const std::span<const std::size_t> part = open.subspan(begin, std::min(kRowsOfLogits, open.size() - begin));
    std::vector<std::int32_t> rows;
    for (const std::size_t w : part) rows.push_back(static_cast<std::int32_t>(last_of(w)));
    const Tensor logits = model_.logits(x, rows);
#pragma omp parallel for schedule(dynamic, 1)
    for (std::size_t i = 0; i < part.size(); ++i) {
      const Sequence& sequence = sequences[static_cast<std::size_t>(batch.sequence[part[i]])];
      batch.targets[static_cast<std::size_t>(last_of(part[i]))] =
          sample_token(logits.view().row<float>(static_cast<std::int64_t>(i)), options_.temperature,
                       answer_number(options_.seed, sequence.document, sequence.answer.size()));
    }
  }
}

/// The tokens that the step has added, each the next of its sequence.
Generator::Step Generator::next_step(const Step& step, const std::vector<Sequence>& sequences) const {
  Step next;
  next.batch.window_offsets = {0};
  for (const std::size_t w : step.open) {
    const std::int32_t number = step.batch.sequence[w];
    const Sequence& sequence = sequences[static_cast<std::size_t>(number)];
    const auto position =
        static_cast<std::int32_t>(sequence.prompt) + static_cast<std::int32_t>(sequence.answer.size()) - 1;
    const std::uint32_t token = sequence.answer.back();
    const bool ended = std::ranges::find(options_.end_tokens, token) != options_.end_tokens.end() ||
                       static_cast<std::int64_t>(sequence.answer.size()) == options_.tokens;
    if (!ended) next.open.push_back(next.batch.sequence.size());
    next.batch.tokens.push_back(token);
    next.batch.targets.push_back(-1);
    next.batch.window_offsets.push_back(static_cast<std::int32_t>(next.batch.tokens.size()));
    next.batch.sequence.push_back(number);
    next.batch.start.push_back(position);
    next.tokens.document.push_back(sequence.document);
    next.tokens.group.push_back(sequence.group);
    next.tokens.position.push_back(static_cast<std::uint32_t>(position));
    next.tokens.phase.push_back(static_cast<std::uint8_t>(TokenPhase::decode));
  }
  return next;
}

std::uint64_t Generator::cache_bytes(const ModelConfig& config, const GenerationOptions& options,
                                     std::int64_t batch_tokens, Precision precision) {
  if (options.tokens == 0) return 0;
  return KvCache::bytes(config, options.sequences, most_tokens(options, batch_tokens),
                        precision == Precision::f32 ? DType::f32 : DType::bf16);
}

std::uint64_t Generator::bytes(const ModelConfig& config, const GenerationOptions& options, std::int64_t batch_tokens,
                               Precision precision) {
  // As it came and in the order of documents: logits and probabilities; ids, weights and experts; four figures.
  const std::int64_t held = 2 * (8 * config.n_experts + 10 * config.top_k + 16);
  return cache_bytes(config, options, batch_tokens, precision) +
         static_cast<std::uint64_t>(most_tokens(options, batch_tokens) * config.n_moe_layers() * held);
}

PhaseSeconds Generator::take_seconds() { return std::exchange(seconds_, {}); }

}  // namespace switchyard
