#include "pipeline/first_documents.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "io/routing_reader.h"
#include "parallel/error.h"
#include "pipeline/analysis/live_accumulators.h"
#include "pipeline/route_loop.h"

namespace switchyard {
namespace {

constexpr std::uint64_t kRowsAtOnce = 1 << 16;

/// A document and where its rows are in the run.
struct Place {
  std::string id, category;
  std::uint64_t first = 0;
  std::uint64_t count = 0;
};

template <typename T>
std::vector<T> column(const RoutingReader& segment, const char* path) {
  return std::get<std::vector<T>>(segment.read(path).values);
}

std::vector<Place> first_documents(const DocumentRows& rows, std::uint64_t most) {
  std::vector<std::string> categories;
  std::vector<Place> places;
  for (std::size_t s = 0; s < rows.segments.size() && places.size() < most; ++s) {
    const SegmentDetails details = SegmentDetails::parse(rows.segments[s].details);
    categories.insert(categories.end(), details.new_categories.begin(), details.new_categories.end());
    if (rows.corpus_of_segment[s] != rows.corpus) continue;
    const RoutingReader segment(rows.folder / rows.segments[s].file);
    if (segment.level() == RecordLevel::counts)
      throw Error("holds no token rows, of which --per-document is made", rows.folder.string(),
                  "route with --record tokens");
    const auto id = column<std::string>(segment, "/documents/id");
    const auto category = column<std::int16_t>(segment, "/documents/category");
    const auto first = column<std::uint64_t>(segment, "/documents/first_token");
    const auto count = column<std::uint64_t>(segment, "/documents/n_tokens");
    for (std::size_t d = 0; d < id.size() && places.size() < most; ++d)
      places.push_back(
          {id[d], category[d] < 0 ? "" : categories.at(static_cast<std::size_t>(category[d])), first[d], count[d]});
  }
  return places;
}

/// Reads rows of a run, of one segment after another.
class RunRows {
 public:
  explicit RunRows(const DocumentRows& rows) : rows_(rows), begin_(1, 0) {
    for (const SegmentEntry& entry : rows.segments) begin_.push_back(begin_.back() + entry.tokens);
  }
  /// Rows from `first` on, at most `most` and of one segment; none behind the last committed one.
  TokenRows read(std::uint64_t first, std::uint64_t most) {
    const auto behind = std::upper_bound(begin_.begin(), begin_.end(), first);
    if (behind == begin_.end()) return {};
    const auto s = static_cast<std::size_t>(behind - begin_.begin()) - 1;
    if (!segment_ || open_ != s) segment_ = std::make_unique<RoutingReader>(rows_.folder / rows_.segments[s].file);
    open_ = s;
    return segment_->read_rows(first - begin_[s], std::min({most, kRowsAtOnce, begin_[s + 1] - first}));
  }

 private:
  const DocumentRows& rows_;
  std::vector<std::uint64_t> begin_;  // [segments + 1] first row of each
  std::size_t open_ = 0;
  std::unique_ptr<RoutingReader> segment_;
};

}  // namespace

std::array<std::vector<DocumentUsage>, kTokenPhases> usage_of_documents(const DocumentRows& rows, std::uint64_t most,
                                                                        const Communicator& comm) {
  const std::vector<Place> places = first_documents(rows, most);
  std::array<std::vector<DocumentUsage>, kTokenPhases> usage;
  if (places.empty()) return usage;
  const ModelFacts model = RoutingReader(rows.folder / rows.segments.front().file).model();
  const auto k = static_cast<std::size_t>(model.top_k);
  const auto experts = static_cast<std::size_t>(model.n_experts);
  const std::size_t cells = model.moe_layers.size() * experts;
  std::vector<std::uint64_t> tokens(places.size() * kTokenPhases, 0);
  std::vector<std::uint64_t> count(tokens.size() * cells, 0);
  RunRows run(rows);
  for (std::size_t d = static_cast<std::size_t>(comm.rank()); d < places.size();
       d += static_cast<std::size_t>(comm.size())) {
    for (std::uint64_t done = 0; done < places[d].count;) {
      const TokenRows part = run.read(places[d].first + done, places[d].count - done);
      if (part.size() == 0) break;
      done += part.size();
      const std::vector<std::uint8_t> included = included_tokens(part.id, rows.excluded_tokens);
      for (std::size_t t = 0; t < part.size(); ++t) {
        if (!included.empty() && included[t] == 0) continue;
        const std::size_t row = d * kTokenPhases + part.phase[t];
        ++tokens.at(row);
        for (std::size_t l = 0; l < part.layers.size(); ++l)
          for (std::size_t j = 0; j < k; ++j) ++count[row * cells + l * experts + part.layers[l].expert[t * k + j]];
      }
    }
  }
  comm.sum_to_root(tokens);
  comm.sum_to_root(count);
  if (comm.rank() != 0) return usage;
  for (std::size_t d = 0; d < places.size(); ++d) {
    std::uint64_t of_document = 0;
    for (std::size_t phase = 0; phase < kTokenPhases; ++phase) of_document += tokens[d * kTokenPhases + phase];
    for (std::size_t phase = 0; phase < kTokenPhases; ++phase) {
      const std::size_t row = d * kTokenPhases + phase;
      if (tokens[row] == 0 && !(of_document == 0 && phase == 0)) continue;
      const auto begin = count.begin() + static_cast<std::ptrdiff_t>(row * cells);
      usage.at(phase).push_back(
          {places[d].id, places[d].category, tokens[row], {begin, begin + static_cast<std::ptrdiff_t>(cells)}});
    }
  }
  return usage;
}

}  // namespace switchyard
