#include <omp.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "io/run_folder.h"
#include "io/served/served_reader.h"
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
#include "parallel/stop_signal.h"
#include "pipeline/import_loop.h"
#include "pipeline/reduce.h"

namespace switchyard {
namespace {

using nlohmann::json;

constexpr int kMostExperts = 65535;
constexpr int kMostLayers = 65535;
constexpr const char* kNone = "none";

OptionParser make_parser() {
  OptionParser parser(
      "import", "import FILE.jsonl[.gz|.zst] ... --name NAME --experts E --out OUT [options]",
      "Makes a run of the routing that a serving engine returned with its responses, a response a line, so that "
      "reduce, "
      "compare, tokens and inspect work on\n"
      "served traffic without the model. The same command on the same OUT continues where an earlier one was stopped "
      "or killed. Runs in one process.\n\n"
      "Responses of SGLang (return_routed_experts) and vLLM (--enable-return-routed-experts) are recognised. For "
      "others "
      "name the fields by dotted paths;\n"
      "a path that meets a list means each of its elements: choices.routed_experts.",
      "Examples:\n"
      "  switchyard import responses.jsonl.zst --name traffic --experts 64 --layers 27 --top-k 6 --out traffic\n"
      "  switchyard import vllm.jsonl --name chat --experts 128 --drop-layers 0 --tokens-field none --out chat\n"
      "  switchyard import log.jsonl --name log --experts 8 --routing-field response.experts --layers 32 --top-k 2 "
      "--prompt-tokens-field response.prompt_length --out log\n"
      "Exit code: 0 done, 85 stopped by a signal after committing what was whole, 2 wrong usage, 1 other errors.\n");
  auto add = parser.options().add_options();
  add("file", po::value<std::vector<std::string>>()->required()->composing()->value_name("FILE"),
      "lines of JSON; also without --file");
  add("name", po::value<std::string>()->required()->value_name("NAME"), "name of the dataset");
  add("out,o", po::value<std::string>()->required()->value_name("OUT"), "folder of the run");
  add("experts", po::value<int>()->required()->value_name("E"), "routed experts of a MoE layer");
  add("layers", po::value<int>()->value_name("L"),
      "layers that a token has experts of in a line; nested lists tell it");
  add("top-k", po::value<int>()->value_name("K"), "experts of a token in a layer; nested lists tell it");
  add("drop-layers", po::value<std::string>()->default_value(""),
      "layers of a line to leave out, from 0: those that are not routed");
  add("moe-layers", po::value<std::string>()->default_value(""),
      "decoder layer of each layer that is kept (default: its number in the line)");
  add("routing-field", po::value<std::string>()->default_value(""),
      "experts of all tokens; given, no other field is looked for");
  add("prompt-routing-field", po::value<std::string>()->default_value(""),
      "experts of the prompt, where they are apart");
  add("tokens-field", po::value<std::string>()->default_value(""),
      "token ids: one list of all, or PROMPT,COMPLETION; none: keep no ids");
  add("prompt-tokens-field", po::value<std::string>()->default_value(""),
      "number of prompt tokens, which tells prefill from decode");
  add("completion-tokens-field", po::value<std::string>()->default_value(""),
      "number of generated tokens, which tells where a trimmed routing begins");
  add("id-field", po::value<std::string>()->default_value(""), "the request's id (default: FILE:LINE)");
  add("category-field", po::value<std::string>()->default_value(""), "a label of the request");
  add("vocabulary", po::value<std::uint32_t>()->value_name("N"), "token ids are below N");
  add("tokenizer", po::value<std::string>()->value_name("DIR"), "folder with tokenizer.model, for the tokens' text");
  add("model-name", po::value<std::string>()->default_value("served"), "how the record calls the model");
  add_token_table_options(parser, "input,target");
  add("on-bad-line", po::value<std::string>()->default_value("fail"),
      "fail, or skip: count and name it in the record, and go on");
  add("segment-tokens", po::value<std::uint64_t>()->default_value(1 << 22),
      "tokens of a segment, the unit of restart; about, as lines stay whole");
  add("compress", po::bool_switch(), "shuffle + deflate token rows");
  add("no-stats", po::bool_switch(), "do not write OUT/stats.h5 at the end");
  add("quiet", po::bool_switch(), "no progress, no summary");
  parser.positional("file", -1);
  return parser;
}

/// "1,2,3" -> ascending numbers from 0.
std::vector<int> parse_numbers(const OptionParser& parser, const char* option) {
  const auto& text = parser.get<std::string>(option);
  std::vector<int> numbers;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find(',', at), text.size());
    int number = -1;
    const auto [rest, fault] = std::from_chars(text.data() + at, text.data() + end, number);
    if (fault != std::errc() || rest != text.data() + end || number > kMostLayers ||
        number < (numbers.empty() ? 0 : numbers.back() + 1))
      throw UsageError("is '" + text + "'", std::string("--") + option, "give ascending numbers, e.g. 0,1,2");
    numbers.push_back(number);
    at = end + 1;
  }
  return numbers;
}

