#include <omp.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <iomanip>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <sstream>

#include "io/checkpoint.h"
#include "io/corpus/document_reader.h"
#include "io/placement_file.h"
#include "io/routing_reader.h"
#include "io/run_folder.h"
#include "io/stats_file.h"
#include "io/tokenizer/tokenizer.h"
#include "jobs/command.h"
#include "jobs/format.h"
#include "jobs/machine.h"
#include "jobs/master_file.h"
#include "jobs/options.h"
#include "jobs/progress.h"
#include "jobs/stats_output.h"
#include "jobs/summary.h"
#include "jobs/token_tables.h"
#include "jobs/version.h"
#include "parallel/communicator.h"
#include "parallel/error.h"
#include "parallel/expert_transport.h"
#include "parallel/stop_signal.h"
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
      "ranks.\n\n"
      "A corpus is a file, a folder or a glob of .txt, .jsonl, .csv or .tsv, also .gz and .zst. Keys behind its path:\n"
      "  format=text|jsonl|csv|tsv   default: by the file's name\n"
      "  split=file|line|blank       text: what one document is (default file)\n"
      "  field=NAME                  JSON key, column name or number of the text (default text)\n"
      "  tokens=NAME                 JSON key of ready token ids (default tokens)\n"
      "  id=NAME  category=NAME      JSON key or column of the document's id and label\n"
      "  only=LABEL                  documents of this category alone: a file of several can be several corpora\n"
      "  header=yes|no               CSV, TSV: whether the first record names the columns (default yes)",
      "Examples:\n"
      "  switchyard route --model mixtral --corpus wiki=wiki.jsonl --corpus code=src,split=file --out run\n"
      "  mpirun -n 4 switchyard route --model mixtral --corpus news=ag.csv,header=no,field=3,category=1 --record "
      "counts --out run\n"
      "Exit code: 0 done, 85 stopped by a signal after committing what was whole, 2 wrong usage, 1 other errors.\n");
  auto add = parser.options().add_options();
  add("model", po::value<std::string>()->required()->value_name("DIR"),
      "Hugging Face folder: config.json, *.safetensors, tokenizer.model");
  add("corpus", po::value<std::vector<std::string>>()->required()->composing()->value_name("NAME=PATH[,key=value ...]"),
      "a corpus; repeat for more");
  add("out", po::value<std::string>()->required()->value_name("OUT"), "folder of the run");
  add("record", po::value<std::string>()->default_value("tokens"),
      "counts: statistics only; tokens: also every token's experts and weights; logits: also router logits");
  add("precision", po::value<std::string>()->value_name("bf16|f32"),
      "of matrix products (default: bf16 where the CPU has it, else f32)");
  add("transport", po::value<std::string>()->value_name("local|mpi"),
      "how ranks exchange tokens (default: local for one rank, else mpi)");
  add("placement", po::value<std::string>()->default_value("contiguous"),
      "contiguous, round-robin, or a JSON file {\"rank_of_expert\": [[...], ...]}, a row for each MoE layer");
  add("context", po::value<std::int64_t>()->value_name("N"),
      "tokens of a window; attention never crosses one (default: the model's limit, at most 2048)");
  add("batch-tokens", po::value<std::int64_t>()->value_name("N"),
      "most tokens of a rank's step (default 4096, at least the context)");
  add("threads", po::value<int>()->value_name("N"), "threads of each rank (default: the CPUs it may use)");
  add("add-bos", po::bool_switch(), "begin each document with the BOS token");
  add("template", po::value<std::string>()->default_value(""),
      "prompt around each text, e.g. '[INST] {text} [/INST]'; {NAME} is another field");
  add("max-documents", po::value<std::uint64_t>()->default_value(0), "of each corpus; 0: all");
  add("max-tokens", po::value<std::uint64_t>()->default_value(0), "of each corpus; 0: all");
  add("sample", po::value<std::uint64_t>()->default_value(0), "documents chosen at random from each corpus; 0: all");
  add("seed", po::value<std::uint64_t>()->default_value(0), "of --sample");
  add("on-bad-document", po::value<std::string>()->default_value("fail"),
      "fail, or skip: count and name it in the record, and go on");
  add("exclude-special", po::bool_switch(),
      "leave BOS and other special tokens out of the statistics (rows keep them)");
  add_token_table_options(parser, "input,target,predicted");
  add("block-tokens", po::value<std::int64_t>()->default_value(1 << 18), "tokens of a block, the unit of restart");
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

