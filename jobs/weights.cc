#include <omp.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include "io/checkpoint.h"
#include "jobs/command.h"
#include "jobs/format.h"
#include "jobs/machine.h"
#include "jobs/options.h"
#include "jobs/stats_output.h"
#include "jobs/version.h"
#include "parallel/communicator.h"
#include "parallel/error.h"
#include "pipeline/analysis/experiment.h"
#include "pipeline/experiments/weight_similarity.h"
#include "pipeline/experiments/weight_tables.h"

namespace switchyard {
namespace {

OptionParser make_parser() {
  OptionParser parser(
      "weights", "weights --model DIR -o weights.h5 [options]",
      "Says how alike the experts of every MoE layer are, from the checkpoint alone: cosines of their gate, up and "
      "down "
      "matrices, as they are and after\n"
      "the neurons of one expert were reordered to match the other's best (linear assignment), how far that order is "
      "from the original one (Kendall's\n"
      "tau), the neurons' first two principal components, and cosines of the router's rows with a regression on the "
      "matrices'. Shared experts are left out.\n"
      "\n"
      "Layers are shared over ranks. A rank holds one matrix of a layer's experts (Mixtral-8x7B: 0.94 GB in bf16) and, "
      "for each of its threads that 2 GiB\n"
      "allow, but at least one, a pair's cosines and a packed matrix (4 N^2 + 2 N d_model bytes for N neurons; "
      "Mixtral-8x7B: 0.94 GB): 2.3 GB with one\n"
      "thread, 3.2 GB with more. Time grows with N^3: a pair and matrix of 14336 neurons take 17 s of a Zen 4 core, "
      "half "
      "of it the assignment; of 4000\n"
      "neurons, less than 1 s. Mixtral-8x7B has 28 pairs x 3 matrices x 32 layers, about 13 core hours; with "
      "--sample-neurons 2048 about one. With fewer\n"
      "neurons to choose from, the reordered cosines are lower.",
      "Examples:\n  switchyard weights --model Mixtral-8x7B-v0.1 -o weights.h5 --sample-neurons 2048\n"
      "  mpirun -n 8 switchyard weights --model Mixtral-8x7B-v0.1 --dense Mistral-7B-v0.1 --layers 0,15-16,31 "
      "-o weights.h5 --csv tables\n");
  auto add = parser.options().add_options();
  add("model", po::value<std::string>()->required()->value_name("DIR"), "checkpoint of a mixture-of-experts model");
  add("output,o", po::value<std::string>()->required()->value_name("FILE"), "write every figure as HDF5");
  add("csv", po::value<std::string>()->value_name("DIR"), "write every table as CSV");
  add("dense", po::value<std::string>()->value_name("DIR"),
      "checkpoint of a dense model of the same sizes, as Mistral-7B is to Mixtral-8x7B: its feed-forward block is "
      "compared as one more");
  add("layers", po::value<std::string>()->default_value("all"), "decoder layers, as 0,3,8-11");
  add("sample-neurons", po::value<int>()->default_value(0),
      "neurons that are reordered, the same ones of every expert; 0: all");
  add("seed", po::value<std::uint64_t>()->default_value(0),
      "of the sample and of the neurons whose components are kept");
  add("threads", po::value<int>()->value_name("N"), "threads of each rank (default: the CPUs it may use)");
  add("quiet", po::bool_switch(), "no progress, no summary");
  return parser;
}

[[noreturn]] void fail_layers(const std::string& text, const ModelConfig& config) {
  std::string known;
  for (const int layer : config.moe_layers) known += std::string(known.empty() ? "" : ",") + std::to_string(layer);
  throw UsageError("'" + text + "' does not name MoE layers", "--layers", "give some of " + known + ", as 0,3,8-11");
}

/// "all", or numbers and ranges of them; ascending.
std::vector<int> chosen_layers(const std::string& text, const ModelConfig& config) {
  if (text == "all") return config.moe_layers;
  std::vector<int> layers;
  const char* at = text.data();
  const char* end = at + text.size();
  while (true) {
    int first = -1;
    at = std::from_chars(at, end, first).ptr;
    int last = first;
    if (at != end && *at == '-') {
      last = -1;
      at = std::from_chars(at + 1, end, last).ptr;
    }
    if (first < 0 || last < first || last >= config.n_layers) fail_layers(text, config);
    for (int layer = first; layer <= last; ++layer) layers.push_back(layer);
    if (at == end) break;
    if (*at++ != ',') fail_layers(text, config);
  }
  std::ranges::sort(layers);
  layers.erase(std::unique(layers.begin(), layers.end()), layers.end());
  if (!std::ranges::all_of(layers, [&](int layer) { return config.is_moe(layer); })) fail_layers(text, config);
  return layers;
}

/// A checkpoint and its sizes.
struct Model {
  explicit Model(const std::string& folder)
      : checkpoint(folder), config(ModelConfig::parse(checkpoint.config_text(), folder)) {}
  std::string name() const { return std::filesystem::canonical(checkpoint.folder()).filename().string(); }

