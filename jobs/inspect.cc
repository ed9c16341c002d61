#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "io/durable.h"
#include "io/manifest.h"
#include "io/routing_reader.h"
#include "io/routing_writer.h"
#include "io/run_folder.h"
#include "io/stats_file.h"
#include "jobs/command.h"
#include "jobs/format.h"
#include "jobs/options.h"
#include "parallel/communicator.h"
#include "parallel/error.h"
#include "pipeline/analysis/experiment.h"
#include "pipeline/analysis/trace.h"
#include "pipeline/route_loop.h"

namespace switchyard {
namespace {

void print_table(const Table& table) {
  std::cout << "  " << table.path << " [";
  for (std::size_t d = 0; d < table.shape.size(); ++d)
    std::cout << (d > 0 ? ", " : "") << (d < table.dimensions.size() ? table.dimensions[d] : "?") << " "
              << table.shape[d];
  std::cout << "] " << table.units << "  " << table.long_name << "\n";
}

/// Every segment that the manifest names, checked against it. Returns the number of faults.
int inspect_segments(const std::filesystem::path& run) {
  const std::vector<SegmentEntry> segments = read_manifest(run);
  std::uint64_t tokens = 0;
  std::uint64_t bytes = 0;
  int faults = 0;
  for (const SegmentEntry& entry : segments) {
    tokens += entry.tokens;
    bytes += entry.bytes;
    if (const std::optional<std::string> fault = segment_fault(run, entry)) {
      std::cout << "FAULT " << entry.file << ": " << *fault << "\n";
      ++faults;
    }
  }
  std::cout << segments.size() << " committed segments, " << with_commas(tokens) << " tokens, "
            << as_bytes_text(static_cast<double>(bytes)) << "; " << (segments.size() - static_cast<std::size_t>(faults))
            << " whole, checksums equal\n";
  return faults;
}

/// A value as it is read aloud: text without quotes.
std::string text_of(const nlohmann::json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

int inspect_run(const std::filesystem::path& run) {
  const nlohmann::json description = nlohmann::json::parse(read_run_json(run));
  const nlohmann::json& identity = description.at("identity");
  const bool is_ablation = identity.contains("ablation");
  std::cout << (is_ablation ? "ablation of " : "run of ") << identity.at("model").at("name").get<std::string>() << " ("
            << identity.at("model").at("family").get<std::string>() << "), "
            << (is_ablation ? "mode " + identity.at("ablation").at("mode").get<std::string>()
                            : "record " + identity.at("record").get<std::string>());
  for (const char* option : {"precision", "context"})
    if (identity.contains(option)) std::cout << ", " << option << " " << text_of(identity.at(option));
  std::cout << "\n";
  for (const nlohmann::json& corpus : identity.at("corpora"))
    std::cout << "corpus " << corpus.at("name").get<std::string>() << ": " << corpus.at("files") << " files, "
              << as_bytes_text(corpus.at("bytes").get<double>()) << "\n";
  if (is_ablation) {
    const bool complete = std::filesystem::exists(run / "ablation.h5");
    std::cout << "the ablation is " << (complete ? "complete" : "not complete: repeat its command to continue") << "\n";
    return 0;
  }
  const int faults = inspect_segments(run);
  const std::vector<SegmentEntry> segments = read_manifest(run);
  const bool complete =
      !segments.empty() && SegmentDetails::parse(segments.back().details).next.corpus >= identity.at("corpora").size();
  std::cout << (complete ? "the run is complete" : "the run is not complete: repeat its command to continue") << "\n";
  if (!std::filesystem::exists(run / "routing.h5"))
    std::cout << "routing.h5 is not there yet: it is written at the end of a session\n";
  return faults == 0 ? 0 : 1;
}

int inspect_file(const std::filesystem::path& path) {
  if (const std::string kind = experiment_kind(path); !kind.empty()) {
    const Experiment experiment = read_experiment(path);
    std::cout << path.string() << ": what the experiment " << kind << " found of " << experiment.model.name << "\n";
    for (const Table& table : experiment.tables) print_table(table);
    return 0;
  }
  try {
    const RoutingReader reader(path);
    const ModelFacts& model = reader.model();
    std::cout << path.string() << ": switchyard record, level " << to_string(reader.level()) << ", "
              << with_commas(reader.n_rows()) << " token rows"
              << (reader.layout().absent.empty() ? "" : ", without " + to_string(reader.layout().absent)) << "\n"
              << "model " << model.name << " (" << model.family << "): " << model.n_layers << " layers, "
              << model.n_moe_layers() << " with " << model.n_experts << " experts, top-" << model.top_k << "\n";
    for (const std::string& name : reader.list("/")) std::cout << "  " << name << "\n";
    const std::filesystem::path folder = std::filesystem::absolute(path).parent_path();
    if (path.filename() == "routing.h5" && std::filesystem::exists(folder / "manifest.jsonl"))
      return inspect_segments(folder) == 0 ? 0 : 1;
    return 0;
  } catch (const Error& not_a_record) {
    if (std::string(not_a_record.what()).find(kStatsFormat) == std::string::npos) throw;
  }
  std::cout << path.string() << ": switchyard statistics\n";
  for (const Table& table : read_tables(path, std::string(kStatsFormat))) print_table(table);
  return 0;
}

int trace_run(const std::filesystem::path& run, const std::filesystem::path& to, StepRange steps) {
  std::ostringstream trace;
  const std::uint64_t written = write_trace(trace, run, steps);
  write_whole(to, trace.str());
  std::cout << written << (written == 1 ? " step" : " steps") << " in " << to.string()
            << ": open it in chrome://tracing or in Perfetto\n";
  return 0;
}

}  // namespace

int run_inspect(const Arguments& arguments) {
  OptionParser parser("inspect", "inspect RUN|FILE [--trace TRACE --steps A-B]",
                      "Prints what a run's folder, a segment, routing.h5, stats.h5 or the file of an experiment holds. "
                      "Of a run, checks every "
                      "committed segment's size and checksum and names\n"
                      "what is missing; exit code 1 when something is. With --trace writes instead what each rank "
                      "did when, as a trace to look at in a browser.",
                      "Examples:\n  switchyard inspect run\n  switchyard inspect run/segments/segment-000000.h5\n"
                      "  switchyard inspect run --trace trace.json --steps 10-12\n");
  auto add = parser.options().add_options();
  add("path", po::value<std::string>()->required()->value_name("RUN|FILE"), "what to look at; also without --path");
  add("trace", po::value<std::string>()->value_name("TRACE"),
      "write the steps' trace (Chrome's JSON, as Perfetto reads it): ranks as processes, on one clock");
  add("steps", po::value<std::string>()->default_value("0-3")->value_name("A-B"), "of the run, from 0, for --trace");
  parser.positional("path", 1);
  if (!parser.parse(arguments)) return 0;
  if (Communicator::world().rank() != 0) return 0;
  const std::filesystem::path path = parser.get<std::string>("path");
  if (!std::filesystem::exists(path))
    throw Error("does not exist", path.string(), "name a run's folder or one of its files");
  if (parser.has("trace"))
    return trace_run(path, parser.get<std::string>("trace"), parse_step_range(parser.get<std::string>("steps")));
  return std::filesystem::is_directory(path) ? inspect_run(path) : inspect_file(path);
}

}  // namespace switchyard
