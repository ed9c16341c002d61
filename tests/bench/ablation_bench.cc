// What a sweep over all experts of one layer costs in plain forward passes: ablation_bench MODEL [TOKENS [CONTEXT]].
// Both sides take turns, so that a busy machine slows both.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

#include "parallel/mpi_environment.h"
#include "pipeline/experiments/ablation.h"
#include "pipeline/model/model_flops.h"

using namespace switchyard;

namespace {

constexpr int kTurns = 5;

Batch random_batch(std::int64_t tokens, std::int64_t context, int vocabulary) {
  std::mt19937 random(1);
  Batch batch;
  batch.window_offsets = {0};
  for (std::int64_t t = 0; t < tokens; ++t) {
    batch.tokens.push_back(static_cast<std::uint32_t>(random() % static_cast<unsigned>(vocabulary)));
    batch.targets.push_back(static_cast<std::int64_t>(random() % static_cast<unsigned>(vocabulary)));
    if ((t + 1) % context == 0 || t + 1 == tokens) batch.window_offsets.push_back(static_cast<std::int32_t>(t + 1));
  }
  return batch;
}

double seconds_of(const auto& action) {
  const auto start = std::chrono::steady_clock::now();
  action();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  const MpiEnvironment environment(&argc, &argv);
  if (argc < 2) {
    std::puts("usage: ablation_bench MODEL [TOKENS [CONTEXT]]");
    return 2;
  }
  const Communicator comm = Communicator::self();
  const Checkpoint checkpoint(argv[1]);
  const ModelConfig config = ModelConfig::parse(checkpoint.config_text(), argv[1]);
  const auto placement = ExpertPlacement::contiguous(config.n_moe_layers(), config.n_experts, 1);
  const auto transport = make_transport("local", comm);
  Model model(checkpoint, config, placement, comm, *transport, {best_precision()});
  const std::int64_t context = argc > 3 ? std::atol(argv[3]) : 256;
  const Batch batch = random_batch(argc > 2 ? std::atol(argv[2]) : 4096, context, config.vocabulary);
  RoutingObserver ignore;
  std::vector<int> experts(static_cast<std::size_t>(config.n_experts));
  std::iota(experts.begin(), experts.end(), 0);
  const auto go_on = [] { return true; };
  model.forward(batch, ignore);
  // The head runs for every expert too: of a forward pass' operations it takes this share.
  const double head = 2.0 * config.d_model * config.vocabulary / ModelFlops(config).mean(context);
  std::printf("layer  sweep / forward   1 + E (L - l) / L   with the head, %.0f %% of a forward pass\n", 100 * head);
  for (int l = 0; l < config.n_moe_layers(); ++l) {
    AblationSweep sweep(model, {.mode = AblationMode::zero, .layers = {l}, .experts = experts});
    std::vector<double> ratios;
    for (int turn = 0; turn < kTurns; ++turn) {
      const double before = seconds_of([&] { model.forward(batch, ignore); });
      const double swept = seconds_of([&] {
        WindowSums sums;
        sweep.step(batch, sums, go_on);
      });
      const double after = seconds_of([&] { model.forward(batch, ignore); });
      ratios.push_back(2 * swept / (before + after));
    }
    const int layer = config.moe_layers[static_cast<std::size_t>(l)];
    const double above = static_cast<double>(config.n_layers - layer) / config.n_layers;
    std::printf("%5d  %15.2f   %17.2f   %13.2f\n", layer, median(ratios), 1 + config.n_experts * above,
                1 + config.n_experts * ((1 - head) * above + head));
  }
  return 0;
}
