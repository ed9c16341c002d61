#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/spdlog.h>

#include <filesystem>
#include <iomanip>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "io/routing_reader.h"
#include "io/run_folder.h"
#include "io/stats_file.h"
#include "jobs/command.h"
#include "jobs/format.h"
#include "jobs/master_file.h"
#include "jobs/options.h"
#include "jobs/progress.h"
#include "jobs/run_inputs.h"
#include "jobs/stats_output.h"
#include "jobs/summary.h"
#include "jobs/token_tables.h"
#include "jobs/version.h"
#include "parallel/communicator.h"
#include "parallel/error.h"
#include "parallel/expert_transport.h"
#include "parallel/stop_signal.h"
#include "pipeline/continued_placement.h"
#include "pipeline/model/model.h"
#include "pipeline/model/model_flops.h"
#include "pipeline/recorder.h"
#include "pipeline/reduce.h"
#include "pipeline/route_loop.h"

namespace switchyard {
namespace {

using nlohmann::json;

constexpr double kBytesPerToken = 3.5;  // of text, for the estimate of --dry-run

OptionParser make_parser() {
  OptionParser parser(
      "route", "route --model DIR --corpus NAME=PATH[,key=value ...] --out OUT [options]",
      "Runs a mixture-of-experts model over corpora, its experts spread over the ranks of an mpirun, and records in "
      "OUT where every token was\n"
      "sent. The same command on the same OUT continues where an earlier one was stopped or killed, with any number of "
      "ranks.\n\n" +
          std::string(kCorpusKeys),
      "Examples:\n"
      "  switchyard route --model mixtral --corpus wiki=wiki.jsonl --corpus code=src,split=file --out run\n"
      "  mpirun -n 4 switchyard route --model mixtral --corpus news=ag.csv,header=no,field=3,category=1 --record "
      "counts --out run\n"
      "  switchyard route --model mixtral --corpus mt=questions.jsonl,field=question --template '[INST] {text} "
      "[/INST]' "
      "--add-bos --generate 128 --out run\n"
      "Exit code: 0 done, 85 stopped by a signal after committing what was whole, 2 wrong usage, 1 other errors.\n");
  add_run_options(parser);
  auto add = parser.options().add_options();
  add("out", po::value<std::string>()->required()->value_name("OUT"), "folder of the run");
  add("record", po::value<std::string>()->default_value("tokens"),
      "counts: statistics only; tokens: also every token's experts and weights; logits: also router logits");
  add("sample", po::value<std::uint64_t>()->default_value(0), "documents chosen at random from each corpus; 0: all");
  add("generate", po::value<std::int64_t>()->default_value(0)->value_name("N"),
      "answer each document with up to N tokens, to the end-of-text token; 0: none. A document is then one window, its "
      "first context - N tokens; the answer's tokens follow in the record as phase decode");
  add("generate-batch", po::value<std::int64_t>()->default_value(64),
      "documents that a rank answers at once, of at most --batch-tokens together");
  add("temperature", po::value<double>()->default_value(0),
      "of answers: 0 takes the most likely token, else one is drawn from softmax(logits / temperature), by --seed");
  add("exclude-special", po::bool_switch(),
      "leave BOS and other special tokens out of the statistics (rows keep them)");
  add_token_table_options(parser, "input,target,predicted");
  add("block-tokens", po::value<std::int64_t>()->default_value(1 << 18), "tokens of a block, the unit of restart");
  add("rebalance-every", po::value<std::uint64_t>()->default_value(0)->value_name("N"),
      "after every N blocks, place experts anew by the steps since the last time, and send those that move from rank "
      "to rank; rows stay the same. A run that is continued on as many ranks finds experts where they were (0: they "
      "stay where --placement puts them)");
  add("rebalance-method", po::value<std::string>()->default_value("search")->value_name("NAME"),
      "how: contiguous, round_robin, greedy, eplb or search, see `place --help`");
  add("commit-seconds", po::value<double>()->default_value(60),
      "most seconds of finished work that a kill can lose, besides the running block");
  add("compress", po::bool_switch(), "shuffle + deflate token rows; smaller, but writes take about ten times as long");
  add("peak-flops", po::value<double>()->value_name("FLOP/s"),
      "peak of one rank, for the share of it in the statistics");
  add("no-stats", po::bool_switch(), "do not write OUT/stats.h5 at the end");
  add("dry-run", po::bool_switch(), "check everything, print the memory and disk it would need, and stop");
  add("quiet", po::bool_switch(), "no progress, no summary");
  return parser;
}

/// Everything a route command decides before it touches OUT.
class RouteJob {
 public:
  RouteJob(const OptionParser& parser, const Communicator& comm);