/// A number from 1 on, 0 where it is not given.
int positive_or_unknown(const OptionParser& parser, const char* option) {
  if (!parser.has(option)) return 0;
  const int value = parser.get<int>(option);
  if (value < 1) throw UsageError("is " + std::to_string(value), std::string("--") + option, "give at least 1");
  return value;
}

ServedFormat asked_format(const OptionParser& parser) {
  ServedFormat format;
  format.experts = positive_or_unknown(parser, "experts");
  if (format.experts > kMostExperts)
    throw UsageError("is " + std::to_string(format.experts), "--experts",
                     "give at most " + std::to_string(kMostExperts));
  format.layers = positive_or_unknown(parser, "layers");
  format.top_k = positive_or_unknown(parser, "top-k");
  format.drop_layers = parse_numbers(parser, "drop-layers");
  ServedFields& fields = format.fields;
  fields.routing = parser.get<std::string>("routing-field");
  fields.prompt_routing = parser.get<std::string>("prompt-routing-field");
  fields.prompt_tokens = parser.get<std::string>("prompt-tokens-field");
  fields.completion_tokens = parser.get<std::string>("completion-tokens-field");
  fields.id = parser.get<std::string>("id-field");
  fields.category = parser.get<std::string>("category-field");
  fields.token_ids = parser.get<std::string>("tokens-field");
  if (fields.token_ids == kNone) fields.token_ids.clear();
  if (const std::size_t comma = fields.token_ids.find(','); comma != std::string::npos) {
    fields.prompt_ids = fields.token_ids.substr(0, comma);
    fields.token_ids.erase(0, comma + 1);
  }
  return format;
}

/// Everything an import decides before it touches OUT.
class ImportJob {
 public:
  explicit ImportJob(const OptionParser& parser);
  int run() const;

 private:
  void describe_model();
  std::vector<std::filesystem::path> paths() const;  // of files_
  json identity() const;
  std::string run_json() const;
  void finish(const ImportOutcome& outcome) const;

  const OptionParser& parser_;
  std::filesystem::path out_;
  std::string name_;
  CorpusFiles files_;
  BadDocument on_bad_line_;
  std::unique_ptr<Tokenizer> tokenizer_;
  ServedFormat format_;
  ModelFacts model_;
  TokenTableChoice tables_;
};

std::vector<std::filesystem::path> ImportJob::paths() const {
  std::vector<std::filesystem::path> found;
  for (const CorpusFile& file : *files_) found.emplace_back(file.path);
  return found;
}

