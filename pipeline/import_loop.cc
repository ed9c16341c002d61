#include "pipeline/import_loop.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <limits>
#include <optional>
#include <utility>

#include "parallel/communicator.h"
#include "parallel/stop_signal.h"
#include "pipeline/analysis/document_groups.h"
#include "pipeline/document_tables.h"
#include "pipeline/row_observer.h"

namespace switchyard {
namespace {

/// Lines that wait for their segment's commit.
class PendingSegment {
 public:
  PendingSegment(const ImportOptions& options, const SourcePosition& start)
      : options_(options), number_(options.next_segment), categories_(options.categories), at_(start) {
    rows_.layers.resize(static_cast<std::size_t>(options.model.n_moe_layers()));
  }

  void add(const std::vector<ServedDocument>& line) {
    for (const ServedDocument& document : line) add(document);
  }
  /// Bad lines met since the last call belong to this segment.
  void add_skipped(ServedReader& lines) {
    skipped_ += lines.take_skipped();
    for (std::string& place : lines.take_skipped_places()) skipped_places_.push_back(std::move(place));
  }
  bool is_full() const { return rows_.size() >= options_.segment_tokens || expert_bytes_ >= options_.segment_bytes; }
  bool empty() const { return documents_.empty(); }
  std::uint64_t corpus_tokens() const { return at_.tokens + rows_.size(); }

  /// next: where the lines behind these begin; complete: there are none.
  void commit(const CorpusCursor& next, bool complete);

 private:
  void add(const ServedDocument& document);
  std::vector<PhaseSums> sums() const;

  const ImportOptions& options_;
  std::uint64_t number_;
  Categories categories_;
  SourcePosition at_;  // where this segment begins
  TokenRows rows_;     // `document` counts within the segment until it is committed
  std::vector<DocumentRow> documents_;
  std::vector<std::uint16_t> groups_;  // of documents_
  std::array<std::uint64_t, kTokenPhases> phase_documents_{};
  std::uint64_t expert_bytes_ = 0;
  std::uint64_t skipped_ = 0;
  std::vector<std::string> skipped_places_;
};

void PendingSegment::add(const ServedDocument& document) {
  const std::uint64_t n = document.n_tokens;
  const auto number = static_cast<std::uint32_t>(documents_.size());
  rows_.id.insert(rows_.id.end(), document.ids.begin(), document.ids.end());
  for (std::uint64_t t = 0; t < n; ++t) {
    rows_.document.push_back(number);
    rows_.position.push_back(static_cast<std::uint32_t>(t));
    rows_.phase.push_back(static_cast<std::uint8_t>(t < document.n_prefill ? TokenPhase::prefill : TokenPhase::decode));
  }
  const std::size_t n_layers = rows_.layers.size();
  const auto k = static_cast<std::size_t>(options_.model.top_k);
  for (std::size_t l = 0; l < n_layers; ++l) {
    std::vector<std::uint16_t>& column = rows_.layers[l].expert;
    const std::size_t first = column.size();
    column.resize(first + n * k);
    for (std::size_t t = 0; t < n; ++t)
      std::copy_n(document.experts.data() + (t * n_layers + l) * k, k, column.data() + first + t * k);
  }
  expert_bytes_ += document.experts.size() * sizeof(std::uint16_t);
  documents_.push_back({document.id, document.category, corpus_tokens() - n, n, false});
  groups_.push_back(document_group(document.id));
  phase_documents_[0] += document.n_prefill > 0 || n == 0 ? 1 : 0;
  phase_documents_[1] += document.n_prefill < n ? 1 : 0;
}

std::vector<PhaseSums> PendingSegment::sums() const {
  RowObserver observer(options_.model, {}, groups_, options_.tables);
  observer.observe(rows_, std::nullopt);
  std::vector<PhaseSums> phases = observer.take();
  if (phases.empty()) phases.push_back({TokenPhase::prefill, Accumulators(shape_of(options_.model))});
  for (PhaseSums& phase : phases) phase.sums.documents[0] = phase_documents_.at(static_cast<std::size_t>(phase.phase));
  return phases;
}

void PendingSegment::commit(const CorpusCursor& next, bool complete) {
  SegmentContents contents;
  contents.n_rows = rows_.size();
  contents.tables = document_tables(0, documents_, categories_);
  const std::vector<PhaseSums> phases = sums();
  for (Table& table : phase_tables(phases)) contents.tables.push_back(std::move(table));
  for (std::uint32_t& document : rows_.document) document += static_cast<std::uint32_t>(at_.documents);
  contents.ranges = {{0, rows_.size()}};
  contents.rows = {&rows_};

  at_.corpus = complete ? 1 : 0;
  at_.chunk = complete ? CorpusCursor{} : next;
  ++at_.block;
  at_.documents += documents_.size();
  at_.tokens += rows_.size();
  at_.corpus_documents = at_.documents;
  at_.corpus_tokens = at_.tokens;
  const auto windows = static_cast<std::uint64_t>(std::count(rows_.position.begin(), rows_.position.end(), 0));
  const SegmentDetails details = {0,
                                  1,
                                  windows,
                                  documents_.size(),
                                  std::exchange(skipped_, 0),
                                  std::exchange(skipped_places_, {}),
                                  categories_.take_added(),
                                  at_,
                                  std::nullopt};
  commit_segment(options_.out, number_++, options_.model, contents,
                 {{RecordLevel::tokens, absent_fields(options_.format)}, options_.compress}, details.to_json(),
                 Communicator::self());
  rows_ = {};
  rows_.layers.resize(static_cast<std::size_t>(options_.model.n_moe_layers()));
  documents_.clear();
  groups_.clear();
  phase_documents_ = {};
  expert_bytes_ = 0;
}

}  // namespace

std::set<RowField> absent_fields(const ServedFormat& format) {
  std::set<RowField> absent = {RowField::loss, RowField::predicted, RowField::weight, RowField::entropy};
  if (!format.has_ids()) absent.insert(RowField::id);
  return absent;
}

ImportOutcome import_lines(ServedReader& lines, const ImportOptions& options, const SourcePosition& start,
                           const std::function<void(const RouteProgress&)>& on_line) {
  const auto begin = std::chrono::steady_clock::now();
  ImportOutcome outcome;
  PendingSegment segment(options, start);
  lines.seek(start.chunk);
  // A segment waits for the line behind it, so that the last one knows that it is the last.
  while (true) {
    const CorpusCursor behind = lines.cursor();
    const std::optional<std::vector<ServedDocument>> line = lines.next();
    if (!line) {
      segment.add_skipped(lines);
      if (!segment.empty()) segment.commit({}, true);
      break;
    }
    outcome.stopped = stop_signal() != 0;
    if ((outcome.stopped || segment.is_full()) && !segment.empty()) segment.commit(behind, false);
    if (outcome.stopped) break;
    segment.add_skipped(lines);
    segment.add(*line);
    outcome.session_tokens = segment.corpus_tokens() - start.tokens;
    on_line(
        {0, segment.corpus_tokens(), lines.cursor(), outcome.session_tokens, std::numeric_limits<double>::quiet_NaN()});
  }
  outcome.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return outcome;
}

}  // namespace switchyard
