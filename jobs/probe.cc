#include "pipeline/experiments/probe.h"

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "io/routing_schema.h"
#include "jobs/command.h"
#include "jobs/format.h"
#include "jobs/options.h"
#include "jobs/progress.h"
#include "jobs/run_inputs.h"
#include "jobs/stats_output.h"
#include "jobs/version.h"
#include "parallel/communicator.h"
#include "parallel/error.h"
#include "parallel/expert_transport.h"
#include "pipeline/analysis/experiment.h"
#include "pipeline/experiments/probe_tables.h"
#include "pipeline/model/model.h"

namespace switchyard {
namespace {

OptionParser make_parser() {
  OptionParser parser(
      "probe", "probe --model DIR --corpus NAME=PATH[,key=value ...] -o probe.h5 [options]",
      "Runs every expert on every token of a small sample, wherever the router sent it, and says how alike experts "
      "are: "
      "cosine and angular similarity\n"
      "of their outputs, whether the router prefers those with large outputs, their mean intermediate states and how "
      "sparse these are; and which\n"
      "experts the first tokens chose. Tokens go on as the router decided. Experts stay on their ranks. Each layer "
      "takes "
      "about experts / top-k times as\n"
      "long as in `route`.\n\n" +
          std::string(kCorpusKeys),
      "Examples:\n"
      "  switchyard probe --model mixtral --corpus wiki=wiki.jsonl -o probe.h5\n"
      "  mpirun -n 4 switchyard probe --model mixtral --corpus wiki=wiki.jsonl --corpus code=src,split=file --samples "
      "50 --tokens 4096 --layers 0,15,31 -o probe.h5 --csv tables\n"
      "  switchyard report probe.h5 -o probe.html\n");
  add_run_options(parser);
  auto add = parser.options().add_options();
  add("output,o", po::value<std::string>()->required()->value_name("FILE"), "the result");
  add("samples", po::value<std::uint64_t>()->default_value(0), "documents chosen at random from each corpus; 0: all");
  add("tokens", po::value<std::int64_t>()->default_value(1024), "of each corpus, the first of those documents");
  add("layers", po::value<std::string>()->default_value("all")->value_name("all|LIST"),
      "decoder layers to probe, e.g. 0,15,31; the model stops behind the last of them");
  add("shown-tokens", po::value<std::uint64_t>()->default_value(64),
      "first tokens of each corpus whose experts are kept one by one");
  add("csv", po::value<std::string>()->value_name("DIR"), "write every table as CSV");
  add("quiet", po::bool_switch(), "no progress, no summary");
  return parser;
}

/// --layers as indices among the MoE layers, ascending.
std::vector<int> moe_layers_asked(const std::string& list, const std::vector<int>& moe_layers) {
  std::vector<int> asked;
  if (list == "all") {
    for (std::size_t i = 0; i < moe_layers.size(); ++i) asked.push_back(static_cast<int>(i));
    return asked;
  }
  std::istringstream words(list);
  for (std::string word; std::getline(words, word, ',');) {
    const auto found = std::ranges::find(moe_layers, word, [](int layer) { return std::to_string(layer); });
    if (found == moe_layers.end())
      throw UsageError("'" + word + "' is not a MoE layer of the model", "--layers",
                       "give numbers from " + std::to_string(moe_layers.front()) + " to " +
                           std::to_string(moe_layers.back()) + ", separated by commas, or all");
    asked.push_back(static_cast<int>(found - moe_layers.begin()));
  }
  std::ranges::sort(asked);
  asked.erase(std::unique(asked.begin(), asked.end()), asked.end());
  if (asked.empty()) throw UsageError("names no layer", "--layers", "give numbers separated by commas, or all");
  return asked;
}

BlockOptions sample_of(const RunInputs& in) {
  BlockOptions options = in.block_options();
  options.sample = in.parser.get<std::uint64_t>("samples");
  const auto tokens = static_cast<std::uint64_t>(positive(in.parser, "tokens", 0));
  options.max_tokens = options.max_tokens > 0 ? std::min(options.max_tokens, tokens) : tokens;
  return options;
}

ProbeOptions probe_options(const RunInputs& in) {
  if (in.facts.n_moe_layers() == 0)
    throw UsageError("is a dense model: it has no routed experts", in.checkpoint.folder().string(),
                     "name a mixture-of-experts model");
  ProbeOptions options;
  options.precision = in.device.precision;
  options.moe_layers = moe_layers_asked(in.parser.get<std::string>("layers"), in.facts.moe_layers);
  options.batch_tokens = in.batch_tokens;
  options.shown_tokens = in.parser.get<std::uint64_t>("shown-tokens");
  if (options.shown_tokens > 65536)
    throw UsageError("is " + std::to_string(options.shown_tokens), "--shown-tokens", "give at most 65,536");
  return options;
}

/// Mean of the pairs of different experts.
double mean_of_pairs(const std::vector<double>& pairs, std::size_t n_experts) {
  double sum = 0;
  for (std::size_t i = 0; i < pairs.size(); ++i) sum += i % (n_experts + 1) == 0 ? 0 : pairs[i];
  return sum / static_cast<double>(n_experts * (n_experts - 1));
}

void print_dataset(const std::string& name, const ProbedDataset& dataset, const ModelFacts& model,
                   const std::vector<int>& moe_layers) {
  std::printf("%s: every expert on %s tokens of %s documents\n", name.c_str(), with_commas(dataset.tokens).c_str(),
              with_commas(dataset.documents).c_str());
  std::printf(
      "  layer  mean cosine of outputs  of intermediate states  best-scored has the largest output  sparsity\n");
  const auto n_experts = static_cast<std::size_t>(model.n_experts);
  for (std::size_t l = 0; l < moe_layers.size(); ++l) {
    const ProbedLayer& layer = dataset.layers[l];
    double sparsity = 0;
    for (const double share : layer.sparsity) sparsity += share / static_cast<double>(n_experts);
    std::printf(
        "  %5d  %22.4f  %22.4f  %31.1f %%  %6.2f %%\n", model.moe_layers[static_cast<std::size_t>(moe_layers[l])],
        mean_of_pairs(layer.output_cosine, n_experts), mean_of_pairs(layer.intermediate_cosine, n_experts),
        100 * static_cast<double>(layer.norm_score_rank[0]) / static_cast<double>(dataset.tokens), 100 * sparsity);
  }
}

}  // namespace

int run_probe(const Arguments& arguments) {
  OptionParser parser = make_parser();
  if (!parser.parse(arguments)) return 0;
  const Communicator comm = Communicator::world();
  const RunInputs in(parser, comm);
  const ProbeOptions options = probe_options(in);
  const BlockOptions sample = sample_of(in);
  const ExpertPlacement placement = in.placement();
  if (placement.n_physical() > in.facts.n_experts)
    throw UsageError("has copies of experts, but here each runs once", "--placement", "give one rank for each expert");
  in.plan_memory(placement, forced_experts_bytes(in.config, in.device.precision, comm.size()));
  const std::unique_ptr<ExpertTransport> transport = make_transport(in.device.transport, comm);
  Model model = in.load(placement, *transport).model;
  const bool show = comm.rank() == 0 && !parser.flag("quiet");

  BlockSource source(in.corpora, in.corpus_files, in.tokenizer.get(), sample, {}, comm);
  std::vector<CorpusExtent> extents = in.extents();
  for (CorpusExtent& extent : extents) extent.max_tokens = sample.max_tokens;
  ProgressBar progress(extents, !show);
  const std::vector<ProbedDataset> datasets = probe_experts(
      source, in.corpora.size(), model, placement, options, [&](const RouteProgress& at) { progress.update(at); },
      comm);
  progress.finish();
  if (comm.rank() != 0) return 0;

  std::vector<std::string> names;
  for (const CorpusSpec& corpus : in.corpora) names.push_back(corpus.name);
  Experiment experiment;
  experiment.kind = "probe";
  experiment.settings = {{"precision", in.precision_name()},
                         {"context", std::to_string(in.context)},
                         {"samples", std::to_string(sample.sample)},
                         {"tokens", std::to_string(sample.max_tokens)},
                         {"seed", std::to_string(sample.seed)}};
  experiment.model = in.facts;
  experiment.tables = probe_tables(datasets, names, in.facts, options.moe_layers, in.tokenizer.get());
  const auto& output = parser.get<std::string>("output");
  write_experiment(output, experiment, probe_group_descriptions(),
                   std::string("switchyard ") + version() + " (" + git_commit() + ")");
  if (parser.has("csv")) write_csv_tables(parser.get<std::string>("csv"), experiment.tables, {{"dataset", names}});
  if (!show) return 0;
  for (std::size_t d = 0; d < datasets.size(); ++d) print_dataset(names[d], datasets[d], in.facts, options.moe_layers);
  std::cout << "probe: " << output << "\n";
  return 0;
}

}  // namespace switchyard