ImportJob::ImportJob(const OptionParser& parser)
    : parser_(parser), out_(parser.get<std::string>("out")), name_(parser.get<std::string>("name")) {
  const auto& policy = parser.get<std::string>("on-bad-line");
  if (policy != "fail" && policy != "skip")
    throw UsageError("unknown policy '" + policy + "'", "--on-bad-line", "give fail or skip");
  on_bad_line_ = policy == "skip" ? BadDocument::skip : BadDocument::fail;
  if (parser.get<std::uint64_t>("segment-tokens") == 0) throw UsageError("is 0", "--segment-tokens", "give at least 1");
  std::vector<CorpusFile> files;
  for (const std::string& file : parser.get<std::vector<std::string>>("file")) {
    if (!std::filesystem::is_regular_file(file))
      throw Error("is not a file", file, "name files of JSON lines, plain, .gz or .zst");
    files.push_back({file, std::filesystem::file_size(file)});
  }
  files_ = std::make_shared<const std::vector<CorpusFile>>(std::move(files));
  if (parser.has("tokenizer")) tokenizer_ = open_tokenizer(parser.get<std::string>("tokenizer"));

  format_ = asked_format(parser);
  if (parser.has("vocabulary"))
    format_.vocabulary = parser.get<std::uint32_t>("vocabulary");
  else if (tokenizer_)
    format_.vocabulary = tokenizer_->vocabulary_size();
  format_ = detect_format(paths(), format_, on_bad_line_);
  if (parser.get<std::string>("tokens-field") == kNone) {
    format_.fields.prompt_ids.clear();
    format_.fields.token_ids.clear();
  }
  if (format_.has_ids() && format_.vocabulary == 0)
    throw UsageError("how many token ids are there? The lines hold ids at " + format_.fields.token_ids, "import",
                     "give --vocabulary N, or leave ids out with --tokens-field none");
  if (!format_.has_ids()) format_.vocabulary = 0;
  describe_model();
  tables_ = chosen_token_tables(parser, shape_of(model_));
}

void ImportJob::describe_model() {
  if (format_.top_k > format_.experts)
    throw UsageError("are " + std::to_string(format_.experts) + ", fewer than the " + std::to_string(format_.top_k) +
                         " that a token chooses",
                     "--experts", "give the number of routed experts of a layer");
  std::vector<int> kept;
  for (int layer = 0; layer < format_.layers; ++layer)
    if (std::find(format_.drop_layers.begin(), format_.drop_layers.end(), layer) == format_.drop_layers.end())
      kept.push_back(layer);
  if (static_cast<int>(kept.size()) != format_.kept_layers() || kept.empty())
    throw UsageError("is " + parser_.get<std::string>("drop-layers") + ", but a line has layers 0 to " +
                         std::to_string(format_.layers - 1),
                     "--drop-layers", "leave at least one of them");
  model_.moe_layers = parse_numbers(parser_, "moe-layers");
  if (model_.moe_layers.empty()) model_.moe_layers = kept;
  if (model_.moe_layers.size() != kept.size())
    throw UsageError(
        "names " + std::to_string(model_.moe_layers.size()) + " layers, but lines have " + std::to_string(kept.size()),
        "--moe-layers", "give the decoder layer of each");
  model_.family = "served";
  model_.name = parser_.get<std::string>("model-name");
  model_.n_layers = model_.moe_layers.back() + 1;
  model_.vocabulary = static_cast<int>(format_.vocabulary);
  model_.n_experts = format_.experts;
  model_.top_k = format_.top_k;
}

json ImportJob::identity() const {
  CorpusSpec spec;
  spec.name = name_;
  spec.path = files_->front().path;
  const CorpusIdentity files = identify(spec, files_);
  const ServedFields& fields = format_.fields;
  return {{"model", {{"name", model_.name}, {"family", model_.family}, {"vocabulary", model_.vocabulary}}},
          {"tokenizer", tokenizer_ ? tokenizer_->fingerprint() : kNone},
          {"corpora", {{{"name", name_}, {"files", files.files}, {"bytes", files.bytes}, {"hash", files.hash}}}},
          {"excluded_tokens", json::array()},
          {"record", to_string(RecordLevel::tokens)},
          {"experts", format_.experts},
          {"layers", format_.layers},
          {"top-k", format_.top_k},
          {"drop-layers", format_.drop_layers},
          {"moe-layers", model_.moe_layers},
          {"routing-field", fields.routing},
          {"prompt-routing-field", fields.prompt_routing},
          {"tokens-field", {fields.prompt_ids, fields.token_ids}},
          {"prompt-tokens-field", fields.prompt_tokens},
          {"completion-tokens-field", fields.completion_tokens},
          {"id-field", fields.id},
          {"category-field", fields.category},
          {"on-bad-line", parser_.get<std::string>("on-bad-line")},
          {"token-tables", parser_.get<std::string>("token-tables")}};
}

