#include "pipeline/reduce.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "io/routing_reader.h"
#include "io/routing_writer.h"
#include "io/run_folder.h"
#include "io/stats_file.h"
#include "parallel/bf16.h"
#include "parallel/error.h"
#include "pipeline/analysis/dataset_names.h"
#include "pipeline/analysis/live_accumulators.h"
#include "pipeline/kernels/router.h"
#include "pipeline/route_loop.h"

namespace switchyard {
namespace {

using nlohmann::json;

constexpr std::uint64_t kRowsAtOnce = 1 << 17;

std::vector<Table> read_group(const RoutingReader& segment, const std::string& group) {
  std::vector<Table> tables;
  for (const std::string& path : segment.list(group)) tables.push_back(segment.read(path));
  return tables;
}

/// A run's folder and what its run.json and manifest say.
struct Run {
  std::filesystem::path folder;
  std::vector<std::string> corpora;
  std::vector<std::uint8_t> excluded_tokens;
  std::vector<SegmentEntry> segments;
  std::vector<std::uint64_t> corpus_of_segment;
  std::vector<std::uint16_t> document_groups;  // by row of /documents, when rows are recomputed
};

std::vector<std::uint16_t> read_document_groups(const Run& run) {
  std::vector<std::uint16_t> groups;
  for (const SegmentEntry& entry : run.segments) {
    const Table ids = RoutingReader(run.folder / entry.file).read("/documents/id");
    for (const std::string& id : std::get<std::vector<std::string>>(ids.values)) groups.push_back(document_group(id));
  }
  return groups;
}

/// Text of the token ids, which routing.h5 holds once a session of the run has ended.
std::vector<std::string> read_vocabulary(const Run& run) {
  const std::filesystem::path master = run.folder / "routing.h5";
  if (!std::filesystem::exists(master)) return {};
  const RoutingReader reader(master);
  if (!reader.contains("/vocabulary/piece")) return {};
  return std::get<std::vector<std::string>>(reader.read("/vocabulary/piece").values);
}

Run open_run(const std::filesystem::path& folder) {
  Run run;
  run.folder = folder;
  const json description = json::parse(read_run_json(folder));
  for (const json& corpus : description.at("identity").at("corpora")) run.corpora.push_back(corpus.at("name"));
  for (const std::uint32_t id : description.at("identity").at("excluded_tokens").get<std::vector<std::uint32_t>>()) {
    if (run.excluded_tokens.empty())
      run.excluded_tokens.resize(description.at("identity").at("model").at("vocabulary").get<std::size_t>(), 0);
    run.excluded_tokens.at(id) = 1;
  }
  run.segments = read_manifest(folder);
  for (const SegmentEntry& entry : run.segments) {
    run.corpus_of_segment.push_back(SegmentDetails::parse(entry.details).corpus);
    if (!std::filesystem::exists(folder / entry.file))
      throw Error("the manifest names a segment that is not there", (folder / entry.file).string(),
                  "copy the folder again, or route the corpus again");
  }
  if (run.segments.empty()) throw Error("has no committed segment", folder.string(), "route a corpus into it first");
  return run;
}

std::vector<float> from_half(const std::vector<std::uint16_t>& bits) {
  std::vector<float> values(bits.size());
  std::transform(bits.begin(), bits.end(), values.begin(), from_half_bits);
  return values;
}

/// Rows that end with a window's last token, as the accumulators see them.
class RowObserver {
 public:
  RowObserver(const RoutingReader& segment, const std::vector<std::uint8_t>& excluded,
              std::span<const std::uint16_t> document_groups, LiveAccumulators& live)
      : model_(segment.model()), excluded_(excluded), document_groups_(document_groups), live_(live) {}