  Checkpoint checkpoint;
  ModelConfig config;
};

void require_comparable(const Model& model, const Model& dense) {
  const std::string where = dense.checkpoint.folder().string();
  if (dense.config.n_experts > 0) throw Error("is no dense model", where, "give one without experts after --dense");
  std::string differences;
  for (const auto& [what, ours, theirs] : {std::tuple("d_model", model.config.d_model, dense.config.d_model),
                                           {"d_ff", model.config.d_ff, dense.config.dense_d_ff},
                                           {"layers", model.config.n_layers, dense.config.n_layers}})
    if (ours != theirs)
      differences += (differences.empty() ? std::string() : std::string(", ")) + what + " is " +
                     std::to_string(theirs) + ", the model's " + std::to_string(ours);
  if (!differences.empty())
    throw Error(differences, where, "give a dense model of the sizes of " + model.checkpoint.folder().string());
}

std::function<void(std::size_t, std::size_t)> assignment_progress(bool show) {
  using Clock = std::chrono::steady_clock;
  return [show, start = Clock::now(), shown = Clock::now()](std::size_t done, std::size_t all) mutable {
    const auto now = Clock::now();
    if (!show || done == all || now - shown < std::chrono::seconds(3)) return;
    shown = now;
    const double seconds = std::chrono::duration<double>(now - start).count();
    std::cerr << "pair " << done << " of " << all << ", ETA "
              << as_duration(seconds * static_cast<double>(all - done) / static_cast<double>(done)) << "\n";
  };
}

/// Mean over the pairs of experts of layer l.
double mean_of_pairs(const WeightSimilarity& similarity, const std::vector<double>& table, std::size_t l) {
  const auto experts = static_cast<std::size_t>(similarity.n_experts);
  const std::size_t width = experts + (similarity.has_dense ? 1 : 0);
  double sum = 0;
  for (std::size_t a = 0; a < experts; ++a)
    for (std::size_t b = a + 1; b < experts; ++b) sum += table[(l * width + a) * width + b];
  return sum / (static_cast<double>(experts * (experts - 1)) / 2);
}

void print_summary(const WeightSimilarity& similarity) {
  std::printf("mean over pairs of experts, gate / up / down\n");
  std::printf("  layer  cosine                    of neurons                reordered                 Kendall's tau\n");
  for (std::size_t l = 0; l < similarity.layers.size(); ++l) {
    std::printf("  %5d", similarity.layers[l]);
    for (const auto figure : {&MatrixSimilarity::flat_cosine, &MatrixSimilarity::matched_cosine,
                              &MatrixSimilarity::assigned_cosine, &MatrixSimilarity::kendall_tau}) {
      std::printf(" ");
      for (const MatrixSimilarity& matrix : similarity.matrices)
        std::printf(" %7.4f", mean_of_pairs(similarity, matrix.*figure, l));
      std::printf(" ");
    }
    std::printf("\n");
  }
}

}  // namespace

int run_weights(const Arguments& arguments) {
  OptionParser parser = make_parser();
  if (!parser.parse(arguments)) return 0;
  const int sample = parser.get<int>("sample-neurons");
  if (sample < 0 || sample == 1)
    throw UsageError(std::string("is ") + std::to_string(sample), "--sample-neurons", "give at least 2, or 0 for all");
  const Communicator comm = Communicator::world();
  omp_set_num_threads(parser.has("threads") ? std::max(1, parser.get<int>("threads")) : default_threads(comm));
  const Model model(parser.get<std::string>("model"));
  if (model.config.n_experts == 0)
    throw Error("is a dense model, which has no experts", model.checkpoint.folder().string(),
                "give a mixture-of-experts model; --dense takes this one beside it");
  std::optional<Model> dense;
  if (parser.has("dense")) require_comparable(model, dense.emplace(parser.get<std::string>("dense")));

  const std::filesystem::path output = std::filesystem::absolute(parser.get<std::string>("output"));
  if (!std::filesystem::is_directory(output.parent_path()))  // said now, not after hours
    throw Error("its folder is not there", output.string(), "make the folder, or name another file after --output");

  const bool show = comm.rank() == 0 && !parser.flag("quiet");
  const DType type = std::min(lossless_type(model.checkpoint), dense ? lossless_type(dense->checkpoint) : DType::bf16);
  const CheckpointTensors tensors(model.checkpoint, model.config, type);
  std::optional<CheckpointTensors> dense_tensors;
  if (dense) dense_tensors.emplace(dense->checkpoint, dense->config, type);
  const WeightSimilarity similarity =
      weight_similarity(tensors, model.config, dense_tensors ? &*dense_tensors : nullptr,
                        {.layers = chosen_layers(parser.get<std::string>("layers"), model.config),
                         .sample_neurons = sample,
                         .seed = parser.get<std::uint64_t>("seed"),
                         .progress = assignment_progress(show)},
                        comm);
  if (comm.rank() != 0) return 0;

  Experiment experiment;
  experiment.kind = "weights";
  experiment.model = model.config.facts(model.name());
  experiment.settings = {{"dense", dense ? dense->name() : ""},
                         {"d_ff", std::to_string(model.config.d_ff)},
                         {"reordered_neurons", std::to_string(similarity.reordered.size())},
                         {"seed", std::to_string(parser.get<std::uint64_t>("seed"))}};
  experiment.tables = weight_tables(similarity);
  write_experiment(output, experiment,
                   {{"/weights", "what is compared"},
                    {"/gate", "gate matrices: neurons are rows"},
                    {"/up", "up matrices: neurons are rows"},
                    {"/down", "down matrices: neurons are columns"},
                    {"/router", "rows of the router, and their cosines regressed on those of the matrices"}},
                   std::string("switchyard ") + version() + " (" + git_commit() + ")");
  if (parser.has("csv")) write_csv_tables(parser.get<std::string>("csv"), experiment.tables, {});
  if (!show) return 0;
  print_summary(similarity);
  std::cout << "\nweights: " << parser.get<std::string>("output") << "\n";
  return 0;
}

}  // namespace switchyard
