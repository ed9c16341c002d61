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
#include "jobs/device.h"
#include "jobs/format.h"
#include "jobs/load_model.h"
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

Measured median(std::vector<Measured> all) {
  std::sort(all.begin(), all.end(), [](const Measured& a, const Measured& b) { return a.seconds < b.seconds; });
  return all[all.size() / 2];
}
double median(std::vector<double> all) {
  std::sort(all.begin(), all.end());
  return all[all.size() / 2];
}

/// A way to run the step, and what it took each time.
struct Recording {
  const char* name;
  std::unique_ptr<Recorder> recorder;  // none: the pass alone
  std::vector<Measured> steps = {};
};

/// One step, recorded or not.
Measured run_step(Model& model, Recorder* recorder, const Batch& batch, const StepTokens& step, StepTimes& times,
                  const Communicator& comm) {
  RoutingObserver ignore;
  comm.barrier();
  const auto start = Clock::now();
  const TokenLosses losses = model.forward(batch, recorder != nullptr ? *recorder : ignore);
  times = model.take_times();
  const PhaseSeconds phases =
      recorder != nullptr ? recorder->finish_step(batch, step, losses, times) : times.phase_seconds();
  return {comm.max(std::chrono::duration<double>(Clock::now() - start).count()), phases};
}

/// One step as it is among many: on a GPU the step before is recorded meanwhile, and one that has rested is faster for
/// a while than one at work.
Measured measure(Model& model, Device device, Recorder* recorder, const Batch& batch, const StepTokens& step,
                 StepTimes& times, const Communicator& comm) {
  constexpr int kAhead = 4;
  if (device == Device::gpu)
    for (int i = 0; i < kAhead; ++i) run_step(model, recorder, batch, step, times, comm);
  const Measured measured = run_step(model, recorder, batch, step, times, comm);
  if (recorder != nullptr) {  // not timed: a block has many steps, a segment many blocks
    recorder->finish_block(0, {});
    recorder->take();
  }
  return measured;
}

/// Seconds that it takes to note a step's times: the clock read as often as in `times`, and what is made of it.
double seconds_of_timing(const StepTimes& times, int n_moe_layers) {
  constexpr int kRounds = 1000;
  double kept = 0;
  const auto start = Clock::now();
  for (int i = 0; i < kRounds; ++i) {
    StepTimes again;
    again.begin = Clock::now();
    for (const StepTimes::Lap& lap : times.laps) again.laps.push_back({lap.part, lap.moe_layer, Clock::now()});
    const std::vector<float> ends = again.layer_ends(n_moe_layers);
    kept += again.phase_seconds()[0] + (ends.empty() ? 0 : static_cast<double>(ends.back()));
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count() / kRounds;
  return kept >= 0 ? seconds : 0;  // what was kept is used, so that none of it can be left out
}

/// Collective: rank 0 measures on its GPU, while the others wait and compute nothing on it.
void print_grouped_matmuls(const ModelConfig& config, const Communicator& comm, std::int64_t n_tokens,
                           int repetitions) {
  const ExpertShape experts = config.experts_of_rank(comm.size());
  const std::int64_t rows = n_tokens * config.top_k;  // of each rank, spread evenly
  std::vector<GroupedMatmulSpeed> speeds;
  if (comm.rank() == 0) speeds = measure_grouped_matmuls(experts, rows, repetitions);
  comm.barrier();
  for (const GroupedMatmulSpeed& speed : speeds) {
    constexpr double kFlopsPerWeight = 2 * 3;  // a multiply-add in each of gate, up and down
    const double flops = kFlopsPerWeight * static_cast<double>(rows * experts.d_model * experts.d_ff);
    std::printf("experts in bf16 by %-13s %8.3f ms  %7.2f TFLOP/s  %5.2f x cublaslt\n", name_of(speed.kind),
                speed.seconds * 1e3, flops / speed.seconds / 1e12, speeds.front().seconds / speed.seconds);
  }
  if (comm.rank() != 0) return;
  for (const GroupedMatmulKind kind : kGroupedMatmulKinds)
    if (const auto reason = why_not(kind, experts))
      std::printf("experts in bf16 by %-13s cannot be measured: %s\n", name_of(kind), reason->c_str());
}

/// Collective: steps without a recorder, whole and in halves, in turn.
void print_overlap(Model& model, const Batch& batch, const StepTokens& step, bool chosen, int repetitions,
                   const Communicator& comm) {
  std::array<std::vector<double>, 2> seconds;  // whole, in halves
  StepTimes times;
  constexpr int kWarm = 1;
  for (int i = 0; i < kWarm + repetitions; ++i)
    for (const bool overlap : {false, true}) {
      model.set_overlap(overlap);
      const double took = run_step(model, nullptr, batch, step, times, comm).seconds;
      if (i >= kWarm) seconds[overlap ? 1 : 0].push_back(took);
    }
  model.set_overlap(chosen);
  std::vector<double> ratios;
  for (std::size_t i = 0; i < seconds[0].size(); ++i) ratios.push_back(seconds[1][i] / seconds[0][i]);
  if (comm.rank() == 0)
    std::printf("exchange of whole batches %.2f ms, of halves beside experts (--overlap on) %.2f ms, %.3f of it\n",
                1e3 * median(seconds[0]), 1e3 * median(seconds[1]), median(ratios));
}

}  // namespace