  /// next: the token id after the last row, for its target.
  void observe(const TokenRows& rows, std::optional<std::uint32_t> next) {
    const std::size_t n = rows.size();
    std::vector<std::int64_t> target(n, -1);
    for (std::size_t t = 0; t < n; ++t) {
      if (std::isnan(rows.loss[t])) continue;
      if (t + 1 < n)
        target[t] = rows.id[t + 1];
      else if (next)
        target[t] = *next;
    }
    const std::vector<std::uint8_t> included = included_tokens(rows.id, excluded_);
    std::vector<std::uint16_t> group;
    for (const std::uint32_t document : rows.document) {
      if (document >= document_groups_.size())
        throw Error("a token's document " + std::to_string(document) + " is not among the run's " +
                    std::to_string(document_groups_.size()));
      group.push_back(document_groups_[document]);
    }

    const std::size_t n_layers = rows.layers.size();
    std::vector<Routing> routing(n_layers);
    std::vector<std::vector<double>> probability_sum(n_layers);
    std::vector<LayerView> views(n_layers);
    for (std::size_t l = 0; l < n_layers; ++l) {
      Routing& of_layer = routing[l];
      if (rows.layers[l].logits.empty()) {
        of_layer.weights = from_half(rows.layers[l].weight);
        of_layer.entropy = from_half(rows.layers[l].entropy);
      } else {
        of_layer = route_again(rows.layers[l].logits, n, static_cast<int>(l));
        probability_sum[l] = probability_sums(of_layer.probabilities, included);
      }
      views[l] = {rows.layers[l].expert,    of_layer.weights,     of_layer.entropy,  of_layer.margin,
                  of_layer.top_probability, of_layer.log_sum_exp, probability_sum[l]};
    }
    live_.observe({rows.id, rows.position, group, target, rows.predicted, rows.loss, included, views});
  }

