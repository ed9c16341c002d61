#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "io/run_folder.h"
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
#include "parallel/stop_signal.h"
#include "pipeline/analysis/experiment.h"
#include "pipeline/experiments/ablation_loop.h"
#include "pipeline/experiments/ablation_results.h"
#include "pipeline/model/model.h"

namespace switchyard {
namespace {

using nlohmann::json;

constexpr std::size_t kShownExperts = 16;  // of a layer, in the closing table

OptionParser make_parser() {
  OptionParser parser(
      "ablate", "ablate --model DIR --corpus NAME=PATH[,key=value ...] --output-dir DIR [options]",
      "Takes the experts of a mixture-of-experts model away, one at a time, and measures by category of text what the "
      "model loses: next-token accuracy\n"
      "and mean loss, each difference with a bootstrap interval over documents and McNemar's exact test, p-values "
      "adjusted over experts. What lies below\n"
      "an ablated layer is computed once: all E experts of layer l of L cost about E x (L - l) / L forward passes. The "
      "same command on the same\n"
      "--output-dir continues where an earlier one was stopped or killed, with any number of ranks.\n\n" +
          std::string(kCorpusKeys),
      "Examples:\n"
      "  switchyard ablate --model mixtral --corpus news=ag.csv,header=no,field=3,category=1 --template '{2} {3}' "
      "--layer 1 --output-dir ablation\n"
      "  mpirun -n 4 switchyard ablate --model mixtral --corpus wiki=wiki.jsonl --corpus code=src,split=file --samples "
      "500 --layers all --mode drop --output-dir drop\n"
      "Exit code: 0 done, 85 stopped by a signal after saving what was whole, 2 wrong usage, 1 other errors.\n");
  add_run_options(parser);
  auto add = parser.options().add_options();
  add("samples", po::value<std::uint64_t>()->default_value(0), "documents chosen at random from each corpus; 0: all");
  add("output-dir", po::value<std::string>()->required()->value_name("DIR"),
      "folder for ablation.h5, csv/ and what it takes to continue");
  add("mode", po::value<std::string>()->default_value("zero"),
      "zero: an expert's output is 0; drop: it cannot be chosen; flip: the runner-up takes the place of each token's "
      "last choice, one change a layer");
  add("layer", po::value<std::vector<std::string>>()->composing()->value_name("L"),
      "decoder layer to ablate in; repeat for more");
  add("layers", po::value<std::string>()->value_name("all|L,L,..."), "the same as a list (default all)");
  add("experts", po::value<std::string>()->default_value("all")->value_name("all|E,E,..."), "experts to ablate");
  add("block-tokens", po::value<std::int64_t>()->default_value(1 << 14),
      "tokens of a block, what a kill loses at least");
  add("commit-seconds", po::value<double>()->default_value(60),
      "most seconds of finished work that a kill can lose, besides the running block");
  add("bootstrap", po::value<int>()->default_value(1000), "resamples behind an interval");
  add("confidence", po::value<double>()->default_value(0.95), "of the intervals");
  add("quiet", po::bool_switch(), "no progress, no summary");
  return parser;
}

/// Whole numbers of "3,1,7", ascending, each once.
std::vector<int> parse_numbers(const std::string& text, const char* option) {
  std::vector<int> numbers;
  for (const char* at = text.data();;) {
    const char* const end = text.data() + text.size();
    int number = 0;
    const auto [stop, status] = std::from_chars(at, end, number);
    if (status != std::errc() || (stop != end && *stop != ','))
      throw UsageError("'" + text + "' is no list of numbers", option, "give all, or numbers with commas between them");
    numbers.push_back(number);
    if (stop == end) break;
    at = stop + 1;
  }
  std::ranges::sort(numbers);
  numbers.erase(std::unique(numbers.begin(), numbers.end()), numbers.end());
  return numbers;
}

std::string listed(const std::vector<int>& numbers) {
  std::string list;
  for (const int number : numbers) list += (list.empty() ? "" : ", ") + std::to_string(number);
  return list;
}

std::vector<int> chosen_layers(const OptionParser& parser, const ModelConfig& config) {
  std::vector<int> all(config.moe_layers.size());
  std::iota(all.begin(), all.end(), 0);
  if (parser.has("layer") && parser.has("layers"))
    throw UsageError("two lists of layers", "--layer, --layers", "give one of them");
  std::string text = parser.has("layers") ? parser.get<std::string>("layers") : "all";
  if (parser.has("layer")) {
    text.clear();
    for (const std::string& layer : parser.get<std::vector<std::string>>("layer"))
      text += (text.empty() ? "" : ",") + layer;
  }
  if (text == "all") return all;
  std::vector<int> chosen;
  for (const int layer : parse_numbers(text, "--layers")) {
    const auto found = std::ranges::find(config.moe_layers, layer);
    if (found == config.moe_layers.end())
      throw UsageError("decoder layer " + std::to_string(layer) + " has no routed experts", "--layers",
                       "layers that have are " + listed(config.moe_layers));
    chosen.push_back(static_cast<int>(found - config.moe_layers.begin()));
  }
  return chosen;
}

std::vector<int> chosen_experts(const OptionParser& parser, const ModelConfig& config) {
  const auto& text = parser.get<std::string>("experts");
  std::vector<int> experts(static_cast<std::size_t>(config.n_experts));
  std::iota(experts.begin(), experts.end(), 0);
  if (text == "all") return experts;
  experts = parse_numbers(text, "--experts");
  if (experts.front() < 0 || experts.back() >= config.n_experts)
    throw UsageError("there is no expert " + std::to_string(experts.front() < 0 ? experts.front() : experts.back()),
                     "--experts", "give numbers from 0 to " + std::to_string(config.n_experts - 1));
  return experts;
}

AblationPlan make_plan(const OptionParser& parser, const ModelConfig& config) {
  if (config.n_moe_layers() == 0)
    throw Error("is a dense model, which has no experts to take away", parser.get<std::string>("model"),
                "ablate a mixture-of-experts model");
  AblationPlan plan{.mode = parse_ablation_mode(parser.get<std::string>("mode")),
                    .layers = chosen_layers(parser, config),
                    .experts = chosen_experts(parser, config)};
  require_runner_up(plan.mode, config);
  if (plan.mode != AblationMode::flip) return plan;
  if (parser.given("experts"))
    throw UsageError("a flip changes tokens, not experts", "--experts", "leave it out, or use --mode zero or drop");
  plan.experts.clear();
  return plan;
}

ResamplingOptions resampling_options(const OptionParser& parser) {
  const ResamplingOptions options{.bootstrap = parser.get<int>("bootstrap"),
                                  .confidence = parser.get<double>("confidence"),
                                  .seed = parser.get<std::uint64_t>("seed")};
  if (options.bootstrap < 20)
    throw UsageError("is " + std::to_string(options.bootstrap), "--bootstrap", "give at least 20; 1000 is usual");
  if (!(options.confidence > 0 && options.confidence < 1))
    throw UsageError("is " + std::to_string(options.confidence), "--confidence", "give a number between 0 and 1");
  return options;
}

class AblateJob {
 public:
  AblateJob(const OptionParser& parser, const Communicator& comm)
      : parser_(parser),
        comm_(comm),
        out_(parser.get<std::string>("output-dir")),
        resampling_(resampling_options(parser)),
        in_(parser, comm),
        plan_(make_plan(parser, in_.config)) {}