int run_bench(const Arguments& arguments) {
  OptionParser parser(
      "bench", "bench --model DIR [options]",
      "Measures steps of the forward pass on random tokens, phase by phase: medians of several, with the "
      "recorder off and at each record level in turn;\n"
      "per cents are medians of pairs. FLOP: two for each multiply-add of projections, attention over the keys before "
      "a "
      "token, k experts, router and head.",
      "Examples:\n  switchyard bench --model model --context 256\n  mpirun -n 2 switchyard bench "
      "--model model --threads 1\n");
  auto add = parser.options().add_options();
  add("model", po::value<std::string>()->required()->value_name("DIR"),
      "Hugging Face folder, e.g. of `switchyard synth`");
  add("context", po::value<std::int64_t>()->default_value(256), "tokens of a window");
  add("batch-tokens", po::value<std::int64_t>()->default_value(4096), "tokens of a rank's step");
  add("repetitions", po::value<int>()->default_value(9), "steps to take the median of");
  add_device_options(parser);
  add("threads", po::value<int>(), "of each rank");
  if (!parser.parse(arguments)) return 0;

  const Communicator comm = Communicator::world();
  const int threads = parser.has("threads") ? parser.get<int>("threads") : default_threads(comm);
  omp_set_num_threads(threads);
  const Checkpoint checkpoint(parser.get<std::string>("model"));
  const ModelConfig config =
      ModelConfig::parse(checkpoint.config_text(), (checkpoint.folder() / "config.json").string());
  const ModelFacts facts = config.facts("bench");
  const auto context = parser.get<std::int64_t>("context");
  ComputeDevice device = choose_device(parser, comm);
  choose_attention(device, parser, config.attention_shape(), context, comm);
  choose_grouped_matmul(device, parser, config.experts_of_rank(comm.size()), comm);
  const ModelOptions options = device.model_options(context);
  const ExpertPlacement placement = ExpertPlacement::contiguous(facts.n_moe_layers(), facts.n_experts, comm.size());
  const ModelMemory memory =
      Model::memory(config, placement, comm.rank(), options, parser.get<std::int64_t>("batch-tokens"));
  const TokenTableChoice tables = TokenTableChoice::within(kExactTokenCells, shape_of(facts));
  constexpr std::uint64_t kRecorders = 3;  // one for each level
  if (device.on_gpu())
    plan_gpu_memory(device, memory, 0,
                    kRecorders * Recorder::gpu_bytes(facts, tables, parser.get<std::int64_t>("batch-tokens"), false),
                    false, comm);
  const auto transport = make_transport(device.transport, comm);
  LoadedModel loaded = load_model(checkpoint, config, placement, options, comm, *transport, false);
  Model& model = loaded.model;

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
    std::printf("%s, %d ranks x %d threads, %s, context %lld, %.0f tokens a step, %.1f MFLOP/token, %s\n",
                device.description().c_str(), comm.size(), threads, device.precision == Precision::f32 ? "f32" : "bf16",
                static_cast<long long>(context), tokens, flops / 1e6, loaded.how_fast.c_str());
  const auto make_recorder = [&](RecordLevel level) {
    return std::make_unique<Recorder>(facts, level, tables, std::vector<std::uint8_t>{},
                                      facts.n_moe_layers() > 0 ? &model.placement() : nullptr, model.row_bytes(),
                                      ModelFlops(config), comm);
  };
  std::vector<Recording> recordings;
  recordings.push_back({"off", nullptr});
  recordings.push_back({"counts", make_recorder(RecordLevel::counts)});
  recordings.push_back({"tokens", make_recorder(RecordLevel::tokens)});
  recordings.push_back({"logits", make_recorder(RecordLevel::logits)});
  StepTimes times;
  constexpr int kWarm = 2;
  for (int i = 0; i < kWarm + repetitions; ++i)
    for (Recording& recording : recordings) {  // in turn: the machine's drift is the same for all
      const Measured measured = measure(model, options.device, recording.recorder.get(), batch, step, times, comm);
      if (i >= kWarm) recording.steps.push_back(measured);
    }
  for (const Recording& recording : recordings) {
    const Measured m = median(recording.steps);
    std::vector<double> more;  // than the step beside it that was not recorded
    for (std::size_t i = 0; i < recording.steps.size(); ++i)
      more.push_back(recording.steps[i].seconds / recordings.front().steps[i].seconds - 1);
    if (comm.rank() == 0)
      std::printf("record %-7s %8.2f ms  %s tokens/s  %7.1f GFLOP/s  %+5.1f %%   %s\n", recording.name, m.seconds * 1e3,
                  with_commas(static_cast<std::uint64_t>(tokens / m.seconds)).c_str(), flops * tokens / m.seconds / 1e9,
                  100 * median(more), phase_shares(m.phases).c_str());
    if (comm.rank() == 0 && recording.recorder == nullptr)
      std::printf("feed-forward blocks of rank 0: %.1f GFLOP/s, if slots are spread evenly\n",
                  ModelFlops(config).feed_forward * static_cast<double>(batch.n_tokens()) /
                      m.phases[static_cast<std::size_t>(Phase::experts)] / 1e9);
  }
  const double timing = seconds_of_timing(times, facts.n_moe_layers());
  if (comm.rank() == 0)
    std::printf("times of ranks, layers and parts: %zu readings of the clock, %.1f us a step, %.4f %% of it\n",
                times.laps.size() + 1, timing * 1e6, 100 * timing / median(recordings.front().steps).seconds);
  if (comm.size() > 1 && config.n_experts > 0) print_overlap(model, batch, step, device.overlap, repetitions, comm);
  if (device.on_gpu() && config.n_experts > 0) print_grouped_matmuls(config, comm, batch.n_tokens(), repetitions);
  return 0;
}

}  // namespace switchyard
