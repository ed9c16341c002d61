#include "pipeline/reduce.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <random>

#include "io/routing_writer.h"
#include "parallel/bf16.h"
#include "pipeline/analysis/live_accumulators.h"
#include "tests/io/record_support.h"

namespace switchyard {
namespace {

using testing::SharedFolder;

const ModelFacts kModel{"mixtral", "m", 3, 8, 40, {0, 1, 2}, 5, 2};
constexpr std::uint64_t kDocumentTokens = 23;  // in windows of up to 9

/// Rows of documents of 23 tokens each, cut into windows of 9, 9 and 5, with random routing.
TokenRows random_rows(std::uint64_t documents, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  TokenRows rows;
  rows.layers.resize(3);
  for (std::uint64_t t = 0; t < documents * kDocumentTokens; ++t) {
    const std::uint64_t place = t % kDocumentTokens;
    rows.id.push_back(static_cast<std::uint32_t>(random() % 40));
    rows.document.push_back(static_cast<std::uint32_t>(t / kDocumentTokens));
    rows.position.push_back(static_cast<std::uint32_t>(place % 9));
    rows.predicted.push_back(static_cast<std::uint32_t>(random() % 40));
    rows.phase.push_back(0);
    rows.loss.push_back(place + 1 == kDocumentTokens ? NAN : 1.5F);
    for (TokenRows::Layer& layer : rows.layers) {
      const auto first = static_cast<std::uint16_t>(random() % 5);
      layer.expert.push_back(first);
      layer.expert.push_back(static_cast<std::uint16_t>((first + 1 + random() % 4) % 5));
      layer.weight.push_back(to_half_bits(0.75F));
      layer.weight.push_back(to_half_bits(0.25F));
      layer.entropy.push_back(to_half_bits(static_cast<float>(random() % 64) / 64));
    }
  }
  return rows;
}

TokenRows part_of(const TokenRows& all, std::uint64_t first, std::uint64_t count) {
  TokenRows part;
  part.layers.resize(all.layers.size());
  for (const RowColumn& column : row_columns(kModel, RecordLevel::tokens))
    visit_field(all, column, [&]<typename T>(const std::vector<T>& values) {
      const auto begin = values.begin() + static_cast<std::ptrdiff_t>(first * column.width);
      const std::vector<T> taken(begin, begin + static_cast<std::ptrdiff_t>(count * column.width));
      visit_field(part, column, [&]<typename U>(std::vector<U>& to) { to.assign(taken.begin(), taken.end()); });
    });
  return part;
}

/// A run of these rows in segments that begin at the given rows, the second one inside a document.
void write_run(const std::filesystem::path& out, const TokenRows& rows, const std::vector<std::uint64_t>& begins) {
  std::filesystem::create_directories(out / "segments");
  std::ofstream(out / "run.json") << R"({"identity": {"corpora": [{"name": "c"}], "excluded_tokens": [7],
    "model": {"vocabulary": 40}, "token-tables": "input,target"}})";
  for (std::size_t s = 0; s < begins.size(); ++s) {
    const std::uint64_t end = s + 1 < begins.size() ? begins[s + 1] : rows.size();
    const TokenRows part = part_of(rows, begins[s], end - begins[s]);
    SegmentContents contents;
    contents.n_rows = part.size();
    contents.ranges = {{0, part.size()}};
    contents.rows = {&part};
    std::vector<std::string> ids;  // of the documents that begin here
    for (std::uint64_t t = begins[s]; t < end; ++t)
      if (t % kDocumentTokens == 0) ids.push_back(std::string("d").append(std::to_string(rows.document[t])));
    Accumulators stored(shape_of(kModel));
    stored.documents[0] = ids.size();
    stored.confident = {s + 1, 0, 5};
    contents.tables = to_tables({&stored}, "/accumulators");
    contents.tables.push_back({"/documents/id", {"document"}, {ids.size()}, ids, "1", "id"});
    const auto add = [&](const char* name, std::vector<std::string> dimensions, std::vector<std::uint64_t> shape,
                         Table::Values values) {
      contents.tables.push_back(
          {std::string("/dispatch/") + name, std::move(dimensions), std::move(shape), std::move(values), "1", name});
    };
    add("seconds", {"step", "rank", "phase"}, {1, 1, kPhases}, std::vector<float>(kPhases, 1));
    add("step_tokens", {"step", "rank"}, {1, 1}, std::vector<std::uint32_t>{static_cast<std::uint32_t>(part.size())});
    add("row_bytes", {"scalar"}, {1}, std::vector<std::uint64_t>{16});
    add("expert_slots", {"step", "layer", "physical_expert"}, {1, 3, 5}, std::vector<std::uint32_t>(15, 1));
    add("placement", {"layer", "physical_expert"}, {3, 5}, std::vector<std::int32_t>(15, 0));
    add("traffic", {"block", "layer", "source_rank", "expert_rank"}, {1, 3, 1, 1}, std::vector<std::uint64_t>(3, 1));
    add("traffic_block", {"block"}, {1}, std::vector<std::uint64_t>{s});
    add("block", {"step"}, {1}, std::vector<std::uint64_t>{s});
    add("send_ranks", {"block", "layer", "ranks_reached"}, {1, 3, 3}, std::vector<std::uint64_t>(9, 1));
    commit_segment(out, s, kModel, contents, {RecordLevel::tokens},
                   R"({"corpus": 0, "blocks": 1, "windows": 1, "documents": 1, "skipped": 0, "skipped_places": [],
                       "new_categories": [], "next": {"corpus": 0, "file": 0, "offset": 0, "in_file": 0, "ordinal": 0,
                       "blocks_of_chunk": 0, "block": 1, "documents": 1, "tokens": 1, "corpus_tokens": 1,
                       "corpus_documents": 1}})",
                   Communicator::self());
  }
}