 private:
  Routing route_again(const std::vector<float>& logits, std::size_t n, int layer) const {
    Tensor copy(DType::f32, static_cast<std::int64_t>(n), model_.n_experts);
    std::copy(logits.begin(), logits.end(), copy.data<float>());
    return choose_experts(std::move(copy), model_.top_k,
                          "layer " + std::to_string(model_.moe_layers[static_cast<std::size_t>(layer)]));
  }
  const ModelFacts& model_;
  const std::vector<std::uint8_t>& excluded_;
  std::span<const std::uint16_t> document_groups_;
  LiveAccumulators& live_;
};

/// The fields that token rows do not hold.
void take_unrecorded(Accumulators& recomputed, const Accumulators& stored) {
  recomputed.margin = stored.margin;
  recomputed.margin_histogram = stored.margin_histogram;
  recomputed.top_probability = stored.top_probability;
  recomputed.top_probability_histogram = stored.top_probability_histogram;
  recomputed.confident = stored.confident;
  recomputed.probability_sum = stored.probability_sum;
  recomputed.z_sum = stored.z_sum;
}

}  // namespace

Accumulators recompute_segment(const std::filesystem::path& segment_path, const std::filesystem::path& next_segment,
                               const std::vector<std::uint8_t>& excluded_tokens,
                               std::span<const std::uint16_t> document_groups, const Accumulators& stored) {
  const RoutingReader segment(segment_path);
  if (segment.level() == RecordLevel::counts)
    throw Error("holds no token rows to recompute from", segment_path.string(),
                "reduce without --recompute, or route with --record tokens");
  TokenTableChoice tables;
  for (std::size_t which = 0; which < kTokenTables; ++which) {
    tables.keep[which] = !stored.token_tables[which].cells().empty();
    tables.capacity = std::max(tables.capacity, stored.token_bounds[which].capacity);
  }
  LiveAccumulators live(stored.shape, tables);
  RowObserver observer(segment, excluded_tokens, document_groups, live);

  const std::uint64_t n_rows = segment.n_rows();
  for (std::uint64_t first = 0; first < n_rows;) {
    // Windows stay whole: rows after the last window's begin wait for the next turn.
    std::uint64_t count = std::min(kRowsAtOnce, n_rows - first);
    if (first + count < n_rows) {
      const std::vector<std::uint32_t> position = segment.read_rows(first, count).position;
      std::uint64_t end = count;
      while (end > 1 && position[end - 1] != 0) --end;
      if (end > 1) count = end - 1;
    }
    std::optional<std::uint32_t> next;
    if (first + count < n_rows)
      next = segment.read_rows(first + count, 1).id[0];
    else if (!next_segment.empty()) {
      const RoutingReader following(next_segment);
      if (following.n_rows() > 0) next = following.read_rows(0, 1).id[0];
    }
    observer.observe(segment.read_rows(first, count), next);
    first += count;
  }
  live.add_documents(stored.documents[0]);
  Accumulators recomputed = live.take(Communicator::self());
  if (segment.level() == RecordLevel::tokens) take_unrecorded(recomputed, stored);
  return recomputed;
}

namespace {

/// One corpus of a run, on rank 0 the sum over all ranks.
Dataset reduce_corpus(const Run& run, std::size_t corpus, const ModelFacts& model, bool recompute,
                      const std::function<void()>& on_segment, const Communicator& comm) {
  Dataset dataset{run.corpora[corpus], Accumulators(shape_of(model)), RankLoad(model.n_moe_layers(), model.top_k), {}};
  for (std::size_t s = 0; s < run.segments.size(); ++s) {
    if (run.corpus_of_segment[s] != corpus) continue;
    on_segment();
    if (s % static_cast<std::size_t>(comm.size()) != static_cast<std::size_t>(comm.rank())) continue;
    const std::filesystem::path path = run.folder / run.segments[s].file;
    const RoutingReader segment(path);
    Accumulators stored =
        from_tables(read_group(segment, "/accumulators"), "/accumulators", dataset.accumulators.shape).at(0);
    if (recompute) {
      const std::filesystem::path next =
          s + 1 < run.segments.size() ? run.folder / run.segments[s + 1].file : std::filesystem::path();
      stored = recompute_segment(path, next, run.excluded_tokens, run.document_groups, stored);
    }
    dataset.accumulators.merge(stored);
    dataset.ranks.add(segment);
    dataset.cost.add(segment);
  }
  dataset.accumulators.reduce_to_root(comm);
  dataset.ranks.reduce_to_root(comm);
  dataset.cost.reduce_to_root(comm);
  return dataset;
}

}  // namespace

Statistics reduce_runs(const std::vector<std::filesystem::path>& sources, const ReduceOptions& options,
                       const std::function<void(std::size_t, std::size_t)>& on_segment, const Communicator& comm) {
  // Runs are opened first, so that a missing segment is named before any work is done.
  std::map<std::filesystem::path, Run> runs;
  std::size_t n_segments = 0;
  for (const std::filesystem::path& source : sources) {
    if (std::filesystem::is_regular_file(source)) {
      if (options.recompute)
        throw Error("holds no token rows to recompute from", source.string(), "give --recompute runs' folders only");
      continue;
    }
    Run run = open_run(source);
    if (options.recompute) run.document_groups = read_document_groups(run);
    n_segments += run.segments.size();
    runs.emplace(source, std::move(run));
  }

  Statistics reduced;
  std::vector<NamedSource> named;
  std::size_t done = 0;
  for (const std::filesystem::path& source : sources) {
    Statistics part;
    if (const auto found = runs.find(source); found != runs.end()) {
      const Run& run = found->second;
      part.vocabulary = read_vocabulary(run);
      part.model = RoutingReader(run.folder / run.segments.front().file).model();
      for (std::size_t corpus = 0; corpus < run.corpora.size(); ++corpus)
        part.datasets.push_back(reduce_corpus(
            run, corpus, part.model, options.recompute,
            [&] {
              if (comm.rank() == 0) on_segment(++done, n_segments);
            },
            comm));
    } else {
      part = from_statistics_tables(read_tables(source, std::string(kStatsFormat)), source.string());
    }
    if (options.peak_flops) part.peak_flops = options.peak_flops;
    if (named.empty())
      reduced.peak_flops = part.peak_flops;
    else if (part.peak_flops != reduced.peak_flops)  // of other machines: no share of a common peak
      reduced.peak_flops.reset();
    if (reduced.datasets.empty()) reduced.model = part.model;
    if (!(shape_of(part.model) == shape_of(reduced.model)))
      throw Error("routed a model of another shape than " + sources.front().string(), source.string(),
                  "reduce each model's runs into a file of its own");
    if (named.empty())
      reduced.vocabulary = part.vocabulary;
    else if (part.vocabulary != reduced.vocabulary)  // of another tokenizer: the ids have no common text
      reduced.vocabulary.clear();
    named.push_back({source, {}});
    for (Dataset& dataset : part.datasets) {
      named.back().datasets.push_back(dataset.name);
      reduced.datasets.push_back(std::move(dataset));
    }
  }
  const std::vector<std::string> names = dataset_names(named);
  for (std::size_t d = 0; d < names.size(); ++d) reduced.datasets[d].name = names[d];
  return reduced;
}

}  // namespace switchyard