  int dry_run() const;
  int run();

 private:
  json identity() const;
  std::uint64_t cache_bytes() const;
  std::uint64_t record_bytes() const;
  std::vector<std::uint8_t> excluded_tokens() const;
  BlockOptions block_options() const;
  GenerationOptions generation_options() const;
  RebalanceOptions rebalance_options() const;
  ModelMemory with_moves(ModelMemory memory) const;
  ModelMemory plan(const ExpertPlacement& placement) const;
  int say_stopped(std::size_t n_segments) const;
  void finish(const RouteOutcome& outcome) const;

  const OptionParser& parser_;
  const Communicator& comm_;
  std::filesystem::path out_;
  RunInputs in_;
  RecordLevel level_;
  TokenTableChoice token_tables_;
  GenerationOptions generation_;
  RebalanceOptions rebalance_;
};

RouteJob::RouteJob(const OptionParser& parser, const Communicator& comm)
    : parser_(parser),
      comm_(comm),
      out_(parser.get<std::string>("out")),
      in_(parser, comm),
      level_(parse_record_level(parser.get<std::string>("record"))),
      token_tables_(chosen_token_tables(parser, shape_of(in_.facts))),
      generation_(generation_options()),
      rebalance_(rebalance_options()) {}

std::vector<std::uint8_t> RouteJob::excluded_tokens() const {
  std::vector<std::uint8_t> excluded;
  if (!parser_.flag("exclude-special")) return excluded;
  if (!in_.tokenizer)
    throw UsageError("the model folder has no tokenizer to say which tokens are special", "--exclude-special",
                     "copy tokenizer.model into it");
  excluded.resize(static_cast<std::size_t>(in_.config.vocabulary), 0);
  for (std::uint32_t id = 0; id < in_.tokenizer->vocabulary_size(); ++id)
    excluded[id] = in_.tokenizer->is_special(id) ? 1 : 0;
  return excluded;
}

BlockOptions RouteJob::block_options() const {
  BlockOptions options = in_.block_options();
  options.block_tokens = positive(parser_, "block-tokens", 0);
  options.sample = parser_.get<std::uint64_t>("sample");
  options.answer_tokens = generation_.tokens;
  return options;
}

GenerationOptions RouteJob::generation_options() const {
  GenerationOptions options;
  options.tokens = parser_.get<std::int64_t>("generate");
  options.sequences = positive(parser_, "generate-batch", 0);
  options.temperature = parser_.get<double>("temperature");
  options.seed = parser_.get<std::uint64_t>("seed");
  if (options.tokens < 0 || options.tokens >= in_.context)
    throw UsageError("is " + std::to_string(options.tokens), "--generate",
                     "the context of " + std::to_string(in_.context) + " tokens must hold a document and its answer");
  if (!(options.temperature >= 0) || !std::isfinite(options.temperature))
    throw UsageError("is " + std::to_string(options.temperature), "--temperature", "give 0 or more");
  if (options.temperature > 0 && options.tokens == 0)
    throw UsageError("there are no answers", "--temperature", "give --generate N too");
  options.end_tokens = in_.config.end_tokens;
  if (options.end_tokens.empty() && in_.tokenizer && in_.tokenizer->eos_id() >= 0)
    options.end_tokens.push_back(static_cast<std::uint32_t>(in_.tokenizer->eos_id()));
  return options;
}

RebalanceOptions RouteJob::rebalance_options() const {
  RebalanceOptions options;
  options.every = parser_.get<std::uint64_t>("rebalance-every");
  options.method = parse_placement_method(parser_.get<std::string>("rebalance-method"), "--rebalance-method");
  options.effort.exact_nodes = 5000;  // ranks wait for it
  return options;
}

/// A GPU's, where experts change ranks: a layer's experts before and after at once.
ModelMemory RouteJob::with_moves(ModelMemory memory) const {
  if (rebalance_.every > 0 && comm_.size() > 1 && in_.config.n_experts > 0)
    memory.expert_bytes += memory.expert_bytes / static_cast<std::uint64_t>(in_.config.n_moe_layers());
  return memory;
}

json RouteJob::identity() const {
  std::vector<std::uint32_t> excluded;
  const std::vector<std::uint8_t> flags = excluded_tokens();
  for (std::uint32_t id = 0; id < flags.size(); ++id)
    if (flags[id] != 0) excluded.push_back(id);
  json identity = in_.identity(block_options());
  identity["excluded_tokens"] = excluded;
  identity["record"] = to_string(level_);
  identity["token-tables"] = parser_.get<std::string>("token-tables");
  if (generation_.tokens > 0)
    identity["generate"] = {{"tokens", generation_.tokens},
                            {"temperature", generation_.temperature},
                            {"end_tokens", generation_.end_tokens}};
  return identity;
}

/// Bytes that a token takes in the record.
double row_bytes(const ModelFacts& model, RecordLevel level) {
  if (level == RecordLevel::counts) return 0;
  const double token_columns = 4 * 4 + 1 + 4;  // id, document, position, predicted; phase; loss
  const double expert_bytes = model.n_experts <= 255 ? 1 : 2;
  double layer = model.top_k * (expert_bytes + 2) + 2;
  if (level == RecordLevel::logits) layer += 4.0 * model.n_experts;
  return token_columns + model.n_moe_layers() * layer;
}

std::uint64_t RouteJob::cache_bytes() const {
  return Generator::cache_bytes(in_.config, generation_, in_.batch_tokens, in_.device.precision);
}

std::uint64_t RouteJob::record_bytes() const {
  return Recorder::gpu_bytes(in_.facts, token_tables_, in_.batch_tokens, generation_.tokens > 0);
}

/// Collective. What this rank needs, once it is known that this and placing anew can be done.
ModelMemory RouteJob::plan(const ExpertPlacement& placement) const {
  static_cast<void>(rebalance_task(rebalance_, placement, in_.binding.nodes));
  const ModelMemory memory = Model::memory(in_.config, placement, comm_.rank(), in_.model_options(), in_.batch_tokens);
  if (in_.device.on_gpu())
    plan_gpu_memory(in_.device, with_moves(memory), cache_bytes(), record_bytes(), parser_.flag("quiet"), comm_);
  return memory;
}

int RouteJob::dry_run() const {
  const ExpertPlacement placement = in_.placement();
  const std::vector<ModelMemory> ranks = comm_.all_gather(plan(placement));
  if (comm_.rank() != 0) return 0;
  if (parser_.has("stage-to"))
    std::cout << "each node copies the checkpoint to " << parser_.get<std::string>("stage-to")
              << ", unless it is there already\n";
  const bool generates = generation_.tokens > 0;
  const double tables =
      (generates ? 4.0 : 2.0) * static_cast<double>(LiveAccumulators::table_bytes(shape_of(in_.facts), token_tables_));
  const double cache =
      generates ? static_cast<double>(Generator::bytes(in_.config, generation_, in_.batch_tokens, in_.device.precision))
                : 0;
  std::cout << in_.facts.name << ": family " << in_.facts.family << ", " << in_.facts.n_layers << " layers, "
            << in_.facts.n_moe_layers() << " of them with " << in_.facts.n_experts << " experts, top-"
            << in_.facts.top_k << "; " << as_bytes_text(static_cast<double>(in_.checkpoint.bytes())) << " on disk\n";
  for (std::size_t r = 0; r < ranks.size(); ++r)
    std::cout << "rank " << r << " on " << in_.binding.host_of(static_cast<int>(r)) << ": memory about "
              << as_bytes_text(static_cast<double>(ranks[r].replicated_bytes + ranks[r].expert_bytes +
                                                   ranks[r].activation_bytes) +
                               tables + cache + static_cast<double>(RouteOptions{}.commit_bytes))
              << " (replicated " << as_bytes_text(static_cast<double>(ranks[r].replicated_bytes)) << ", experts "
              << as_bytes_text(static_cast<double>(ranks[r].expert_bytes)) << ", activations "
              << as_bytes_text(static_cast<double>(ranks[r].activation_bytes)) << ", token tables "
              << as_bytes_text(tables)
              << (generates ? ", answers' keys, values and routing up to " + as_bytes_text(cache) : std::string())
              << ", rows before a commit up to " << as_bytes_text(static_cast<double>(RouteOptions{}.commit_bytes))
              << ")\n";
  const double per_token = row_bytes(in_.facts, level_);
  for (std::size_t c = 0; c < in_.corpora.size(); ++c) {
    double tokens = static_cast<double>(in_.corpus_identity[c].bytes) / kBytesPerToken;
    if (const auto most = parser_.get<std::uint64_t>("max-tokens"); most > 0)
      tokens = std::min(tokens, static_cast<double>(most));
    std::cout << "corpus " << in_.corpora[c].name << ": " << with_commas(in_.corpus_identity[c].files) << " files, "
              << as_bytes_text(static_cast<double>(in_.corpus_identity[c].bytes)) << ", about "
              << with_commas(static_cast<std::uint64_t>(tokens)) << " tokens if it is plain text; token rows "
              << as_bytes_text(tokens * per_token) << " on disk (" << per_token << " bytes a token)\n";
  }
  std::cout << "everything that can be checked without running is in order\n";
  return 0;
}

int RouteJob::run() {
  ExpertPlacement placement = in_.placement();
  plan(placement);
  // Rank 0 opens OUT; all learn where to begin.
  std::optional<RunLock> lock;
  std::vector<SegmentEntry> committed;
  if (comm_.rank() == 0) {
    lock.emplace(out_);
    committed = open_run_folder(out_, in_.run_json(identity()));
  }
  SourcePosition start;
  if (!committed.empty()) start = SegmentDetails::parse(committed.back().details).next;
  start = comm_.broadcast(std::vector<SourcePosition>{start})[0];
  if (rebalance_.every > 0) {
    std::optional<std::filesystem::path> last;
    if (!committed.empty()) last = out_ / committed.back().file;
    placement = continued_placement(last, placement, comm_);
  }

  std::ostringstream log_name;
  log_name << "rank-" << std::setw(4) << std::setfill('0') << comm_.rank() << ".log";
  comm_.barrier();  // OUT/log is there
  const auto log = spdlog::basic_logger_mt("switchyard", (out_ / "log" / log_name.str()).string());
  log->flush_on(spdlog::level::info);
  const RankBinding& bound = in_.binding.ranks[static_cast<std::size_t>(comm_.rank())];
  log->info("switchyard {} ({}), rank {} of {} on {}, {} threads on CPUs {}, GPU {}, transport {}", version(),
            git_commit(), comm_.rank(), comm_.size(), in_.binding.host_of(comm_.rank()), bound.threads, bound.cpus,
            bound.gpu.value_or("none"), in_.device.transport);
  if (start.block > 0) {
    log->info("continues behind block {}, token {}", start.block, start.tokens);
    if (comm_.rank() == 0 && !parser_.flag("quiet"))
      std::cerr << "continuing the run in " << out_.string() << " behind " << committed.size()
                << " committed segments\n";
  }

  if (comm_.any(stop_signal() != 0)) return say_stopped(committed.size());
  const std::unique_ptr<ExpertTransport> transport = make_transport(in_.device.transport, comm_);
  LoadedModel loaded = in_.load(placement, *transport);
  Model& model = loaded.model;
  log->info("model {}", loaded.how_fast);
  const std::unique_ptr<EnergyMeter> energy = make_energy_meter(in_.device, parser_.flag("quiet"), comm_);
  Recorder recorder(in_.facts, level_, token_tables_, excluded_tokens(),
                    in_.facts.n_moe_layers() > 0 ? &model.placement() : nullptr, model.row_bytes(),
                    ModelFlops(in_.config), comm_, generation_.tokens > 0);

  RouteOptions options;
  options.model = in_.facts;
  options.out = out_;
  options.next_segment = static_cast<std::uint64_t>(comm_.max(static_cast<std::int64_t>(committed.size())));
  for (const SegmentEntry& entry : committed)
    for (std::string& name : SegmentDetails::parse(entry.details).new_categories)
      options.categories.push_back(std::move(name));
  options.batch_tokens = in_.batch_tokens;
  options.generation = generation_;
  options.generated = start.generated;
  options.tokenizer = in_.tokenizer.get();
  options.nodes = in_.binding.nodes;
  options.energy = energy.get();
  options.rebalance = rebalance_;
  options.on_rebalance = [&log](const Rebalanced& done) {
    log->info(
        "moved {} experts ({}) in {:.3f} s; balancedness of the steps since the last time {:.3f}, as placed now {:.3f}",
        done.moves.experts, as_bytes_text(static_cast<double>(done.moves.bytes)), done.seconds,
        done.balancedness_before, done.balancedness_after);
  };
  options.write = {level_, parser_.flag("compress")};
  options.commit_seconds = parser_.get<double>("commit-seconds");

  RouteOutcome outcome;
  {
    BlockSource source(in_.corpora, in_.corpus_files, in_.tokenizer.get(), block_options(), start, comm_);
    ProgressBar progress(in_.extents(), parser_.flag("quiet") || comm_.rank() != 0);
    options.share_done = [&](const RouteProgress& at) { return progress.fraction(at); };
    outcome = route_blocks(
        source, model, recorder, options, [&](const RouteProgress& at) { progress.update(at); }, comm_);
    progress.finish();
  }
  log->info("{} tokens in {:.2f} s; phases: {}; waiting for text {:.2f} s, commits {:.2f} s", outcome.session_tokens,
            outcome.seconds, phase_shares(outcome.phases), outcome.source_seconds, outcome.commit_seconds);
  std::size_t n_segments = 0;
  if (comm_.rank() == 0) {
    const std::vector<SegmentEntry> segments = read_manifest(out_);
    n_segments = segments.size();
    std::vector<std::string> names;
    for (const CorpusSpec& corpus : in_.corpora) names.push_back(corpus.name);
    write_run_master(out_, in_.facts, names, segments, in_.tokenizer.get());
  }
  if (outcome.stopped) return say_stopped(n_segments);
  finish(outcome);
  return 0;
}

int RouteJob::say_stopped(std::size_t n_segments) const {
  if (comm_.rank() == 0)
    std::cerr << "switchyard: stopped by a signal; " << n_segments << " segments are committed in " << out_.string()
              << "; repeat the command to continue\n";
  return kExitRequeue;
}

void RouteJob::finish(const RouteOutcome& outcome) const {
  comm_.barrier();
  const Statistics reduced = reduce_runs(
      {out_}, {.peak_flops = parser_.positive_number("peak-flops")}, [](std::size_t, std::size_t) {}, comm_);
  if (comm_.rank() != 0) return;
  if (!parser_.flag("no-stats")) write_stats(out_ / "stats.h5", reduced);
  if (parser_.flag("quiet")) return;
  print_summary(std::cout, reduced);
  if (outcome.session_tokens > 0)
    std::cout << "\n"
              << with_commas(outcome.session_tokens) << " tokens"
              << (generation_.tokens > 0 ? ", " + with_commas(outcome.session_generated) + " of them generated,"
                                         : std::string())
              << " in " << as_duration(outcome.seconds) << ": "
              << with_commas(static_cast<std::uint64_t>(static_cast<double>(outcome.session_tokens) / outcome.seconds))
              << " tokens/s with " << comm_.size() << (comm_.size() == 1 ? " rank" : " ranks") << " x " << in_.threads
              << " threads (" << in_.precision_name() << ")\n"
              << "time of rank 0: " << phase_shares(outcome.phases) << "; waiting for text "
              << as_duration(outcome.source_seconds) << ", commits " << as_duration(outcome.commit_seconds) << "\n";
  if (outcome.rebalanced.times > 0)
    std::cout << "experts placed anew " << outcome.rebalanced.times << " times: " << outcome.rebalanced.moves.experts
              << " moved (" << as_bytes_text(static_cast<double>(outcome.rebalanced.moves.bytes)) << ") in "
              << as_duration(outcome.rebalanced.seconds) << "\n";
  std::cout << "record: " << (out_ / "routing.h5").string()
            << (parser_.flag("no-stats") ? "" : "   statistics: " + (out_ / "stats.h5").string()) << "\n";
}

}  // namespace

int run_route(const Arguments& arguments) {
  OptionParser parser = make_parser();
  if (!parser.parse(arguments)) return 0;
  if (!parser.flag("dry-run")) catch_stop_signals();  // listing and loading may take longer than a job's warning
  const Communicator comm = Communicator::world();
  RouteJob job(parser, comm);
  return parser.flag("dry-run") ? job.dry_run() : job.run();
}

}  // namespace switchyard