  int run();

 private:
  BlockOptions block_options() const;
  json identity() const;
  AblationState empty_state() const;
  AblationOutcome ablate(AblationState& state);
  void write_results(const AblationSums& sums) const;
  void print_results(const std::vector<CategoryEffects>& categories, const std::vector<ObservedScores>& scores) const;
  void print_flips(const CategoryEffects& all) const;
  void print_layer(const CategoryEffects& all, const std::vector<ObservedScores>& scores, std::size_t layer) const;

  const OptionParser& parser_;
  const Communicator& comm_;
  std::filesystem::path out_;
  ResamplingOptions resampling_;
  RunInputs in_;
  AblationPlan plan_;
};

BlockOptions AblateJob::block_options() const {
  BlockOptions options = in_.block_options();
  options.block_tokens = positive(parser_, "block-tokens", 0);
  options.sample = parser_.get<std::uint64_t>("samples");
  return options;
}

json AblateJob::identity() const {
  json identity = in_.identity(block_options());
  std::vector<int> layers;
  for (const int layer : plan_.layers) layers.push_back(in_.config.moe_layers[static_cast<std::size_t>(layer)]);
  identity["ablation"] = {{"mode", to_string(plan_.mode)}, {"layers", layers}, {"experts", plan_.experts}};
  return identity;
}

AblationState AblateJob::empty_state() const {
  std::vector<std::string> names;
  for (const CorpusSpec& corpus : in_.corpora) names.push_back(corpus.name);
  return {AblationSums(plan_.layers.size(), plan_.variants(), static_cast<std::size_t>(in_.config.n_experts),
                       std::move(names)),
          {}};
}

int AblateJob::run() {
  std::optional<RunLock> lock;
  AblationState state = empty_state();
  if (comm_.rank() == 0) {
    lock.emplace(out_);
    claim_folder(out_, in_.run_json(identity()));
    state.load(out_ / "ablation.state");
  }
  state.next = comm_.broadcast(std::vector<SourcePosition>{state.next})[0];
  AblationOutcome outcome;
  if (state.next.corpus < in_.corpora.size()) {
    if (state.next.block > 0 && comm_.rank() == 0 && !parser_.flag("quiet"))
      std::cerr << "continuing the ablation in " << out_.string() << " behind " << state.next.block << " blocks\n";
    outcome = ablate(state);
  }
  if (outcome.stopped) {
    if (comm_.rank() == 0)
      std::cerr << "switchyard: stopped by a signal; " << state.next.block << " blocks are saved in " << out_.string()
                << "; repeat the command to continue\n";
    return kExitRequeue;
  }
  if (comm_.rank() != 0) return 0;
  write_results(state.sums);
  if (parser_.flag("quiet")) return 0;
  if (outcome.session_tokens > 0)
    std::cout << "\n"
              << with_commas(outcome.session_tokens) << " tokens, each " << plan_.layers.size() * plan_.variants()
              << " times changed, in " << as_duration(outcome.seconds) << " with " << comm_.size()
              << (comm_.size() == 1 ? " rank" : " ranks") << " x " << in_.threads << " threads ("
              << in_.precision_name() << ")\n";
  std::cout << "figures: " << (out_ / "ablation.h5").string() << "   tables: " << (out_ / "csv").string() << "\n";
  return 0;
}

AblationOutcome AblateJob::ablate(AblationState& state) {
  if (comm_.any(stop_signal() != 0)) return {.stopped = true};
  const ExpertPlacement placement = in_.placement();
  in_.plan_memory(placement, AblationSweep::bytes(in_.config, in_.batch_tokens));
  const std::unique_ptr<ExpertTransport> transport = make_transport(in_.device.transport, comm_);
  Model model = in_.load(placement, *transport).model;
  AblationSweep sweep(model, plan_);
  BlockSource source(in_.corpora, in_.corpus_files, in_.tokenizer.get(), block_options(), state.next, comm_);
  ProgressBar progress(in_.extents(), parser_.flag("quiet") || comm_.rank() != 0);
  const auto on_progress = [&](const RouteProgress& at) {
    if (comm_.rank() == 0) progress.update(at);
  };
  const AblationOutcome outcome = ablate_blocks(source, sweep, state,
                                                {.state = out_ / "ablation.state",
                                                 .batch_tokens = in_.batch_tokens,
                                                 .commit_seconds = parser_.get<double>("commit-seconds")},
                                                on_progress, comm_);
  progress.finish();
  return outcome;
}

void AblateJob::write_results(const AblationSums& sums) const {
  const std::vector<CategoryEffects> categories = ablation_effects(sums, resampling_);
  if (categories.empty())
    throw Error("holds no token that another follows", "--corpus " + in_.corpora.front().name,
                "give documents of at least two tokens");
  const std::vector<ObservedScores> scores = observed_scores(sums);
  Experiment experiment{.kind = "ablation",
                        .source = {},
                        .settings = {{"mode", std::string(to_string(plan_.mode))},
                                     {"bootstrap", std::to_string(resampling_.bootstrap)},
                                     {"confidence", std::to_string(resampling_.confidence)},
                                     {"seed", std::to_string(resampling_.seed)},
                                     {"precision", in_.precision_name()},
                                     {"context", std::to_string(in_.context)}},
                        .model = in_.facts,
                        .tables = ablation_tables(in_.facts, plan_, categories, scores)};
  write_experiment(out_ / "ablation.h5", experiment, ablation_group_descriptions(plan_),
                   std::string("switchyard ") + version() + " (" + git_commit() + ")");
  std::vector<std::string> names;
  for (const CategoryEffects& category : categories) names.push_back(category.name);
  write_csv_tables(out_ / "csv", experiment.tables, {{"category", names}, {"score", observed_score_names()}});
  if (!parser_.flag("quiet")) print_results(categories, scores);
}

void AblateJob::print_results(const std::vector<CategoryEffects>& categories,
                              const std::vector<ObservedScores>& scores) const {
  std::printf("%s as it is:\n", in_.facts.name.c_str());
  for (const CategoryEffects& category : categories)
    std::printf("  %s: %s tokens of %s documents, loss %.4f nats, next token right %.2f %%\n", category.name.c_str(),
                with_commas(category.tokens).c_str(), with_commas(category.documents).c_str(), category.loss,
                100 * category.accuracy);
  const CategoryEffects& all = categories.front();
  if (plan_.mode == AblationMode::flip) {
    print_flips(all);
    return;
  }
  for (std::size_t l = 0; l < plan_.layers.size(); ++l) print_layer(all, scores, l);
  std::printf("\nrank correlation of the loss difference with");
  const std::vector<double> pooled = score_correlations(plan_, all, scores, 0, plan_.layers.size());
  const std::vector<std::string> names = observed_score_names();
  for (std::size_t s = 0; s < pooled.size(); ++s)
    std::printf("%s %s %.2f", s > 0 ? "," : "", names[s].c_str(), pooled[s]);
  std::printf(" (Spearman, %zu experts, ranks within layers)\n", plan_.layers.size() * plan_.variants());
}

/// "+0.1234 [+0.1200, +0.1300]   +1.23 [+1.20, +1.30]   0.0100", what columns both tables have.
void print_effect(const Effect& effect) {
  const Difference& loss = effect.loss_difference;
  const Difference& accuracy = effect.accuracy_difference;
  std::printf("%+9.5f [%+8.5f, %+8.5f]  %+7.3f [%+6.3f, %+6.3f]  %8.2g", loss.value, loss.low, loss.high,
              100 * accuracy.value, 100 * accuracy.low, 100 * accuracy.high, effect.q);
}

constexpr const char* kEffectColumns = "loss, nats more a token        right, points less       q (McNemar)";

void AblateJob::print_layer(const CategoryEffects& all, const std::vector<ObservedScores>& scores,
                            std::size_t layer) const {
  const std::size_t variants = plan_.variants();
  const auto* effects = all.effects.data() + layer * variants;
  std::vector<std::size_t> order(variants);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) {
    return effects[a].loss_difference.value > effects[b].loss_difference.value;
  });
  std::printf("\nlayer %d without one expert (%s), with %g %% intervals over documents:\n  expert   %s   load %%\n",
              in_.config.moe_layers[static_cast<std::size_t>(plan_.layers[layer])],
              std::string(to_string(plan_.mode)).c_str(), 100 * resampling_.confidence, kEffectColumns);
  for (std::size_t i = 0; i < std::min(order.size(), kShownExperts); ++i) {
    const auto expert = static_cast<std::size_t>(plan_.experts[order[i]]);
    std::printf("  %6zu ", expert);
    print_effect(effects[order[i]]);
    std::printf("     %6.2f\n", 100 * scores[layer * scores.size() / plan_.layers.size() + expert].load);
  }
  if (order.size() > kShownExperts) std::printf("  and %zu more\n", order.size() - kShownExperts);
}

void AblateJob::print_flips(const CategoryEffects& all) const {
  std::printf(
      "\nwith the runner-up in the place of each token's last choice, %g %% intervals over documents:\n   layer   %s\n",
      100 * resampling_.confidence, kEffectColumns);
  for (std::size_t l = 0; l < plan_.layers.size(); ++l) {
    std::printf("  %6d ", in_.config.moe_layers[static_cast<std::size_t>(plan_.layers[l])]);
    print_effect(all.effects[l]);
    std::printf("\n");
  }
}

}  // namespace

int run_ablate(const Arguments& arguments) {
  OptionParser parser = make_parser();
  if (!parser.parse(arguments)) return 0;
  catch_stop_signals();
  const Communicator comm = Communicator::world();
  return AblateJob(parser, comm).run();
}

}  // namespace switchyard