/// What all rows together give, in one piece.
Accumulators in_one_piece(const TokenRows& rows) {
  std::vector<std::uint16_t> group;
  std::vector<std::int64_t> target;
  for (std::size_t t = 0; t < rows.size(); ++t) {
    group.push_back(document_group(std::string("d").append(std::to_string(rows.document[t]))));
    target.push_back(std::isnan(rows.loss[t]) ? -1 : static_cast<std::int64_t>(rows.id[t + 1]));
  }
  std::vector<std::uint8_t> excluded(40, 0);
  excluded[7] = 1;
  std::vector<std::vector<float>> weights(3);
  std::vector<std::vector<float>> entropies(3);
  std::vector<LayerView> views;
  for (std::size_t l = 0; l < 3; ++l) {
    for (const std::uint16_t bits : rows.layers[l].weight) weights[l].push_back(from_half_bits(bits));
    for (const std::uint16_t bits : rows.layers[l].entropy) entropies[l].push_back(from_half_bits(bits));
    views.push_back({rows.layers[l].expert, weights[l], entropies[l], {}, {}, {}, {}});
  }
  LiveAccumulators live(shape_of(kModel), {{true, true, false}});
  const std::vector<std::uint8_t> included = included_tokens(rows.id, excluded);
  live.observe({rows.id, rows.position, group, target, rows.predicted, rows.loss, included, views});
  return live.take(Communicator::self());
}

TEST(Reduce, PartsOfSegmentsGiveWhatAllRowsTogetherDo) {
  const Communicator comm = Communicator::world();
  const SharedFolder folder(comm);
  const TokenRows rows = random_rows(40, 1);
  const std::vector<std::uint64_t> begins = {0, 7 * kDocumentTokens + 9, 30 * kDocumentTokens};
  if (comm.rank() == 0) write_run(folder.path() / "run", rows, begins);
  comm.barrier();
  const Accumulators expected = in_one_piece(rows);

  int compared = 0;
  for (const std::uint64_t rows_at_once : {1U, 10U, 64U, 1U << 16U})
    for (const std::uint64_t rows_of_part : {5U, 50U, 170U, 1U << 20U}) {
      const Statistics reduced = reduce_runs(
          {folder.path() / "run"}, {.recompute = true, .rows_at_once = rows_at_once, .rows_of_part = rows_of_part},
          [](std::size_t, std::size_t) {}, comm);
      if (comm.rank() != 0) continue;
      const Accumulators& got = reduced.datasets.at(0).accumulators;
      EXPECT_EQ(got.documents[0], 40U);
      EXPECT_EQ(got.confident, (std::vector<std::uint64_t>{1 + 2 + 3, 0, 15}));  // not in rows: taken over
      const std::vector<Table> a = to_tables({&got}, "");
      const std::vector<Table> b = to_tables({&expected}, "");
      ASSERT_EQ(a.size(), b.size());
      for (std::size_t i = 0; i < a.size(); ++i) {
        if (a[i].path == "/totals/documents" || a[i].path == "/top_probability/confident") continue;
        if (std::holds_alternative<std::vector<double>>(a[i].values)) continue;
        EXPECT_EQ(a[i].values, b[i].values) << a[i].path;
        ++compared;
      }
      for (std::size_t l = 0; l < 3; ++l) EXPECT_NEAR(got.entropy[l].mean, expected.entropy[l].mean, 1e-12);
      EXPECT_NEAR(got.weight_sum[4], expected.weight_sum[4], 1e-9);
    }
  EXPECT_GT(compared, comm.rank() == 0 ? 400 : -1);
}

}  // namespace
}  // namespace switchyard
