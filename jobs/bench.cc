#include <omp.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <memory>
#include <numeric>
#include <random>

#include "io/checkpoint.h"
#include "jobs/command.h"
#include "jobs/format.h"
#include "jobs/machine.h"
#include "jobs/options.h"
#include "jobs/summary.h"
#include "parallel/communicator.h"
#include "parallel/error.h"
#include "parallel/expert_transport.h"
#include "pipeline/model/model.h"
#include "pipeline/model/model_flops.h"
#include "pipeline/recorder.h"

namespace switchyard {
namespace {

using Clock = std::chrono::steady_clock;

/// Windows of random tokens: the forward pass does the same work for any text, save for the experts' load.
Batch random_batch(std::int64_t n_tokens, std::int64_t context, int vocabulary, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  Batch batch;
  batch.window_offsets = {0};
  for (std::int64_t t = 0; t < n_tokens; ++t)
    batch.tokens.push_back(static_cast<std::uint32_t>(random() % static_cast<std::uint64_t>(vocabulary)));
  for (std::int64_t t = 0; t < n_tokens; ++t) {
    const bool ends = (t + 1) % context == 0 || t + 1 == n_tokens;
    batch.targets.push_back(ends ? -1 : static_cast<std::int64_t>(batch.tokens[static_cast<std::size_t>(t) + 1]));
    if (ends) batch.window_offsets.push_back(static_cast<std::int32_t>(t + 1));
  }
  return batch;
}

struct Measured {
  double seconds = 0;  // of the slowest rank
  PhaseSeconds phases{};
};

/// Median over repetitions of one step.
Measured measure(Model& model, Recorder& recorder, const Batch& batch, const StepTokens& step, bool record,
                 int repetitions, const Communicator& comm) {
  std::vector<Measured> all;
  for (int i = 0; i < repetitions; ++i) {
    comm.barrier();
    const auto start = Clock::now();
    struct Ignore : RoutingObserver {
      void observe(int, Routing&&, const ExchangePlan&) override {}
    } ignore;
    const TokenLosses losses = model.forward(batch, record ? static_cast<RoutingObserver&>(recorder) : ignore);
    const StepTimes times = model.take_times();
    const PhaseSeconds phases = record ? recorder.finish_step(batch, step, losses, times) : times.phase_seconds();
    all.push_back({comm.max(std::chrono::duration<double>(Clock::now() - start).count()), phases});
    if (record) {  // not timed: a block has many steps, a segment many blocks
      recorder.finish_block(static_cast<std::uint64_t>(i), {});
      recorder.take();
    }
  }
  std::sort(all.begin(), all.end(), [](const Measured& a, const Measured& b) { return a.seconds < b.seconds; });
  return all[all.size() / 2];
}

}  // namespace

int run_bench(const Arguments& arguments) {
  OptionParser parser("bench", "bench --model DIR [options]",
                      "Measures steps of the forward pass on random tokens, phase by phase: the median of several, "
                      "once with the recorder off and once for each\n"
                      "record level. FLOP: two for each multiply-add of projections, attention over the keys before a "
                      "token, k experts, router and head.",
                      "Examples:\n  switchyard bench --model model --context 256\n  mpirun -n 2 switchyard bench "
                      "--model model --threads 1\n");
  auto add = parser.options().add_options();
  add("model", po::value<std::string>()->required()->value_name("DIR"),
      "Hugging Face folder, e.g. of `switchyard synth`");
  add("context", po::value<std::int64_t>()->default_value(256), "tokens of a window");
  add("batch-tokens", po::value<std::int64_t>()->default_value(4096), "tokens of a rank's step");
  add("repetitions", po::value<int>()->default_value(9), "steps to take the median of");
  add("precision", po::value<std::string>()->value_name("bf16|f32"), "default: bf16 where the CPU has it");
  add("transport", po::value<std::string>()->value_name("local|mpi"), "default: local for one rank, else mpi");
  add("threads", po::value<int>(), "of each rank");
  if (!parser.parse(arguments)) return 0;

  const Communicator comm = Communicator::world();
  const int threads = parser.has("threads") ? parser.get<int>("threads") : default_threads(comm);
  omp_set_num_threads(threads);
  const Checkpoint checkpoint(parser.get<std::string>("model"));
  const ModelConfig config =
      ModelConfig::parse(checkpoint.config_text(), (checkpoint.folder() / "config.json").string());
  const ModelFacts facts = config.facts("bench");
  const Precision precision = !parser.has("precision")                        ? best_precision()
                              : parser.get<std::string>("precision") == "f32" ? Precision::f32
                                                                              : Precision::bf16;
  const ExpertPlacement placement = ExpertPlacement::contiguous(facts.n_moe_layers(), facts.n_experts, comm.size());
  const auto transport = make_transport(parser.has("transport") ? parser.get<std::string>("transport")
                                        : comm.size() == 1      ? "local"
                                                                : "mpi",
                                        comm);
  const auto load_start = Clock::now();
  Model model(checkpoint, config, placement, comm, *transport, {precision});
  const double load_seconds = std::chrono::duration<double>(Clock::now() - load_start).count();

  const auto context = parser.get<std::int64_t>("context");
  const Batch batch = random_batch(parser.get<std::int64_t>("batch-tokens"), context, config.vocabulary,
                                   static_cast<std::uint64_t>(comm.rank()) + 1);
  StepTokens step;
  for (std::int64_t t = 0; t < batch.n_tokens(); ++t) {
    step.document.push_back(0);
    step.group.push_back(0);
    step.position.push_back(static_cast<std::uint32_t>(t % context));
  }
  const auto tokens = static_cast<double>(comm.sum(batch.n_tokens()));
  const int repetitions = std::max(1, parser.get<int>("repetitions"));
  const double flops = ModelFlops(config).mean(context);
  if (comm.rank() == 0)
    std::printf("%s, %d ranks x %d threads, %s, context %lld, %.0f tokens a step, %.1f MFLOP/token, loaded in %.2f s\n",
                cpu_name().c_str(), comm.size(), threads, precision == Precision::f32 ? "f32" : "bf16",
                static_cast<long long>(context), tokens, flops / 1e6, load_seconds);
  constexpr std::array<std::pair<const char*, RecordLevel>, 4> kLevels = {{{"off", RecordLevel::counts},
                                                                           {"counts", RecordLevel::counts},
                                                                           {"tokens", RecordLevel::tokens},
                                                                           {"logits", RecordLevel::logits}}};
  double without = 0;
  for (const auto& [name, level] : kLevels) {
    const bool record = std::string_view(name) != "off";
    Recorder recorder(facts, level, {}, {}, facts.n_moe_layers() > 0 ? &placement : nullptr, model.row_bytes(),
                      ModelFlops(config), comm);
    measure(model, recorder, batch, step, record, 2, comm);  // warm
    const Measured m = measure(model, recorder, batch, step, record, repetitions, comm);
    if (!record) without = m.seconds;
    if (comm.rank() == 0)
      std::printf("record %-7s %8.2f ms  %s tokens/s  %7.1f GFLOP/s  %+5.1f %%   %s\n", name, m.seconds * 1e3,
                  with_commas(static_cast<std::uint64_t>(tokens / m.seconds)).c_str(), flops * tokens / m.seconds / 1e9,
                  100 * (m.seconds / without - 1), phase_shares(m.phases).c_str());
  }
  return 0;
}

}  // namespace switchyard
