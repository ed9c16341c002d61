#include "pipeline/reduce.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
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
#include "pipeline/first_documents.h"
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

/// Rows that end with a window's last token, as the accumulators see them, phase by phase.
class RowObserver {
 public:
  RowObserver(const ModelFacts& model, const std::vector<std::uint8_t>& excluded,
              std::span<const std::uint16_t> document_groups, TokenTableChoice tables)
      : model_(model), excluded_(excluded), document_groups_(document_groups), tables_(tables) {}

  /// next: the token id after the last row, for its target.
  void observe(const TokenRows& rows, std::optional<std::uint32_t> next) {
    const std::size_t n = rows.size();
    const std::vector<std::int64_t> target = targets(rows, next);
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
    std::vector<LayerView> views(n_layers);
    for (std::size_t l = 0; l < n_layers; ++l) {
      Routing& of_layer = routing[l];
      if (rows.layers[l].logits.empty()) {
        of_layer.weights = from_half(rows.layers[l].weight);
        of_layer.entropy = from_half(rows.layers[l].entropy);
      } else {
        of_layer = route_again(rows.layers[l].logits, n, static_cast<int>(l));
      }
      views[l] = {rows.layers[l].expert,
                  of_layer.weights,
                  of_layer.entropy,
                  of_layer.margin,
                  of_layer.top_probability,
                  of_layer.log_sum_exp,
                  {}};
    }
    for (std::size_t phase = 0; phase < kTokenPhases; ++phase) {
      const auto count = std::count(rows.phase.begin(), rows.phase.end(), phase);
      if (count == 0) continue;
      std::vector<std::uint8_t> of_phase;
      if (static_cast<std::size_t>(count) < n)
        for (const std::uint8_t number : rows.phase) of_phase.push_back(number == phase ? 1 : 0);
      std::vector<std::vector<double>> probability_sum(n_layers);
      for (std::size_t l = 0; l < n_layers; ++l) {
        if (rows.layers[l].logits.empty()) continue;
        probability_sum[l] = probability_sums(routing[l].probabilities, both(included, of_phase));
        views[l].probability_sum = probability_sum[l];
      }
      live(static_cast<TokenPhase>(phase))
          .observe({rows.id, rows.position, group, target, rows.predicted, rows.loss, included, views, of_phase});
    }
  }

  LiveAccumulators& live(TokenPhase phase) {
    auto& of_phase = live_.at(static_cast<std::size_t>(phase));
    if (!of_phase) of_phase.emplace(shape_of(model_), tables_);
    return *of_phase;
  }

  /// Of the phases met.
  std::vector<PhaseSums> take() {
    std::vector<PhaseSums> phases;
    for (std::size_t phase = 0; phase < kTokenPhases; ++phase)
      if (live_[phase]) phases.push_back({static_cast<TokenPhase>(phase), live_[phase]->take(Communicator::self())});
    return phases;
  }

 private:
  /// [n] the id that follows in the document, -1 where there is none or it is not known.
  static std::vector<std::int64_t> targets(const TokenRows& rows, std::optional<std::uint32_t> next) {
    const std::size_t n = rows.size();
    std::vector<std::int64_t> target(n, -1);
    for (std::size_t t = 0; t < rows.id.size(); ++t) {
      const bool last =
          rows.loss.empty() ? t + 1 == n || rows.document[t + 1] != rows.document[t] : std::isnan(rows.loss[t]);
      if (last) continue;
      if (t + 1 < n)
        target[t] = rows.id[t + 1];
      else if (next)
        target[t] = *next;
    }
    return target;
  }

  /// Flags set in both, where an empty one has all set.
  static std::vector<std::uint8_t> both(std::vector<std::uint8_t> a, const std::vector<std::uint8_t>& b) {
    if (a.empty() || b.empty()) return a.empty() ? b : a;
    std::transform(a.begin(), a.end(), b.begin(), a.begin(), std::bit_and<>());
    return a;
  }

