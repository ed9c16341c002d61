#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "io/manifest.h"
#include "io/routing_reader.h"
#include "io/routing_writer.h"
#include "parallel/error.h"
#include "tests/io/record_support.h"
#include "tests/io/small_run.h"
#include "tests/support/error_text.h"
#include "tests/support/temp_folder.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using testing::error_text;
using testing::SmallRun;
using testing::TempFolder;
using testing::write_small_run;

template <typename T>
std::vector<T> values_of(const RoutingReader& reader, std::string_view path) {
  return std::get<std::vector<T>>(reader.read(path).values);
}

class Master : public ::testing::TestWithParam<RecordLevel> {};

TEST_P(Master, HasTheRowsOfAllSegmentsInOrder) {
  const TempFolder folder;
  const SmallRun run = write_small_run(folder.path(), GetParam());
  const RoutingReader reader(folder / "routing.h5");
  EXPECT_EQ(reader.model(), run.model);
  EXPECT_EQ(reader.level(), GetParam());
  ASSERT_EQ(reader.n_rows(), SmallRun::kRows);
  const TokenRows expected = testing::rows_of_run(run.model, GetParam(), 0, SmallRun::kRows);
  const testing::Compared all = testing::compare(reader.read_rows(0, SmallRun::kRows), expected);
  EXPECT_EQ(all.wrong, 0U);
  EXPECT_EQ(all.elements, SmallRun::kRows * (6 + 2 * (5 + (GetParam() == RecordLevel::logits ? 7 : 0))));
  for (std::uint64_t first = 0; first + 20 <= SmallRun::kRows; first += 4) {  // over the segments' bounds
    const TokenRows part = testing::rows_of_run(run.model, GetParam(), first, 20);
    EXPECT_EQ(testing::compare(reader.read_rows(first, 20), part).wrong, 0U) << first;
  }
}

INSTANTIATE_TEST_SUITE_P(Levels, Master, ::testing::Values(RecordLevel::tokens, RecordLevel::logits),
                         [](const auto& tested) { return std::string(to_string(tested.param)); });

TEST(Master, AppendsDocumentsAndSteps) {
  const TempFolder folder;
  const SmallRun run = write_small_run(folder.path(), RecordLevel::tokens);
  const RoutingReader reader(folder / "routing.h5");
  EXPECT_EQ(values_of<std::string>(reader, "/documents/id"), run.ids);
  EXPECT_EQ(reader.read("/documents/id").dimensions, std::vector<std::string>{"document"});
  EXPECT_EQ(values_of<std::int16_t>(reader, "/documents/category"),
            (std::vector<std::int16_t>{-1, 1, 2, -1, 4, 5, -1, 7, 8}));
  EXPECT_EQ(values_of<std::uint64_t>(reader, "/documents/first_token"),
            (std::vector<std::uint64_t>{0, 5, 10, 15, 20, 25, 30, 35, 40}));

  const Table steps = reader.read("/dispatch/step_tokens");
  ASSERT_EQ(steps.shape, (std::vector<std::uint64_t>{9, 3}));
  EXPECT_EQ(steps.dimensions, (std::vector<std::string>{"step", "rank"}));
  const auto& tokens = std::get<std::vector<std::uint32_t>>(steps.values);
  const auto seconds = values_of<float>(reader, "/dispatch/seconds");
  int filled = 0;
  for (std::uint64_t step = 0; step < 9; ++step) {
    for (std::uint64_t rank = 0; rank < 3; ++rank) {
      const std::uint64_t at = step * 3 + rank;
      const bool was_there = rank < run.widths[step];
      EXPECT_EQ(tokens[at], was_there ? 100 * step + rank : 0xffffffffU) << at;
      if (was_there) {
        EXPECT_EQ(seconds[at], static_cast<float>(step) + 0.5F * static_cast<float>(rank)) << at;
      } else {
        EXPECT_TRUE(std::isnan(seconds[at])) << at;
        ++filled;
      }
    }
  }
  EXPECT_EQ(filled, 2 * 1 + 4 * 2);
  EXPECT_EQ(values_of<std::string>(reader, "/corpora/name"), (std::vector<std::string>{"wiki", "code"}));
  EXPECT_FALSE(reader.contains("/accumulators"));
  EXPECT_EQ(reader.read("/tokens/loss").units, "nats");
}