std::int64_t positive(const OptionParser& parser, const char* name, std::int64_t fallback) {
  const std::int64_t value = parser.has(name) ? parser.get<std::int64_t>(name) : fallback;
  if (value < 1 || value > std::numeric_limits<std::int32_t>::max() / 64)
    throw UsageError("is " + std::to_string(value), std::string("--") + name, "give a number from 1 to 33,554,431");
  return value;
}

/// Everything a route command decides before it touches OUT.
class RouteJob {
 public:
  RouteJob(const OptionParser& parser, const Communicator& comm);

  int dry_run() const;
  int run();

 private:
  void read_corpora();
  ExpertPlacement make_placement() const;
  json identity() const;
  std::string run_json() const;
  std::vector<std::uint8_t> excluded_tokens() const;
  BlockOptions block_options() const;
  std::vector<CorpusExtent> extents() const;
  void finish(const RouteOutcome& outcome) const;

  const OptionParser& parser_;
  const Communicator& comm_;
  std::filesystem::path out_;
  Checkpoint checkpoint_;
  ModelConfig config_;
  ModelFacts facts_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<CorpusSpec> corpora_;
  std::vector<std::vector<std::uint64_t>> file_bytes_;  // rank 0
  std::vector<CorpusIdentity> corpus_identity_;         // rank 0
  RecordLevel level_;
  Precision precision_;
  std::int64_t context_, batch_tokens_;
  TokenTableChoice token_tables_;
  ReaderOptions reader_;
  std::string transport_name_;
  std::vector<std::string> hosts_;
  int threads_;
};

std::filesystem::path folder_name(const std::filesystem::path& path) {
  return std::filesystem::weakly_canonical(path).filename();
}

Precision parse_precision(const OptionParser& parser) {
  if (!parser.has("precision")) return best_precision();
  const auto& text = parser.get<std::string>("precision");
  if (text == "f32") return Precision::f32;
  if (text != "bf16") throw UsageError("unknown precision '" + text + "'", "--precision", "give bf16 or f32");
  if (best_precision() != Precision::bf16)
    throw UsageError("this CPU has neither AMX nor AVX512-BF16", "--precision bf16", "use --precision f32");
  return Precision::bf16;
}

RouteJob::RouteJob(const OptionParser& parser, const Communicator& comm)
    : parser_(parser),
      comm_(comm),
      out_(parser.get<std::string>("out")),
      checkpoint_(parser.get<std::string>("model")),
      config_(ModelConfig::parse(checkpoint_.config_text(), (checkpoint_.folder() / "config.json").string())),
      facts_(config_.facts(folder_name(checkpoint_.folder()).string())),
      tokenizer_(open_tokenizer(checkpoint_.folder())),
      level_(parse_record_level(parser.get<std::string>("record"))),
      precision_(parse_precision(parser)),
      context_(positive(parser, "context", std::min(config_.max_positions, 2048))),
      batch_tokens_(positive(parser, "batch-tokens", std::max<std::int64_t>(4096, context_))),
      token_tables_(chosen_token_tables(parser, shape_of(facts_))),
      transport_name_(parser.has("transport") ? parser.get<std::string>("transport")
                      : comm.size() == 1      ? "local"
                                              : "mpi"),
      hosts_(host_names(comm)),
      threads_(parser.has("threads") ? parser.get<int>("threads") : default_threads(hosts_, comm.rank())) {
  if (threads_ < 1) throw UsageError("is " + std::to_string(threads_), "--threads", "give at least 1");
  if (context_ > config_.max_positions && comm.rank() == 0 && !parser.flag("quiet"))
    std::cerr << "note: windows of " << context_ << " tokens are longer than the " << config_.max_positions
              << " positions that the model was made for\n";
  if (batch_tokens_ < context_)
    throw UsageError("is less than the context of " + std::to_string(context_), "--batch-tokens",
                     "a window must fit into a batch");
  const auto& policy = parser.get<std::string>("on-bad-document");
  if (policy != "fail" && policy != "skip")
    throw UsageError("unknown policy '" + policy + "'", "--on-bad-document", "give fail or skip");
  reader_.on_bad_document = policy == "skip" ? BadDocument::skip : BadDocument::fail;
  reader_.prompt_template = parser.get<std::string>("template");
  if (tokenizer_ && tokenizer_->vocabulary_size() > static_cast<std::uint32_t>(config_.vocabulary))
    throw Error("has " + std::to_string(tokenizer_->vocabulary_size()) + " tokens, but the model's vocabulary holds " +
                    std::to_string(config_.vocabulary),
                (checkpoint_.folder() / "tokenizer.model").string(), "copy the tokenizer that belongs to the model");
  omp_set_num_threads(threads_);
  read_corpora();
}

