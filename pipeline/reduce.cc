#include "pipeline/reduce.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <future>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

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

/// Token tables count in 32 bits.
constexpr std::uint64_t kMostRowsUntaken = std::uint64_t{1} << 31U;

std::vector<Table> read_group(const RoutingReader& segment, const std::string& group) {
  std::vector<Table> tables;
  for (const std::string& path : segment.list(group)) tables.push_back(segment.read_bare(path));
  return tables;
}

/// A run's folder and what its run.json and manifest say.
struct Run {
  std::filesystem::path folder;
  std::vector<std::string> corpora;
  std::vector<std::uint8_t> excluded_tokens;
  std::vector<SegmentEntry> segments;
  std::vector<std::uint64_t> corpus_of_segment;
  std::string token_tables;                    // names of those that were kept
  std::vector<std::uint16_t> document_groups;  // by row of /documents, when rows are recomputed
};

std::vector<std::uint16_t> read_document_groups(const Run& run) {
  std::vector<std::uint16_t> groups;
  for (const SegmentEntry& entry : run.segments) {
    const Table ids = RoutingReader(run.folder / entry.file).read_bare("/documents/id");
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
  run.token_tables = description.at("identity").at("token-tables");
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

void from_half(const std::vector<std::uint16_t>& bits, std::vector<float>& values) {
  values.resize(bits.size());
  from_half_bits(bits, values);
}

std::vector<std::uint32_t> read_numbers(const RoutingReader& segment, const char* path) {
  return std::get<std::vector<std::uint32_t>>(segment.read_bare(path).values);
}

/// A share of a segment's rows: the windows that begin in the part-th of so many equal runs of rows.
struct RowPart {
  std::filesystem::path segment, next_segment;  // next: empty behind the last
  std::uint64_t part = 0;
  std::uint64_t parts = 1;
};

/// Token rows as the accumulators see them.
class RowObserver {
 public:
  RowObserver(const Run& run, const ModelFacts& model, TokenTableChoice tables, std::uint64_t rows_at_once)
      : run_(run),
        model_(model),
        rows_at_once_(rows_at_once),
        live_(shape_of(model), tables),
        taken_(shape_of(model)),
        routing_(static_cast<std::size_t>(model.n_moe_layers())) {}

  void observe(const RowPart& part);
  Accumulators take() {
    taken_.merge(live_.take(Communicator::self()));
    return std::exchange(taken_, Accumulators(taken_.shape));
  }

 private:
  /// Rows that end with a window's last token. next: the id that follows, for the last one's target.
  void observe(const TokenRows& rows, std::optional<std::uint32_t> next);
  void route_layer(const TokenRows::Layer& rows, std::size_t n, std::size_t layer);

  const Run& run_;
  const ModelFacts& model_;
  std::uint64_t rows_at_once_;
  LiveAccumulators live_;
  Accumulators taken_;
  std::uint64_t untaken_rows_ = 0;
  // Memory that is used again: rows that are looked at and rows that are being read; [L].
  std::array<TokenRows, 2> pieces_;
  std::vector<Routing> routing_;
};

void RowObserver::observe(const RowPart& part) {
  const RoutingReader segment(part.segment);
  if (segment.level() == RecordLevel::counts)
    throw Error("holds no token rows to recompute from", part.segment.string(),
                "reduce without --recompute, or route with --record tokens");
  if (segment.n_rows() == 0) return;
  const std::vector<std::uint32_t> position = read_numbers(segment, "/tokens/position");
  const std::vector<std::uint32_t> id = read_numbers(segment, "/tokens/id");
  const std::uint64_t n_rows = id.size();
  const auto window_from = [&](std::uint64_t row) {
    while (row < n_rows && position[row] != 0) ++row;
    return row;
  };
  const std::uint64_t end = window_from(n_rows * (part.part + 1) / part.parts);

  // Each piece is read while the one before is looked at; HDF5 is called by one thread at a time.
  const auto read = [&](std::uint64_t first, std::uint64_t last, TokenRows& rows) {
    return std::async(std::launch::async, [&, first, last] { segment.read_rows(first, last - first, rows); });
  };
  const auto piece_end = [&](std::uint64_t first) { return std::min(end, window_from(first + rows_at_once_)); };
  std::uint64_t first = window_from(n_rows * part.part / part.parts);
  if (first >= end) return;
  std::uint64_t last = piece_end(first);
  std::future<void> reading = read(first, last, pieces_[0]);
  for (std::size_t turn = 0; first < end; ++turn) {
    reading.get();
    std::optional<std::uint32_t> next;
    if (last < n_rows) {
      next = id[last];
    } else if (!part.next_segment.empty()) {
      const RoutingReader following(part.next_segment);
      if (following.n_rows() > 0) next = following.read_rows(0, 1).id[0];
    }
    first = last;
    last = piece_end(first);
    if (first < end) reading = read(first, last, pieces_[(turn + 1) % 2]);
    observe(pieces_[turn % 2], next);
  }
}

void RowObserver::observe(const TokenRows& rows, std::optional<std::uint32_t> next) {
  const std::size_t n = rows.size();
  std::vector<std::int64_t> target(n, -1);
  for (std::size_t t = 0; t < n; ++t) {
    if (std::isnan(rows.loss[t])) continue;
    if (t + 1 < n)
      target[t] = rows.id[t + 1];
    else if (next)
      target[t] = *next;
  }
  const std::vector<std::uint8_t> included = included_tokens(rows.id, run_.excluded_tokens);
  std::vector<std::uint16_t> group(n);
  for (std::size_t t = 0; t < n; ++t) {
    const std::uint32_t document = rows.document[t];
    if (document >= run_.document_groups.size())
      throw Error("a token's document " + std::to_string(document) + " is not among the run's " +
                  std::to_string(run_.document_groups.size()));
    group[t] = run_.document_groups[document];
  }

  std::vector<std::vector<double>> probability_sum(routing_.size());
  std::vector<LayerView> views(routing_.size());
#pragma omp parallel for schedule(dynamic, 1)
  for (std::size_t l = 0; l < routing_.size(); ++l) {
    const Routing& of_layer = routing_[l];
    route_layer(rows.layers[l], n, l);
    if (!rows.layers[l].logits.empty()) probability_sum[l] = probability_sums(of_layer.probabilities, included);
    views[l] = {rows.layers[l].expert,    of_layer.weights,     of_layer.entropy,  of_layer.margin,
                of_layer.top_probability, of_layer.log_sum_exp, probability_sum[l]};
  }
  live_.observe({rows.id, rows.position, group, target, rows.predicted, rows.loss, included, views});
  untaken_rows_ += n;
  if (untaken_rows_ < kMostRowsUntaken) return;
  taken_.merge(live_.take(Communicator::self()));
  untaken_rows_ = 0;
}

void RowObserver::route_layer(const TokenRows::Layer& rows, std::size_t n, std::size_t layer) {
  if (rows.logits.empty()) {
    from_half(rows.weight, routing_[layer].weights);
    from_half(rows.entropy, routing_[layer].entropy);
    return;
  }
  Tensor copy(DType::f32, static_cast<std::int64_t>(n), model_.n_experts);
  std::copy(rows.logits.begin(), rows.logits.end(), copy.data<float>());
  routing_[layer] = choose_experts(std::move(copy), model_.top_k, "layer " + std::to_string(model_.moe_layers[layer]));
}

/// What token rows do not say of a segment: its number of documents, and at level tokens some of the routing.
Accumulators read_unrecorded(const RoutingReader& segment, const AccumulatorShape& shape) {
  std::vector<Table> tables;
  for (const char* path : {"/accumulators/totals/tokens", "/accumulators/totals/documents",
                           "/accumulators/load/probability_sum", "/accumulators/load/z_sum"})
    tables.push_back(segment.read_bare(path));
  for (const char* group : {"/accumulators/margin", "/accumulators/top_probability"})
    for (Table& table : read_group(segment, group)) tables.push_back(std::move(table));
  return from_tables(tables, "/accumulators", shape, false).at(0);
}

void take_unrecorded(Accumulators& recomputed, const Accumulators& stored, RecordLevel level) {
  recomputed.documents = stored.documents;
  if (level == RecordLevel::logits) return;
  recomputed.margin = stored.margin;
  recomputed.margin_histogram = stored.margin_histogram;
  recomputed.top_probability = stored.top_probability;
  recomputed.top_probability_histogram = stored.top_probability_histogram;
  recomputed.confident = stored.confident;
  recomputed.probability_sum = stored.probability_sum;
  recomputed.z_sum = stored.z_sum;
}

/// The token tables that a run kept.
TokenTableChoice tables_of(const Run& run) {
  TokenTableChoice tables;
  const RoutingReader segment(run.folder / run.segments.front().file);
  for (std::size_t which = 0; which < kTokenTables; ++which) {
    const std::string name(kTokenTableNames[which]);
    tables.keep[which] = run.token_tables.find(name) != std::string::npos;
    const std::string capacity = "/accumulators/tokens/" + name + "/capacity";
    if (segment.contains(capacity))
      tables.capacity =
          std::max(tables.capacity, std::get<std::vector<std::uint64_t>>(segment.read_bare(capacity).values).at(0));
  }
  return tables;
}

/// One corpus of a run, on rank 0 the sum over all ranks.
Dataset reduce_corpus(const Run& run, std::size_t corpus, const ModelFacts& model, const ReduceOptions& options,
                      const std::function<void()>& on_segment, const Communicator& comm) {
  Dataset dataset{run.corpora[corpus], Accumulators(shape_of(model)), RankLoad(model.n_moe_layers(), model.top_k), {}};
  std::optional<RowObserver> rows;
  if (options.recompute) rows.emplace(run, model, tables_of(run), options.rows_at_once);
  std::uint64_t share = 0;  // of the corpus: a segment, or a part of one; dealt to ranks in turn
  const auto is_mine = [&] {
    return share++ % static_cast<std::uint64_t>(comm.size()) == static_cast<std::uint64_t>(comm.rank());
  };
  const auto first = static_cast<std::size_t>(
      std::find(run.corpus_of_segment.begin(), run.corpus_of_segment.end(), corpus) - run.corpus_of_segment.begin());
  const std::uint64_t first_block = first == 0 || first == run.segments.size()
                                        ? 0
                                        : SegmentDetails::parse(run.segments[first - 1].details).next.block;
  for (std::size_t s = first; s < run.segments.size(); ++s) {
    if (run.corpus_of_segment[s] != corpus) continue;
    on_segment();
    RowPart part{run.folder / run.segments[s].file, {}, 0, 1};
    if (s + 1 < run.segments.size()) part.next_segment = run.folder / run.segments[s + 1].file;
    if (options.recompute)
      part.parts =
          (std::max<std::uint64_t>(1, run.segments[s].tokens) + options.rows_of_part - 1) / options.rows_of_part;
    for (; part.part < part.parts; ++part.part) {
      if (!is_mine()) continue;
      if (rows) rows->observe(part);
      if (part.part > 0) continue;
      const RoutingReader segment(part.segment);
      dataset.accumulators.merge(
          rows ? read_unrecorded(segment, dataset.accumulators.shape)
               : from_tables(read_group(segment, "/accumulators"), "/accumulators", dataset.accumulators.shape).at(0));
      dataset.ranks.add(segment, first_block);
      dataset.cost.add(segment);
    }
  }
  if (rows) {
    Accumulators recomputed = rows->take();
    const RecordLevel level = RoutingReader(run.folder / run.segments.front().file).level();
    take_unrecorded(recomputed, dataset.accumulators, level);
    dataset.accumulators = std::move(recomputed);
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
            run, corpus, part.model, options,
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