  Routing route_again(const std::vector<float>& logits, std::size_t n, int layer) const {
    Tensor copy(DType::f32, static_cast<std::int64_t>(n), model_.n_experts);
    std::copy(logits.begin(), logits.end(), copy.data<float>());
    return choose_experts(std::move(copy), model_.top_k,
                          "layer " + std::to_string(model_.moe_layers[static_cast<std::size_t>(layer)]));
  }
  const ModelFacts& model_;
  const std::vector<std::uint8_t>& excluded_;
  std::span<const std::uint16_t> document_groups_;
  TokenTableChoice tables_;
  std::array<std::optional<LiveAccumulators>, kTokenPhases> live_;
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

std::vector<PhaseSums> sums_of_rows(const ModelFacts& model, const TokenRows& rows, TokenTableChoice tables,
                                    std::span<const std::uint16_t> document_groups) {
  const std::vector<std::uint8_t> none_excluded;
  RowObserver observer(model, none_excluded, document_groups, tables);
  observer.observe(rows, std::nullopt);
  return observer.take();
}

std::vector<PhaseSums> recompute_segment(const std::filesystem::path& segment_path,
                                         const std::filesystem::path& next_segment,
                                         const std::vector<std::uint8_t>& excluded_tokens,
                                         std::span<const std::uint16_t> document_groups,
                                         const std::vector<PhaseSums>& stored) {
  const RoutingReader segment(segment_path);
  if (segment.level() == RecordLevel::counts)
    throw Error("holds no token rows to recompute from", segment_path.string(),
                "reduce without --recompute, or route with --record tokens");
  TokenTableChoice tables;
  for (std::size_t which = 0; which < kTokenTables; ++which)
    tables.keep[which] = std::any_of(stored.begin(), stored.end(), [which](const PhaseSums& phase) {
      return !phase.sums.token_tables[which].cells().empty();
    });
  RowObserver observer(segment.model(), excluded_tokens, document_groups, tables);

  const std::uint64_t n_rows = segment.n_rows();
  for (std::uint64_t first = 0; first < n_rows;) {
    // Windows stay whole: rows after the last window's begin wait for the next turn.
    std::uint64_t count = std::min(kRowsAtOnce, n_rows - first);
    while (first + count < n_rows) {
      const std::vector<std::uint32_t> position = segment.read_rows(first, count).position;
      std::uint64_t end = count;
      while (end > 1 && position[end - 1] != 0) --end;
      if (end > 1) {
        count = end - 1;
        break;
      }
      count = std::min(2 * count, n_rows - first);  // a window longer than that
    }
    std::optional<std::uint32_t> next;
    if (!segment.layout().has(RowField::id)) {
      // Nothing follows that could be named.
    } else if (first + count < n_rows) {
      next = segment.read_rows(first + count, 1).id[0];
    } else if (!next_segment.empty()) {
      const RoutingReader following(next_segment);
      if (following.n_rows() > 0) next = following.read_rows(0, 1).id[0];
    }
    observer.observe(segment.read_rows(first, count), next);
    first += count;
  }
  for (const PhaseSums& phase : stored) observer.live(phase.phase).add_documents(phase.sums.documents[0]);
  std::vector<PhaseSums> recomputed = observer.take();
  if (segment.level() == RecordLevel::tokens)
    for (PhaseSums& phase : recomputed)
      for (const PhaseSums& of_stored : stored)
        if (of_stored.phase == phase.phase) take_unrecorded(phase.sums, of_stored.sums);
  return recomputed;
}

namespace {

/// One corpus of a run, a dataset for each phase, on rank 0 the sum over all ranks. What the ranks did is not known by
/// phase: it goes with the first dataset.
std::vector<Dataset> reduce_corpus(const Run& run, std::size_t corpus, const ModelFacts& model,
                                   const ReduceOptions& options, const std::function<void()>& on_segment,
                                   const Communicator& comm) {
  const AccumulatorShape shape = shape_of(model);
  std::array<std::optional<Accumulators>, kTokenPhases> sums;
  RankLoad ranks(model.n_moe_layers(), model.top_k);
  const auto first = static_cast<std::size_t>(
      std::find(run.corpus_of_segment.begin(), run.corpus_of_segment.end(), corpus) - run.corpus_of_segment.begin());
  const std::uint64_t first_block = first == 0 || first == run.segments.size()
                                        ? 0
                                        : SegmentDetails::parse(run.segments[first - 1].details).next.block;
  for (std::size_t s = first; s < run.segments.size(); ++s) {
    if (run.corpus_of_segment[s] != corpus) continue;
    on_segment();
    if (s % static_cast<std::size_t>(comm.size()) != static_cast<std::size_t>(comm.rank())) continue;
    const std::filesystem::path path = run.folder / run.segments[s].file;
    const RoutingReader segment(path);
    std::vector<PhaseSums> stored = from_phase_tables(read_group(segment, "/accumulators"), shape);
    if (options.recompute) {
      const std::filesystem::path next =
          s + 1 < run.segments.size() ? run.folder / run.segments[s + 1].file : std::filesystem::path();
      stored = recompute_segment(path, next, run.excluded_tokens, run.document_groups, stored);
    }
    for (const PhaseSums& phase : stored) {
      auto& sum = sums.at(static_cast<std::size_t>(phase.phase));
      if (!sum) sum.emplace(shape);
      sum->merge(phase.sums);
    }
    if (segment.contains("/dispatch")) ranks.add(segment, first_block);
  }
  ranks.reduce_to_root(comm);
  std::vector<Dataset> datasets;
  for (std::size_t phase = 0; phase < kTokenPhases; ++phase) {
    if (!comm.any(sums[phase].has_value())) continue;
    Accumulators sum = sums[phase] ? std::move(*sums[phase]) : Accumulators(shape);
    sum.reduce_to_root(comm);
    datasets.push_back({dataset_of(run.corpora[corpus], static_cast<TokenPhase>(phase)), std::move(sum),
                        datasets.empty() ? ranks : RankLoad(model.n_moe_layers(), model.top_k)});
  }
  if (datasets.empty()) datasets.push_back({run.corpora[corpus], Accumulators(shape), ranks});
  if (options.per_document > 0) {
    auto documents = usage_of_documents({run.folder, run.segments, run.corpus_of_segment, corpus, run.excluded_tokens},
                                        options.per_document, comm);
    for (std::size_t phase = 0; phase < kTokenPhases; ++phase)
      for (Dataset& dataset : datasets)
        if (dataset.name == dataset_of(run.corpora[corpus], static_cast<TokenPhase>(phase)))
          dataset.documents = std::move(documents[phase]);
  }
  return datasets;
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
        for (Dataset& dataset : reduce_corpus(
                 run, corpus, part.model, options,
                 [&] {
                   if (comm.rank() == 0) on_segment(++done, n_segments);
                 },
                 comm))
          part.datasets.push_back(std::move(dataset));
    } else {
      part = from_statistics_tables(read_tables(source, std::string(kStatsFormat)), source.string());
    }
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