void RouteJob::read_corpora() {
  for (const std::string& text : parser_.get<std::vector<std::string>>("corpus")) {
    corpora_.push_back(CorpusSpec::parse(text));
    const std::string& name = corpora_.back().name;
    if (std::count_if(corpora_.begin(), corpora_.end(), [&](const CorpusSpec& c) { return c.name == name; }) > 1)
      throw UsageError("two corpora are named '" + name + "'", "--corpus", "give each its own name");
  }
  if (comm_.rank() != 0) return;
  for (const CorpusSpec& corpus : corpora_) {
    const std::vector<std::filesystem::path> files = list_files(corpus);
    // A column that is not there is said now, not when the corpora before it have been routed.
    CorpusSpec any = corpus;
    any.only.clear();
    static_cast<void>(DocumentReader(std::move(any), files, reader_).next());
    corpus_identity_.push_back(identify(corpus, files));
    std::vector<std::uint64_t> bytes;
    for (const std::filesystem::path& file : files) bytes.push_back(std::filesystem::file_size(file));
    file_bytes_.push_back(std::move(bytes));
  }
}

ExpertPlacement RouteJob::make_placement() const {
  const auto& name = parser_.get<std::string>("placement");
  if (name == "contiguous" || facts_.n_moe_layers() == 0)
    return ExpertPlacement::contiguous(facts_.n_moe_layers(), facts_.n_experts, comm_.size());
  if (name == "round-robin") return ExpertPlacement::round_robin(facts_.n_moe_layers(), facts_.n_experts, comm_.size());
  return read_placement_file(name, facts_.n_moe_layers(), facts_.n_experts, comm_.size());
}

std::vector<std::uint8_t> RouteJob::excluded_tokens() const {
  std::vector<std::uint8_t> excluded;
  if (!parser_.flag("exclude-special")) return excluded;
  if (!tokenizer_)
    throw UsageError("the model folder has no tokenizer to say which tokens are special", "--exclude-special",
                     "copy tokenizer.model into it");
  excluded.resize(static_cast<std::size_t>(config_.vocabulary), 0);
  for (std::uint32_t id = 0; id < tokenizer_->vocabulary_size(); ++id)
    excluded[id] = tokenizer_->is_special(id) ? 1 : 0;
  return excluded;
}

BlockOptions RouteJob::block_options() const {
  BlockOptions options;
  options.context = context_;
  options.block_tokens = positive(parser_, "block-tokens", 0);
  options.add_bos = parser_.flag("add-bos");
  options.max_documents = parser_.get<std::uint64_t>("max-documents");
  options.max_tokens = parser_.get<std::uint64_t>("max-tokens");
  options.sample = parser_.get<std::uint64_t>("sample");
  options.seed = parser_.get<std::uint64_t>("seed");
  options.vocabulary = static_cast<std::uint32_t>(config_.vocabulary);
  options.reader = reader_;
  return options;
}

json RouteJob::identity() const {
  const BlockOptions blocks = block_options();
  std::vector<std::uint32_t> excluded;
  const std::vector<std::uint8_t> flags = excluded_tokens();
  for (std::uint32_t id = 0; id < flags.size(); ++id)
    if (flags[id] != 0) excluded.push_back(id);
  json corpora = json::array();
  for (std::size_t c = 0; c < corpora_.size(); ++c)
    corpora.push_back({{"name", corpora_[c].name},
                       {"option", parser_.get<std::vector<std::string>>("corpus")[c]},
                       {"files", corpus_identity_[c].files},
                       {"bytes", corpus_identity_[c].bytes},
                       {"hash", corpus_identity_[c].hash}});
  return {{"model",
           {{"name", facts_.name},
            {"family", facts_.family},
            {"hash", checkpoint_.fingerprint()},
            {"vocabulary", facts_.vocabulary}}},
          {"tokenizer", tokenizer_ ? tokenizer_->fingerprint() : "none"},
          {"corpora", std::move(corpora)},
          {"excluded_tokens", excluded},
          {"record", to_string(level_)},
          {"precision", precision_ == Precision::f32 ? "f32" : "bf16"},
          {"context", context_},
          {"block-tokens", blocks.block_tokens},
          {"add-bos", blocks.add_bos},
          {"template", reader_.prompt_template},
          {"max-documents", blocks.max_documents},
          {"max-tokens", blocks.max_tokens},
          {"sample", blocks.sample},
          {"seed", blocks.seed},
          {"on-bad-document", parser_.get<std::string>("on-bad-document")},
          {"token-tables", parser_.get<std::string>("token-tables")}};
}

