#include "jobs/run_inputs.h"

#include <omp.h>

#include <algorithm>
#include <iostream>
#include <limits>
#include <nlohmann/json.hpp>

#include "io/corpus/document_reader.h"
#include "io/placement_file.h"
#include "io/staging.h"
#include "jobs/format.h"
#include "jobs/machine.h"
#include "jobs/progress.h"
#include "jobs/version.h"
#include "parallel/error.h"
#include "parallel/stop_signal.h"

namespace switchyard {

using nlohmann::json;

const char* const kCorpusKeys =
    "A corpus is a file, a folder or a glob of .txt, .jsonl, .csv or .tsv, also .gz and .zst. Keys behind its path:\n"
    "  format=text|jsonl|csv|tsv   default: by the file's name\n"
    "  split=file|line|blank       text: what one document is (default file)\n"
    "  field=NAME                  JSON key, column name or number of the text (default text)\n"
    "  tokens=NAME                 JSON key of ready token ids (default tokens)\n"
    "  id=NAME  category=NAME      JSON key or column of the document's id and label\n"
    "  only=LABEL                  documents of this category alone: a file of several can be several corpora\n"
    "  header=yes|no               CSV, TSV: whether the first record names the columns (default yes)";

void add_run_options(OptionParser& parser) {
  auto add = parser.options().add_options();
  add("model", po::value<std::string>()->required()->value_name("DIR"),
      "Hugging Face folder: config.json, *.safetensors, tokenizer.model");
  add("corpus", po::value<std::vector<std::string>>()->required()->composing()->value_name("NAME=PATH[,key=value ...]"),
      "a corpus; repeat for more");
  add_device_options(parser);
  add("placement", po::value<std::string>()->default_value("contiguous"),
      "contiguous, round-robin, or a JSON file {\"rank_of_expert\": [[...], ...]}, a row for each MoE layer, of ranks "
      "or, "
      "for an expert with copies, lists of ranks (`place` makes such files)");
  add("copies", po::value<std::string>()->default_value("token"),
      "which copy of an expert a token goes to: token, its number plus its rank's, modulo the copies; local, the copy "
      "on its own rank "
      "if "
      "there is one");
  add("stage-to", po::value<std::string>()->value_name("DIR"),
      "copy the checkpoint once a node to DIR, e.g. $TMPDIR on its own disk, and read it there; the copy stays for the "
      "next run");
  add("context", po::value<std::int64_t>()->value_name("N"),
      "tokens of a window; attention never crosses one (default: the model's limit, at most 2048)");
  add("batch-tokens", po::value<std::int64_t>()->value_name("N"),
      "most tokens of a rank's step (default 4096, at least the context)");
  add("threads", po::value<int>()->value_name("N"), "threads of each rank (default: its share of the CPUs it may use)");
  add("add-bos", po::bool_switch(), "begin each document with the BOS token");
  add("template", po::value<std::string>()->default_value(""),
      "prompt around each text, e.g. '[INST] {text} [/INST]'; {NAME} is another field");
  add("max-documents", po::value<std::uint64_t>()->default_value(0), "of each corpus; 0: all");
  add("max-tokens", po::value<std::uint64_t>()->default_value(0), "of each corpus; 0: all");
  add("seed", po::value<std::uint64_t>()->default_value(0), "of what is chosen at random");
  add("on-bad-document", po::value<std::string>()->default_value("fail"),
      "fail, or skip: count and name it in the record, and go on");
}

std::int64_t positive(const OptionParser& parser, const char* name, std::int64_t fallback) {
  const std::int64_t value = parser.has(name) ? parser.get<std::int64_t>(name) : fallback;
  if (value < 1 || value > std::numeric_limits<std::int32_t>::max() / 64)
    throw UsageError("is " + std::to_string(value), std::string("--") + name, "give a number from 1 to 33,554,431");
  return value;
}

namespace {

std::filesystem::path folder_name(const std::filesystem::path& path) {
  return std::filesystem::weakly_canonical(path).filename();
}

/// Collective. The checkpoint's folder as this rank reads it.
std::filesystem::path checkpoint_folder(const OptionParser& parser, const Communicator& comm) {
  std::filesystem::path source = parser.get<std::string>("model");
  if (!parser.has("stage-to") || parser.flag("dry-run")) return source;
  const std::filesystem::path node_folder = parser.get<std::string>("stage-to");
  const bool speaks = comm.rank() == 0 && !parser.flag("quiet");
  CopyProgress progress("staging", !speaks);
  const StagedCheckpoint staged = stage_checkpoint(
      source, node_folder,
      [&](std::uint64_t copied, std::uint64_t all) {
        progress.update(copied, all);
        return stop_signal() == 0;
      },
      comm);
  progress.finish();
  const std::int64_t copies = comm.sum(std::int64_t{staged.bytes > 0});
  const double slowest = comm.max(staged.seconds);
  const auto bytes = static_cast<double>(comm.max(static_cast<std::int64_t>(staged.bytes)));
  if (speaks && copies > 0)
    std::cerr << "staged " << as_bytes_text(bytes) << " on " << copies << (copies == 1 ? " node" : " nodes") << " to "
              << node_folder.string() << " in " << as_duration(slowest) << ", " << as_bytes_text(bytes / slowest)
              << "/s\n";
  else if (speaks && staged.folder != source)
    std::cerr << "the checkpoint is read from its copy in " << staged.folder.string() << "\n";
  return staged.folder;
}

}  // namespace

RunInputs::RunInputs(const OptionParser& options, const Communicator& ranks)
    : parser(options),
      comm(ranks),
      checkpoint(checkpoint_folder(parser, comm)),
      config(ModelConfig::parse(checkpoint.config_text(), (checkpoint.folder() / "config.json").string())),
      facts(config.facts(folder_name(parser.get<std::string>("model")).string())),
      tokenizer(open_tokenizer(parser.get<std::string>("model"))),
      device(choose_device(parser, comm)),
      context(positive(parser, "context", std::min(config.max_positions, 2048))),
      batch_tokens(positive(parser, "batch-tokens", std::max<std::int64_t>(4096, context))),
      threads(parser.has("threads") ? parser.get<int>("threads") : default_threads(comm)),
      binding(gather_binding(threads, device, comm)) {
  choose_attention(device, parser, config.attention_shape(), context, comm);
  choose_grouped_matmul(device, parser, config.experts_of_rank(comm.size()), comm);
  if (threads < 1) throw UsageError("is " + std::to_string(threads), "--threads", "give at least 1");
  if (context > config.max_positions && comm.rank() == 0 && !parser.flag("quiet"))
    std::cerr << "note: windows of " << context << " tokens are longer than the " << config.max_positions
              << " positions that the model was made for\n";
  if (batch_tokens < context)
    throw UsageError("is less than the context of " + std::to_string(context), "--batch-tokens",
                     "a window must fit into a batch");
  const auto& policy = parser.get<std::string>("on-bad-document");
  if (policy != "fail" && policy != "skip")
    throw UsageError("unknown policy '" + policy + "'", "--on-bad-document", "give fail or skip");
  reader.on_bad_document = policy == "skip" ? BadDocument::skip : BadDocument::fail;
  reader.prompt_template = parser.get<std::string>("template");
  if (tokenizer && tokenizer->vocabulary_size() > static_cast<std::uint32_t>(config.vocabulary))
    throw Error("has " + std::to_string(tokenizer->vocabulary_size()) + " tokens, but the model's vocabulary holds " +
                    std::to_string(config.vocabulary),
                parser.get<std::string>("model") + "/tokenizer.model", "copy the tokenizer that belongs to the model");
  omp_set_num_threads(threads);
  read_corpora();
  if (comm.rank() != 0 || parser.flag("quiet")) return;
  std::cerr << describe(binding);
  if (const std::optional<std::string> crowded = oversubscription(binding))
    std::cerr << "warning: " << *crowded << "\n";
}

void RunInputs::read_corpora() {
  for (const std::string& text : parser.get<std::vector<std::string>>("corpus")) {
    corpora.push_back(CorpusSpec::parse(text));
    const std::string& name = corpora.back().name;
    if (std::count_if(corpora.begin(), corpora.end(), [&](const CorpusSpec& c) { return c.name == name; }) > 1)
      throw UsageError("two corpora are named '" + name + "'", "--corpus", "give each its own name");
  }
  if (comm.rank() != 0) return;
  for (const CorpusSpec& corpus : corpora) {
    const CorpusFiles& files = corpus_files.emplace_back(list_files(corpus));
    // A column that is not there is said now, not when the corpora before it have been routed.
    CorpusSpec any = corpus;
    any.only.clear();
    static_cast<void>(DocumentReader(std::move(any), files, reader).next());
    corpus_identity.push_back(identify(corpus, files));
  }
}

ExpertPlacement RunInputs::placement() const {
  const auto& name = parser.get<std::string>("placement");
  if (name == "contiguous" || facts.n_moe_layers() == 0)
    return ExpertPlacement::contiguous(facts.n_moe_layers(), facts.n_experts, comm.size());
  if (name == "round-robin") return ExpertPlacement::round_robin(facts.n_moe_layers(), facts.n_experts, comm.size());
  return read_placement_file(name, facts.n_moe_layers(), facts.n_experts, comm.size(),
                             parse_copy_rule(parser.get<std::string>("copies")));
}

void RunInputs::plan_memory(const ExpertPlacement& placement, std::uint64_t besides) const {
  if (!device.on_gpu()) return;
  ModelMemory memory = Model::memory(config, placement, comm.rank(), model_options(), batch_tokens);
  memory.activation_bytes += besides;
  plan_gpu_memory(device, memory, 0, 0, parser.flag("quiet"), comm);
}

LoadedModel RunInputs::load(const ExpertPlacement& placement, ExpertTransport& transport) const {
  LoadedModel loaded =
      load_model(checkpoint, config, placement, model_options(), comm, transport, parser.flag("quiet"));
  if (device.on_gpu() && comm.rank() == 0 && !parser.flag("quiet")) std::cerr << "rank 0 " << loaded.how_fast << "\n";
  return loaded;
}

BlockOptions RunInputs::block_options() const {
  BlockOptions options;
  options.context = context;
  options.add_bos = parser.flag("add-bos");
  options.max_documents = parser.get<std::uint64_t>("max-documents");
  options.max_tokens = parser.get<std::uint64_t>("max-tokens");
  options.seed = parser.get<std::uint64_t>("seed");
  options.vocabulary = static_cast<std::uint32_t>(config.vocabulary);
  options.reader = reader;
  return options;
}

json RunInputs::identity(const BlockOptions& blocks) const {
  json described = json::array();
  for (std::size_t c = 0; c < corpora.size(); ++c)
    described.push_back({{"name", corpora[c].name},
                         {"option", parser.get<std::vector<std::string>>("corpus")[c]},
                         {"files", corpus_identity[c].files},
                         {"bytes", corpus_identity[c].bytes},
                         {"hash", corpus_identity[c].hash}});
  json identity = {{"model",
                    {{"name", facts.name},
                     {"family", facts.family},
                     {"hash", checkpoint.fingerprint()},
                     {"vocabulary", facts.vocabulary}}},
                   {"tokenizer", tokenizer ? tokenizer->fingerprint() : "none"},
                   {"corpora", std::move(described)},
                   {"precision", precision_name()},
                   {"context", context},
                   {"block-tokens", blocks.block_tokens},
                   {"add-bos", blocks.add_bos},
                   {"template", reader.prompt_template},
                   {"max-documents", blocks.max_documents},
                   {"max-tokens", blocks.max_tokens},
                   {"sample", blocks.sample},
                   {"seed", blocks.seed},
                   {"on-bad-document", parser.get<std::string>("on-bad-document")}};
  if (device.on_gpu()) identity["device"] = "gpu";                                  // whose bits are not those of a CPU
  if (device.attention == AttentionKernel::cudnn) identity["attention"] = "cudnn";  // nor those of our own kernel
  if (device.grouped_matmul != GroupedMatmulKind::cublaslt) identity["grouped-matmul"] = name_of(device.grouped_matmul);
  return identity;
}

std::string RunInputs::run_json(const json& identity) const {
  json options(parser.effective());
  options["context"] = context;
  options["batch-tokens"] = batch_tokens;
  options["threads"] = threads;
  options["device"] = device.on_gpu() ? "gpu" : "cpu";
  options["transport"] = device.transport;
  options["overlap"] = device.overlap ? "on" : "off";
  options["precision"] = precision_name();
  if (device.on_gpu()) options["attention"] = device.attention == AttentionKernel::cudnn ? "cudnn" : "own";
  if (device.on_gpu()) options["grouped-matmul"] = name_of(device.grouped_matmul);
  json environment = {{"version", version()},
                      {"commit", git_commit()},
                      {"ranks", comm.size()},
                      {"device", device.description()},
                      {"batch_invariant", true}};
  if (device.on_gpu()) environment["attention"] = device.attention_text;
  for (int rank = 0; rank < comm.size(); ++rank) {
    const RankBinding& bound = binding.ranks[static_cast<std::size_t>(rank)];
    environment["hosts"].push_back(binding.host_of(rank));
    environment["cpus"].push_back(bound.cpus);
    environment["gpus"].push_back(bound.gpu ? json(*bound.gpu) : json());
  }
  return json{{"format", "switchyard-run"}, {"identity", identity}, {"options", options}, {"environment", environment}}
             .dump(2) +
         "\n";
}

std::vector<CorpusExtent> RunInputs::extents() const {
  std::vector<CorpusExtent> found;
  for (std::size_t c = 0; c < corpus_files.size(); ++c)
    found.push_back({corpora[c].name, corpus_files[c], parser.get<std::uint64_t>("max-tokens")});
  return found;
}

}  // namespace switchyard
