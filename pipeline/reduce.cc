#include "pipeline/reduce.h"

#include <algorithm>
#include <array>
#include <future>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "io/routing_reader.h"
#include "io/routing_writer.h"
#include "io/run_folder.h"
#include "io/stats_file.h"
#include "parallel/error.h"
#include "pipeline/analysis/dataset_names.h"
#include "pipeline/analysis/token_phase.h"
#include "pipeline/first_documents.h"
#include "pipeline/route_loop.h"
#include "pipeline/row_observer.h"

namespace switchyard {
namespace {

using nlohmann::json;

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
  if (!std::ranges::is_sorted(run.corpus_of_segment))
    throw Error("the manifest mixes the segments of corpora", (folder / "manifest.jsonl").string(),
                "copy the folder again, or route the corpora again");
  if (run.segments.empty()) throw Error("has no committed segment", folder.string(), "route a corpus into it first");
  return run;
}

std::vector<std::uint32_t> read_numbers(const RoutingReader& segment, const char* path) {
  return std::get<std::vector<std::uint32_t>>(segment.read_bare(path).values);
}

/// A share of a segment: all of it, or the windows that begin in the part-th of so many equal runs of its rows.
struct SegmentPart {
  std::filesystem::path segment, next_segment;  // next: empty behind the last
  std::uint64_t corpus = 0;
  std::uint64_t part = 0;
  std::uint64_t parts = 1;
};

/// What of a run this rank reads: a contiguous share of its segments, or of their parts when rows are recomputed, so
/// that few corpora are shared by ranks, whose sums must then be sent.
std::vector<SegmentPart> share_of(const Run& run, const ReduceOptions& options, const Communicator& comm) {
  std::vector<SegmentPart> all;
  for (std::size_t s = 0; s < run.segments.size(); ++s) {
    SegmentPart part{run.folder / run.segments[s].file, {}, run.corpus_of_segment[s]};
    if (s + 1 < run.segments.size()) part.next_segment = run.folder / run.segments[s + 1].file;
    if (options.recompute)
      part.parts =
          (std::max<std::uint64_t>(1, run.segments[s].tokens) + options.rows_of_part - 1) / options.rows_of_part;
    for (; part.part < part.parts; ++part.part) all.push_back(part);
  }
  const std::size_t n_ranks = static_cast<std::size_t>(comm.size());
  const std::size_t rank = static_cast<std::size_t>(comm.rank());
  const auto cut = [&](std::size_t r) { return all.begin() + static_cast<std::ptrdiff_t>(all.size() * r / n_ranks); };
  return {cut(rank), cut(rank + 1)};
}

/// Shows a part's rows to an observer, some at a time, each read while the ones before are looked at; HDF5 is called by
/// one thread at a time.
void observe_part(const SegmentPart& part, std::uint64_t rows_at_once, RowObserver& observer) {
  const RoutingReader segment(part.segment);
  if (segment.level() == RecordLevel::counts)
    throw Error("holds no token rows to recompute from", part.segment.string(),
                "reduce without --recompute, or route with --record tokens");
  const std::uint64_t n_rows = segment.n_rows();
  if (n_rows == 0) return;
  const bool has_ids = segment.layout().has(RowField::id);
  const std::vector<std::uint32_t> position = read_numbers(segment, "/tokens/position");
  const std::vector<std::uint32_t> id = has_ids ? read_numbers(segment, "/tokens/id") : std::vector<std::uint32_t>();
  const auto window_from = [&](std::uint64_t row) {
    while (row < n_rows && position[row] != 0) ++row;
    return row;
  };
  const auto id_at = [&](std::uint64_t row) -> std::optional<std::uint32_t> {
    if (!has_ids) return std::nullopt;
    if (row < n_rows) return id[row];
    if (part.next_segment.empty()) return std::nullopt;
    const RoutingReader following(part.next_segment);
    return following.n_rows() > 0 ? std::optional(following.read_rows(0, 1).id[0]) : std::nullopt;
  };
  const std::uint64_t end = window_from(n_rows * (part.part + 1) / part.parts);
  const auto piece_end = [&](std::uint64_t first) { return std::min(end, window_from(first + rows_at_once)); };

  std::array<TokenRows, 2> pieces;  // rows that are looked at, and rows that are being read
  const auto read = [&](std::uint64_t first, std::uint64_t last, TokenRows& rows) {
    return std::async(std::launch::async, [&, first, last] { segment.read_rows(first, last - first, rows); });
  };
  std::uint64_t first = window_from(n_rows * part.part / part.parts);
  if (first >= end) return;
  std::uint64_t last = piece_end(first);
  std::future<void> reading = read(first, last, pieces[0]);
  for (std::size_t turn = 0; first < end; ++turn) {
    reading.get();
    const std::optional<std::uint32_t> next = id_at(last);
    first = last;
    last = piece_end(first);
    if (first < end) reading = read(first, last, pieces[(turn + 1) % 2]);
    observer.observe(pieces[turn % 2], next);
  }
}

/// What token rows do not say of a segment: its number of documents, and at level tokens some of the routing.
std::vector<Table> read_unrecorded(const RoutingReader& segment) {
  std::vector<Table> tables;
  for (const char* path : {"/accumulators/totals/tokens", "/accumulators/totals/documents",
                           "/accumulators/load/probability_sum", "/accumulators/load/z_sum"})
    tables.push_back(segment.read_bare(path));
  if (segment.contains("/accumulators/phase")) tables.push_back(segment.read_bare("/accumulators/phase"));
  for (const char* group : {"/accumulators/margin", "/accumulators/top_probability"})
    for (Table& table : read_group(segment, group)) tables.push_back(std::move(table));
  return tables;
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

using SumsByPhase = std::array<std::optional<Accumulators>, kTokenPhases>;

void merge_phases(SumsByPhase& sums, std::vector<PhaseSums> more) {
  for (PhaseSums& phase : more) {
    std::optional<Accumulators>& sum = sums.at(static_cast<std::size_t>(phase.phase));
    if (sum)
      sum->merge(phase.sums);
    else
      sum = std::move(phase.sums);
  }
}

/// Rows' sums with what rows do not say, which `stored` holds.
SumsByPhase completed(std::vector<PhaseSums> of_rows, const SumsByPhase& stored, const AccumulatorShape& shape,
                      RecordLevel level) {
  SumsByPhase sums;
  merge_phases(sums, std::move(of_rows));
  for (std::size_t phase = 0; phase < kTokenPhases; ++phase) {
    if (!sums[phase] && !stored[phase]) continue;
    if (!sums[phase]) sums[phase].emplace(shape);
    take_unrecorded(*sums[phase], stored[phase] ? *stored[phase] : Accumulators(shape), level);
  }
  return sums;
}

/// What a rank has summed of a corpus.
struct CorpusSums {
  SumsByPhase sums;
  RankLoad ranks;
  RankTime time;
  Cost cost;
  std::uint64_t first_block = 0;  // of the run
  bool any = false;               // whether this rank read any of its segments
};

std::vector<CorpusSums> nothing_summed(const Run& run, const ModelFacts& model) {
  std::vector<CorpusSums> corpora(
      run.corpora.size(),
      {{}, RankLoad(model.n_moe_layers(), model.top_k), RankTime(model.n_moe_layers(), model.n_experts), {}, 0, false});
  for (std::size_t corpus = 0; corpus < corpora.size(); ++corpus) {
    const auto first = std::ranges::find(run.corpus_of_segment, corpus) - run.corpus_of_segment.begin();
    if (first > 0 && first < std::ssize(run.segments))
      corpora[corpus].first_block =
          SegmentDetails::parse(run.segments[static_cast<std::size_t>(first) - 1].details).next.block;
  }
  return corpora;
}

void add_dispatch(const RoutingReader& segment, CorpusSums& corpus) {
  if (!segment.contains("/dispatch")) return;  // no ranks routed it
  DispatchValues dispatch(segment);
  corpus.ranks.add(dispatch, corpus.first_block);
  corpus.time.add(dispatch);
  corpus.cost.add(dispatch);
}

/// Sums what segments store. A segment is read while those of the one before are added, into memory that is used again;
/// HDF5 is called by one thread at a time.
void sum_stored(const std::vector<SegmentPart>& mine, const AccumulatorShape& shape, std::vector<CorpusSums>& corpora,
                const std::function<void()>& on_part) {
  const std::vector<std::string> paths = phase_table_paths();
  std::array<std::vector<Table>, 2> tables;  // those that are added, and those that are being read
  const auto read = [&](std::size_t i) {
    return std::async(std::launch::async, [&, i] {
      const RoutingReader segment(mine[i].segment);
      std::vector<Table>& into = tables[i % 2];
      into.resize(paths.size());
      for (std::size_t t = 0; t < paths.size(); ++t)
        if (!segment.read_bare(paths[t], into[t])) into[t].path.clear();
      add_dispatch(segment, corpora[mine[i].corpus]);
    });
  };
  std::future<void> reading;
  if (!mine.empty()) reading = read(0);
  std::array<std::optional<AccumulatorSum>, kTokenPhases> sums;
  for (std::size_t i = 0; i < mine.size(); ++i) {
    reading.get();
    if (i + 1 < mine.size()) reading = read(i + 1);
    add_phase_tables(tables[i % 2], shape, sums);
    on_part();
    if (i + 1 < mine.size() && mine[i + 1].corpus == mine[i].corpus) continue;
    for (std::size_t phase = 0; phase < kTokenPhases; ++phase)
      if (auto& sum = sums[phase]) {
        corpora[mine[i].corpus].sums[phase] = sum->take();
        sum.reset();
      }
  }
}

/// Sums token rows anew, and of what they do not say, what segments store.
void sum_rows(const Run& run, const std::vector<SegmentPart>& mine, const ModelFacts& model,
              const ReduceOptions& options, std::vector<CorpusSums>& corpora, const std::function<void()>& on_part) {
  const AccumulatorShape shape = shape_of(model);
  std::optional<RowObserver> rows;
  SumsByPhase stored;
  for (std::size_t i = 0; i < mine.size(); ++i) {
    if (!rows) rows.emplace(model, run.excluded_tokens, run.document_groups, tables_of(run));
    observe_part(mine[i], options.rows_at_once, *rows);
    if (mine[i].part == 0) {
      const RoutingReader segment(mine[i].segment);
      merge_phases(stored, from_phase_tables(read_unrecorded(segment), shape, false));
      add_dispatch(segment, corpora[mine[i].corpus]);
    }
    on_part();
    if (i + 1 < mine.size() && mine[i + 1].corpus == mine[i].corpus) continue;
    corpora[mine[i].corpus].sums = completed(rows->take(), stored, shape, RoutingReader(mine[i].segment).level());
    rows.reset();
    stored = {};
  }
}

/// Collective. A dataset for each phase of a corpus, on rank 0 the sum over all ranks. What the ranks did is not known
/// by phase: it goes with the first dataset.
std::vector<Dataset> datasets_of(const std::string& corpus, const ModelFacts& model, CorpusSums mine,
                                 const Communicator& comm) {
  const AccumulatorShape shape = shape_of(model);
  const bool shared = comm.any(comm.rank() != 0 && mine.any);  // else the root has all of it
  if (shared) {
    mine.ranks.reduce_to_root(comm);
    mine.time.reduce_to_root(comm);
    mine.cost.reduce_to_root(comm);
  }
  std::vector<Dataset> datasets;
  const auto add = [&](TokenPhase phase, Accumulators sum) {
    datasets.push_back({dataset_of(corpus, phase), std::move(sum), RankLoad(model.n_moe_layers(), model.top_k),
                        RankTime(model.n_moe_layers(), model.n_experts)});
  };
  for (std::size_t phase = 0; phase < kTokenPhases; ++phase) {
    if (!comm.any(mine.sums[phase].has_value())) continue;
    Accumulators sum = mine.sums[phase] ? std::move(*mine.sums[phase]) : Accumulators(shape);
    if (shared) sum.reduce_to_root(comm);
    add(static_cast<TokenPhase>(phase), std::move(sum));
  }
  if (datasets.empty()) add(TokenPhase::prefill, Accumulators(shape));
  datasets.front().ranks = std::move(mine.ranks);
  datasets.front().time = std::move(mine.time);
  datasets.front().cost = mine.cost;
  return datasets;
}

/// Collective. The datasets of a run.
std::vector<Dataset> reduce_run(const Run& run, const ModelFacts& model, const ReduceOptions& options,
                                const std::function<void()>& on_segment, const Communicator& comm) {
  const std::vector<SegmentPart> mine = share_of(run, options, comm);
  std::vector<CorpusSums> corpora = nothing_summed(run, model);
  std::size_t parts = 0;
  std::size_t told = 0;
  const auto on_part = [&] {  // a share done is the same share of all segments
    corpora[mine[parts].corpus].any = true;
    ++parts;
    for (; told * mine.size() < parts * run.segments.size(); ++told) on_segment();
  };
  if (options.recompute)
    sum_rows(run, mine, model, options, corpora, on_part);
  else
    sum_stored(mine, shape_of(model), corpora, on_part);

  std::vector<Dataset> datasets;
  for (std::size_t corpus = 0; corpus < run.corpora.size(); ++corpus) {
    std::vector<Dataset> of_corpus = datasets_of(run.corpora[corpus], model, std::move(corpora[corpus]), comm);
    if (options.per_document > 0) {
      auto documents = usage_of_documents(
          {run.folder, run.segments, run.corpus_of_segment, corpus, run.excluded_tokens}, options.per_document, comm);
      for (std::size_t phase = 0; phase < kTokenPhases; ++phase)
        for (Dataset& dataset : of_corpus)
          if (dataset.name == dataset_of(run.corpora[corpus], static_cast<TokenPhase>(phase)))
            dataset.documents = std::move(documents[phase]);
    }
    std::ranges::move(of_corpus, std::back_inserter(datasets));
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
      part.datasets = reduce_run(
          run, part.model, options,
          [&] {
            if (comm.rank() == 0) on_segment(++done, n_segments);
          },
          comm);
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