TEST(Master, AtLevelCountsHasTablesOnly) {
  const TempFolder folder;
  const SmallRun run = write_small_run(folder.path(), RecordLevel::counts);
  const RoutingReader reader(folder / "routing.h5");
  EXPECT_EQ(reader.level(), RecordLevel::counts);
  EXPECT_EQ(reader.n_rows(), 0U);
  EXPECT_FALSE(reader.contains("/tokens"));
  EXPECT_EQ(values_of<std::string>(reader, "/documents/id"), run.ids);
}

TEST(Master, MovesWithItsFolder) {
  const TempFolder folder;
  const SmallRun run = write_small_run(folder / "before", RecordLevel::tokens);
  fs::rename(folder / "before", folder / "after");
  const RoutingReader reader(folder / "after/routing.h5");
  const TokenRows expected = testing::rows_of_run(run.model, RecordLevel::tokens, 0, SmallRun::kRows);
  EXPECT_EQ(testing::compare(reader.read_rows(0, SmallRun::kRows), expected).wrong, 0U);
}

TEST(Master, NamesAMissingSegment) {
  const TempFolder folder;
  write_small_run(folder.path(), RecordLevel::tokens);
  fs::remove(folder / "segments/segment-000001.h5");
  const RoutingReader reader(folder / "routing.h5");
  const std::string text = error_text([&] { reader.read_rows(0, 5); });
  EXPECT_THAT(text, ::testing::AllOf(::testing::HasSubstr("segments/segment-000001.h5 is missing"),
                                     ::testing::HasSubstr("copy the whole run folder")));
  EXPECT_THAT(error_text([&] { reader.read("/documents/id"); }), ::testing::HasSubstr("is missing"));
  EXPECT_EQ(values_of<std::uint64_t>(reader, "/corpora/tokens").size(), 2U);  // copied, not virtual
}

TEST(Master, IsReplacedWhole) {
  const TempFolder folder;
  const SmallRun run = write_small_run(folder.path(), RecordLevel::tokens);
  write_master(folder.path(), run.model, std::span(run.segments).first(2), {});
  EXPECT_EQ(RoutingReader(folder / "routing.h5").n_rows(), 25U);
  EXPECT_FALSE(fs::exists(folder / "routing.h5.part"));
  ModelFacts other = run.model;
  other.top_k = 3;
  EXPECT_THAT(error_text([&] { write_master(folder.path(), other, run.segments, {}); }),
              ::testing::HasSubstr("segment-000000.h5: it is of another model or record level"));
  EXPECT_EQ(RoutingReader(folder / "routing.h5").n_rows(), 25U);
}

// tests/golden keeps a record of every format version that was ever written; a record that a user has must always open.
TEST(Master, RecordsOfFormat10StillOpen) {
  const fs::path folder = fs::path(SWITCHYARD_TEST_DATA) / "golden/record-1.0";
  const ModelFacts model = testing::small_model(7, 2);
  const RoutingReader reader(folder / "routing.h5");
  EXPECT_EQ(reader.model(), model);
  EXPECT_EQ(reader.level(), RecordLevel::logits);
  ASSERT_EQ(reader.n_rows(), SmallRun::kRows);
  const TokenRows expected = testing::rows_of_run(model, RecordLevel::logits, 0, SmallRun::kRows);
  EXPECT_EQ(testing::compare(reader.read_rows(0, SmallRun::kRows), expected).wrong, 0U);
  EXPECT_EQ(values_of<std::string>(reader, "/documents/id").size(), 9U);
  std::uint64_t rows = 0;
  for (const SegmentEntry& entry : read_manifest(folder)) {
    EXPECT_EQ(segment_fault(folder, entry), std::nullopt) << entry.file;
    rows += entry.tokens;
  }
  EXPECT_EQ(rows, SmallRun::kRows);
}

TEST(Master, OfNoSegmentsCanBeOpened) {
  const TempFolder folder;
  write_master(folder.path(), testing::small_model(7, 2), {}, {});
  EXPECT_EQ(RoutingReader(folder / "routing.h5").n_rows(), 0U);
}

}  // namespace
}  // namespace switchyard