std::string RouteJob::run_json() const {
  json options(parser_.effective());
  options["context"] = context_;
  options["batch-tokens"] = batch_tokens_;
  options["threads"] = threads_;
  options["transport"] = transport_name_;
  options["precision"] = precision_ == Precision::f32 ? "f32" : "bf16";
  const json environment = {{"version", version()}, {"commit", git_commit()},         {"ranks", comm_.size()},
                            {"hosts", hosts_},      {"device", "cpu: " + cpu_name()}, {"batch_invariant", true}};
  return json{
             {"format", "switchyard-run"}, {"identity", identity()}, {"options", options}, {"environment", environment}}
             .dump(2) +
         "\n";
}

std::vector<CorpusExtent> RouteJob::extents() const {
  std::vector<CorpusExtent> extents;
  for (std::size_t c = 0; c < file_bytes_.size(); ++c)
    extents.push_back({corpora_[c].name, file_bytes_[c], parser_.get<std::uint64_t>("max-tokens")});
  return extents;
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

int RouteJob::dry_run() const {
  const ExpertPlacement placement = make_placement();
  const std::vector<ModelMemory> ranks =
      comm_.all_gather(Model::memory(config_, placement, comm_.rank(), precision_, batch_tokens_));
  if (comm_.rank() != 0) return 0;
  const double tables = 2.0 * static_cast<double>(LiveAccumulators::table_bytes(shape_of(facts_), token_tables_));
  std::cout << facts_.name << ": family " << facts_.family << ", " << facts_.n_layers << " layers, "
            << facts_.n_moe_layers() << " of them with " << facts_.n_experts << " experts, top-" << facts_.top_k << "; "
            << as_bytes_text(static_cast<double>(checkpoint_.bytes())) << " on disk\n";
  for (std::size_t r = 0; r < ranks.size(); ++r)
    std::cout << "rank " << r << " on " << hosts_[r] << ": memory about "
              << as_bytes_text(static_cast<double>(ranks[r].replicated_bytes + ranks[r].expert_bytes +
                                                   ranks[r].activation_bytes) +
                               tables + static_cast<double>(RouteOptions{}.commit_bytes))
              << " (replicated " << as_bytes_text(static_cast<double>(ranks[r].replicated_bytes)) << ", experts "
              << as_bytes_text(static_cast<double>(ranks[r].expert_bytes)) << ", activations "
              << as_bytes_text(static_cast<double>(ranks[r].activation_bytes)) << ", token tables "
              << as_bytes_text(tables) << ", rows before a commit up to "
              << as_bytes_text(static_cast<double>(RouteOptions{}.commit_bytes)) << ")\n";
  const double per_token = row_bytes(facts_, level_);
  for (std::size_t c = 0; c < corpora_.size(); ++c) {
    double tokens = static_cast<double>(corpus_identity_[c].bytes) / kBytesPerToken;
    if (const auto most = parser_.get<std::uint64_t>("max-tokens"); most > 0)
      tokens = std::min(tokens, static_cast<double>(most));
    std::cout << "corpus " << corpora_[c].name << ": " << with_commas(corpus_identity_[c].files) << " files, "
              << as_bytes_text(static_cast<double>(corpus_identity_[c].bytes)) << ", about "
              << with_commas(static_cast<std::uint64_t>(tokens)) << " tokens if it is plain text; token rows "
              << as_bytes_text(tokens * per_token) << " on disk (" << per_token << " bytes a token)\n";
  }
  std::cout << "everything that can be checked without running is in order\n";
  return 0;
}

int RouteJob::run() {
  const ExpertPlacement placement = make_placement();
  // Rank 0 opens OUT; all learn where to begin.
  std::optional<RunLock> lock;
  std::vector<SegmentEntry> committed;
  if (comm_.rank() == 0) {
    lock.emplace(out_);
    committed = open_run_folder(out_, run_json());
  }
  SourcePosition start;
  if (!committed.empty()) start = SegmentDetails::parse(committed.back().details).next;
  start = comm_.broadcast(std::vector<SourcePosition>{start})[0];

  std::ostringstream log_name;
  log_name << "rank-" << std::setw(4) << std::setfill('0') << comm_.rank() << ".log";
  comm_.barrier();  // OUT/log is there
  const auto log = spdlog::basic_logger_mt("switchyard", (out_ / "log" / log_name.str()).string());
  log->flush_on(spdlog::level::info);
  log->info("switchyard {} ({}), rank {} of {} on {}, {} threads, transport {}", version(), git_commit(), comm_.rank(),
            comm_.size(), hosts_[static_cast<std::size_t>(comm_.rank())], threads_, transport_name_);
  if (start.block > 0) {
    log->info("continues behind block {}, token {}", start.block, start.tokens);
    if (comm_.rank() == 0 && !parser_.flag("quiet"))
      std::cerr << "continuing the run in " << out_.string() << " behind " << committed.size()
                << " committed segments\n";
  }

  const std::unique_ptr<ExpertTransport> transport = make_transport(transport_name_, comm_);
  const auto load_start = std::chrono::steady_clock::now();
  Model model(checkpoint_, config_, placement, comm_, *transport, {precision_});
  log->info("model loaded in {:.2f} s",
            std::chrono::duration<double>(std::chrono::steady_clock::now() - load_start).count());
  Recorder recorder(facts_, level_, token_tables_, excluded_tokens(), facts_.n_moe_layers() > 0 ? &placement : nullptr,
                    model.row_bytes(), ModelFlops(config_), comm_);

  RouteOptions options;
  options.model = facts_;
  options.out = out_;
  options.next_segment = static_cast<std::uint64_t>(comm_.max(static_cast<std::int64_t>(committed.size())));
  for (const SegmentEntry& entry : committed)
    for (std::string& name : SegmentDetails::parse(entry.details).new_categories)
      options.categories.push_back(std::move(name));
  options.batch_tokens = batch_tokens_;
  options.write = {level_, parser_.flag("compress")};
  options.commit_seconds = parser_.get<double>("commit-seconds");

  catch_stop_signals();
  RouteOutcome outcome;
  {
    BlockSource source(corpora_, tokenizer_.get(), block_options(), start, comm_);
    ProgressBar progress(extents(), parser_.flag("quiet") || comm_.rank() != 0);
    outcome = route_blocks(
        source, model, recorder, options, [&](const RouteProgress& at) { progress.update(at); }, comm_);
    progress.finish();
  }
  log->info("{} tokens in {:.2f} s; phases: {}; waiting for text {:.2f} s, commits {:.2f} s", outcome.session_tokens,
            outcome.seconds, phase_shares(outcome.phases), outcome.source_seconds, outcome.commit_seconds);
  if (comm_.rank() == 0) {
    const std::vector<SegmentEntry> segments = read_manifest(out_);
    std::vector<std::string> names;
    for (const CorpusSpec& corpus : corpora_) names.push_back(corpus.name);
    write_run_master(out_, facts_, names, segments, tokenizer_.get());
    if (outcome.stopped)
      std::cerr << "switchyard: stopped by a signal; " << segments.size() << " segments are committed in "
                << out_.string() << "; repeat the command to continue\n";
  }
  if (outcome.stopped) return kExitRequeue;
  finish(outcome);
  return 0;
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
              << with_commas(outcome.session_tokens) << " tokens in " << as_duration(outcome.seconds) << ": "
              << with_commas(static_cast<std::uint64_t>(static_cast<double>(outcome.session_tokens) / outcome.seconds))
              << " tokens/s with " << comm_.size() << (comm_.size() == 1 ? " rank" : " ranks") << " x " << threads_
              << " threads (" << (precision_ == Precision::f32 ? "f32" : "bf16") << ")\n"
              << "time of rank 0: " << phase_shares(outcome.phases) << "; waiting for text "
              << as_duration(outcome.source_seconds) << ", commits " << as_duration(outcome.commit_seconds) << "\n";
  std::cout << "record: " << (out_ / "routing.h5").string()
            << (parser_.flag("no-stats") ? "" : "   statistics: " + (out_ / "stats.h5").string()) << "\n";
}

}  // namespace

int run_route(const Arguments& arguments) {
  OptionParser parser = make_parser();
  if (!parser.parse(arguments)) return 0;
  const Communicator comm = Communicator::world();
  RouteJob job(parser, comm);
  return parser.flag("dry-run") ? job.dry_run() : job.run();
}

}  // namespace switchyard