std::string ImportJob::run_json() const {
  const json environment = {{"version", version()}, {"commit", git_commit()}};
  return json{{"format", "switchyard-run"},
              {"identity", identity()},
              {"options", json(parser_.effective())},
              {"environment", environment}}
             .dump(2) +
         "\n";
}

int ImportJob::run() const {
  const RunLock lock(out_);
  const std::vector<SegmentEntry> committed = open_run_folder(out_, run_json());
  SourcePosition start;
  ImportOptions options;
  options.model = model_;
  options.format = format_;
  options.out = out_;
  options.next_segment = committed.size();
  for (const SegmentEntry& entry : committed) {
    const SegmentDetails details = SegmentDetails::parse(entry.details);
    options.categories.insert(options.categories.end(), details.new_categories.begin(), details.new_categories.end());
    start = details.next;
  }
  options.compress = parser_.flag("compress");
  options.tables = tables_;
  options.segment_tokens = parser_.get<std::uint64_t>("segment-tokens");
  if (!committed.empty() && !parser_.flag("quiet"))
    std::cerr << "continuing the run in " << out_.string() << " behind " << committed.size() << " committed segments\n";

  ImportOutcome outcome;
  if (start.corpus == 0) {
    ServedReader lines(paths(), format_, on_bad_line_);
    ProgressBar progress({{name_, files_}}, parser_.flag("quiet"));
    outcome = import_lines(lines, options, start, [&](const RouteProgress& at) { progress.update(at); });
    progress.finish();
  }
  const std::vector<SegmentEntry> segments = read_manifest(out_);
  write_run_master(out_, model_, {name_}, segments, tokenizer_.get());
  if (outcome.stopped) {
    std::cerr << "switchyard: stopped by a signal; " << segments.size() << " segments are committed in "
              << out_.string() << "; repeat the command to continue\n";
    return kExitRequeue;
  }
  finish(outcome);
  return 0;
}

void ImportJob::finish(const ImportOutcome& outcome) const {
  const Statistics reduced = reduce_runs(
      {out_}, {}, [](std::size_t, std::size_t) {}, Communicator::self());
  if (!parser_.flag("no-stats")) write_stats(out_ / "stats.h5", reduced);
  if (parser_.flag("quiet")) return;
  print_summary(std::cout, reduced);
  std::uint64_t skipped = 0;
  for (const SegmentEntry& entry : read_manifest(out_)) skipped += SegmentDetails::parse(entry.details).skipped;
  if (skipped > 0)
    std::cout << "\n" << with_commas(skipped) << " bad lines were skipped: /corpora/skipped_places names them\n";
  if (outcome.session_tokens > 0)
    std::cout << "\n" << with_commas(outcome.session_tokens) << " tokens in " << as_duration(outcome.seconds) << "\n";
  std::cout << "record: " << (out_ / "routing.h5").string()
            << (parser_.flag("no-stats") ? "" : "   statistics: " + (out_ / "stats.h5").string()) << "\n";
}

}  // namespace

int run_import(const Arguments& arguments) {
  OptionParser parser = make_parser();
  if (!parser.parse(arguments)) return 0;
  const Communicator comm = Communicator::world();
  if (comm.size() > 1)
    throw UsageError("runs in one process, here are " + std::to_string(comm.size()), "switchyard import",
                     "run it without mpirun");
  omp_set_num_threads(default_threads(comm));
  catch_stop_signals();
  return ImportJob(parser).run();
}

}  // namespace switchyard
