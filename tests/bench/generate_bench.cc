// How much the cache saves: greedy answers of random prompts, token by token over a KvCache and by running the whole
// sequences again for every token, which must give the same tokens at f32. Turns alternate; medians.
// generate_bench MODEL [prompt tokens] [answer tokens] [sequences] [f32|bf16]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

#include "parallel/mpi_environment.h"
#include "pipeline/model/model.h"

namespace switchyard {
namespace {

using Answers = std::vector<std::vector<std::uint32_t>>;  // prompts and what follows them

/// The last `most` tokens of each sequence.
Batch last_tokens(const Answers& sequences, std::size_t most) {
  Batch batch;
  batch.window_offsets = {0};
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    const std::size_t count = std::min(most, sequences[s].size());
    batch.tokens.insert(batch.tokens.end(), sequences[s].end() - static_cast<std::ptrdiff_t>(count),
                        sequences[s].end());
    batch.window_offsets.push_back(static_cast<std::int32_t>(batch.tokens.size()));
    batch.sequence.push_back(static_cast<std::int32_t>(s));
    batch.start.push_back(static_cast<std::int32_t>(sequences[s].size() - count));
  }
  batch.targets.assign(batch.tokens.size(), -1);
  return batch;
}

/// Seconds for all answers but what the first token of each takes, which both ways have in common.
double answer(Model& model, Answers& sequences, std::size_t tokens, bool cached) {
  const std::vector<std::int64_t> most(sequences.size(), static_cast<std::int64_t>(sequences[0].size() + tokens));
  KvCache cache = model.make_cache(cached ? most : std::vector<std::int64_t>{});
  RoutingObserver ignore;
  std::chrono::steady_clock::time_point start;
  for (std::size_t i = 0; i < tokens; ++i) {
    if (i == 1) start = std::chrono::steady_clock::now();
    const Batch batch = last_tokens(sequences, cached && i > 0 ? 1 : sequences[0].size());
    Tensor x = model.embed(batch);
    model.run_layers(x, batch, 0, model.config().n_layers, ignore, cached ? &cache : nullptr);
    const TokenLosses losses = model.head(x, batch);
    for (std::size_t s = 0; s < sequences.size(); ++s)
      sequences[s].push_back(losses.predicted[static_cast<std::size_t>(batch.window_offsets[s + 1]) - 1]);
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

int run(int argc, char** argv) {
  const auto number = [&](int i, std::size_t fallback) {
    return argc > i ? static_cast<std::size_t>(std::atoll(argv[i])) : fallback;
  };
  if (argc < 2) return std::fprintf(stderr, "generate_bench MODEL [prompt] [answer] [sequences] [f32|bf16]\n"), 2;
  const std::size_t prompt = number(2, 64);
  const std::size_t tokens = number(3, 64);
  const std::size_t n_sequences = number(4, 64);
  const Precision precision = argc > 5 && std::string(argv[5]) == "bf16" ? Precision::bf16 : Precision::f32;
  const Communicator comm = Communicator::world();
  const Checkpoint checkpoint(argv[1]);
  const ModelConfig config = ModelConfig::parse(checkpoint.config_text(), argv[1]);
  const auto placement = ExpertPlacement::contiguous(config.n_moe_layers(), config.n_experts, comm.size());
  const auto transport = make_transport(comm.size() == 1 ? "local" : "mpi", comm);
  Model model(checkpoint, config, placement, comm, *transport, {precision});

  std::mt19937_64 random(static_cast<std::uint64_t>(comm.rank()) + 1);
  Answers prompts(n_sequences);
  for (auto& ids : prompts)
    for (std::size_t t = 0; t < prompt; ++t)
      ids.push_back(static_cast<std::uint32_t>(random() % static_cast<std::uint64_t>(config.vocabulary)));
  std::vector<double> with;
  std::vector<double> without;
  std::size_t differences = 0;
  for (int turn = 0; turn < 3; ++turn) {
    Answers a = prompts;
    Answers b = prompts;
    with.push_back(comm.max(answer(model, a, tokens, true)));
    without.push_back(comm.max(answer(model, b, tokens, false)));
    for (std::size_t s = 0; s < n_sequences; ++s) differences += a[s] == b[s] ? 0 : 1;
  }
  std::ranges::sort(with);
  std::ranges::sort(without);
  const double generated = static_cast<double>(comm.size()) * static_cast<double>(n_sequences * (tokens - 1));
  if (comm.rank() == 0)
    std::printf(
        "%s, %d ranks, prompts of %zu tokens, answers of %zu, %zu sequences a rank: with the cache %.0f tokens/s, "
        "without %.0f: %.1f times; %zu answers differ\n",
        precision == Precision::f32 ? "f32" : "bf16", comm.size(), prompt, tokens, n_sequences, generated / with[1],
        generated / without[1], without[1] / with[1], differences);
  return 0;
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  const switchyard::MpiEnvironment environment(&argc, &argv);
  return switchyard::run(argc, argv);
}
