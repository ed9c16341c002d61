#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <semaphore.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "io/hdf5/file.h"
#include "io/manifest.h"
#include "io/routing_reader.h"
#include "io/routing_writer.h"
#include "io/segment_file.h"
#include "io/together.h"
#include "parallel/error.h"
#include "tests/io/record_support.h"
#include "tests/support/error_text.h"
#include "tests/support/small_disk.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using testing::Compared;
using testing::error_text;
using testing::SharedFolder;
using testing::SmallDisk;

SegmentEntry commit(const fs::path& out, std::uint64_t number, const ModelFacts& model, const WriteOptions& options,
                    const std::vector<std::uint64_t>& block_rows, const Communicator& comm) {
  testing::RankShare share =
      testing::share_of_segment(model, options.layout.level, 0, block_rows, comm.rank(), comm.size());
  if (comm.rank() == 0) share.contents.tables = testing::segment_tables({"a", "b", "c"}, 0, 2);
  return commit_segment(out, number, model, share.contents, options, R"({"blocks":2})", comm);
}

std::uint64_t sum(const std::vector<std::uint64_t>& values) {
  std::uint64_t total = 0;
  for (const std::uint64_t value : values) total += value;
  return total;
}

/// Shares of the support header: ranks without rows, unequal ones, all rows once.
TEST(SharesForTests, CoverEveryBlockOnceAndLeaveRanksEmpty) {
  for (const int n_ranks : {1, 2, 3, 4}) {
    int empty = 0;
    for (const std::uint64_t block : {0U, 1U}) {
      std::uint64_t next = 100;
      for (int rank = 0; rank < n_ranks; ++rank) {
        const RowRange range = testing::share_of(rank, n_ranks, block, 100, 1001);
        EXPECT_EQ(range.first, next);
        next += range.count;
        empty += range.count == 0 ? 1 : 0;
      }
      EXPECT_EQ(next, 1101U);
    }
    EXPECT_EQ(empty, n_ranks == 1 ? 0 : 2);
  }
}

struct Case {
  std::string name;
  int n_experts;
  int top_k;
  RecordLevel level;
  bool compress;
  std::vector<std::uint64_t> block_rows;
};

class SegmentRows : public ::testing::TestWithParam<Case> {};

TEST_P(SegmentRows, AreReadBackWholeOnEveryRank) {
  const Case& c = GetParam();
  const Communicator comm = Communicator::world();
  const SharedFolder folder(comm);
  const ModelFacts model = testing::small_model(c.n_experts, c.top_k);
  const SegmentEntry entry = commit(folder.path(), 3, model, {c.level, c.compress}, c.block_rows, comm);
  const std::uint64_t n_rows = sum(c.block_rows);
  EXPECT_EQ(entry.file, "segments/segment-000003.h5");
  EXPECT_EQ(entry.tokens, n_rows);
  EXPECT_EQ(segment_fault(folder.path(), entry), std::nullopt);
  EXPECT_FALSE(fs::exists(folder.path() / (entry.file + ".part")));

  const RoutingReader reader(folder.path() / entry.file);
  EXPECT_EQ(reader.model(), model);
  EXPECT_EQ(reader.level(), c.level);
  ASSERT_EQ(reader.n_rows(), n_rows);
  const Compared all = testing::compare(reader.read_rows(0, n_rows), testing::rows_of_run(model, c.level, 0, n_rows));
  EXPECT_EQ(all.wrong, 0U);
  const auto k = static_cast<std::uint64_t>(c.top_k);
  const auto logits = c.level == RecordLevel::logits ? static_cast<std::uint64_t>(c.n_experts) : 0U;
  EXPECT_EQ(all.elements, n_rows * (6 + 2 * (2 * k + 1 + logits)));

  const std::uint64_t middle = n_rows / 2 - 3;  // a part, over the block's bound
  EXPECT_EQ(testing::compare(reader.read_rows(middle, 7), testing::rows_of_run(model, c.level, middle, 7)).wrong, 0U);
  EXPECT_TRUE(reader.read_rows(n_rows, 0).id.empty());
  EXPECT_THROW(reader.read_rows(n_rows - 1, 2), Error);
}

INSTANTIATE_TEST_SUITE_P(All, SegmentRows,
                         ::testing::Values(Case{"SeveralChunks", 7, 2, RecordLevel::tokens, false, {70001, 0, 40000}},
                                           Case{"FewRows", 7, 2, RecordLevel::tokens, false, {1, 8}},
                                           Case{"TopOne", 7, 1, RecordLevel::tokens, false, {101}},
                                           Case{"SevenLogits", 7, 2, RecordLevel::logits, false, {500, 333}},
                                           Case{"ManyExperts", 300, 3, RecordLevel::logits, false, {210, 101, 50}},
                                           Case{"Compressed", 7, 2, RecordLevel::tokens, true, {70001, 0, 40000}},
                                           Case{"CompressedLogits", 300, 3, RecordLevel::logits, true, {210, 101}}),
                         [](const auto& tested) { return tested.param.name; });

TEST(Segment, CompressedIsSmallerAndTheSame) {
  const Communicator comm = Communicator::world();
  const SharedFolder folder(comm);
  const ModelFacts model = testing::small_model(7, 2);
  const std::vector<std::uint64_t> block_rows = {70001, 40000};
  const SegmentEntry raw = commit(folder.path(), 0, model, {RecordLevel::tokens, false}, block_rows, comm);
  const SegmentEntry compressed = commit(folder.path(), 1, model, {RecordLevel::tokens, true}, block_rows, comm);
  EXPECT_LT(compressed.bytes, raw.bytes / 2);
  const TokenRows a = RoutingReader(folder.path() / raw.file).read_rows(0, 110001);
  const TokenRows b = RoutingReader(folder.path() / compressed.file).read_rows(0, 110001);
  const Compared compared = testing::compare(b, a);
  EXPECT_EQ(compared.wrong, 0U);
  EXPECT_EQ(compared.elements, 110001U * 16);
}

/// 8 bytes per token and layer at k = 2, E = 8, and what a token costs once; metadata and chunk rounding are small.
TEST(Segment, TakesTheBytesThatTheFormatSays) {
  const Communicator comm = Communicator::world();
  const SharedFolder folder(comm);
  const ModelFacts model = testing::small_model(8, 2);
  const SegmentEntry entry = commit(folder.path(), 0, model, {}, {100000}, comm);
  EXPECT_GE(entry.bytes, 100000U * (21 + 2 * 8));
  EXPECT_LE(entry.bytes, 100000U * (21 + 2 * 8) + 100000);
}

TEST(Segment, OfCountsHasTablesAndNoRows) {
  const Communicator comm = Communicator::world();
  const SharedFolder folder(comm);
  const SegmentEntry entry = commit(folder.path(), 0, testing::small_model(7, 2), {RecordLevel::counts}, {40, 2}, comm);
  EXPECT_EQ(entry.tokens, 42U);
  const RoutingReader reader(folder.path() / entry.file);
  EXPECT_EQ(reader.level(), RecordLevel::counts);
  EXPECT_EQ(reader.n_rows(), 0U);
  EXPECT_FALSE(reader.contains("/tokens"));
  EXPECT_FALSE(reader.contains("/routing/layer_001/expert"));
  EXPECT_TRUE(reader.list("/routing").empty());
  const Table counts = reader.read("/accumulators/expert_count");
  EXPECT_EQ(std::get<std::vector<std::uint64_t>>(counts.values), (std::vector<std::uint64_t>{1, 2, 3, 4, 5, 6}));
}

TEST(Segment, WithoutRowsIsCommittedToo) {
  const Communicator comm = Communicator::world();
  const SharedFolder folder(comm);
  const SegmentEntry entry = commit(folder.path(), 0, testing::small_model(7, 2), {}, {0, 0}, comm);
  EXPECT_EQ(entry.tokens, 0U);
  EXPECT_EQ(RoutingReader(folder.path() / entry.file).n_rows(), 0U);
}

TEST(Segment, OfADenseModelHasTokensOnly) {
  const Communicator comm = Communicator::world();
  const SharedFolder folder(comm);
  const ModelFacts model = testing::small_model(0, 0, {});
  const SegmentEntry entry = commit(folder.path(), 0, model, {}, {40, 21}, comm);
  const RoutingReader reader(folder.path() / entry.file);
  EXPECT_EQ(reader.model(), model);
  const Compared compared =
      testing::compare(reader.read_rows(0, 61), testing::rows_of_run(model, RecordLevel::tokens, 0, 61));
  EXPECT_EQ(compared.wrong, 0U);
  EXPECT_EQ(compared.elements, 61U * 6);
}

TEST(Segment, TablesComeBackAsTheyWere) {
  const Communicator comm = Communicator::world();
  const SharedFolder folder(comm);
  const SegmentEntry entry = commit(folder.path(), 0, testing::small_model(7, 2), {}, {30, 8}, comm);
  const RoutingReader reader(folder.path() / entry.file);
  int compared = 0;
  for (const Table& expected : testing::segment_tables({"a", "b", "c"}, 0, 2)) {
    const Table found = reader.read(expected.path);
    EXPECT_EQ(found.dimensions, expected.dimensions) << expected.path;
    EXPECT_EQ(found.shape, expected.shape) << expected.path;
    EXPECT_EQ(found.values, expected.values) << expected.path;
    EXPECT_EQ(found.units, expected.units) << expected.path;
    EXPECT_EQ(found.long_name, expected.long_name) << expected.path;
    ++compared;
  }
  EXPECT_EQ(compared, 8);
  EXPECT_THAT(reader.list("/accumulators"),
              ::testing::ElementsAre("/accumulators/expert_count", "/accumulators/sparse/index",
                                     "/accumulators/sparse/indptr"));
  // expert has length 3 in /accumulators and layer 2 everywhere: no scale of the root is claimed twice.
  EXPECT_EQ(reader.read("/routing/layer_012/weight").dimensions, (std::vector<std::string>{"token", "slot"}));
  EXPECT_EQ(reader.read("/routing/layer_012/weight").units, "1");
  EXPECT_EQ(reader.read("/tokens/loss").units, "nats");
  const Table entropy = reader.read("/routing/layer_001/entropy");
  EXPECT_EQ(std::get<std::vector<float>>(entropy.values)[3], 0.375F);
  EXPECT_THAT(error_text([&] { reader.read("/tokens/none"); }), ::testing::HasSubstr("/tokens/none"));
}

TEST(Segment, IsNamedInTheManifestWithItsDetails) {
  const Communicator comm = Communicator::world();
  const SharedFolder folder(comm);
  const ModelFacts model = testing::small_model(7, 2);
  const SegmentEntry first = commit(folder.path(), 0, model, {}, {30, 8}, comm);
  const SegmentEntry second = commit(folder.path(), 1, model, {RecordLevel::tokens, true}, {11}, comm);
  const std::vector<SegmentEntry> entries = read_manifest(folder.path());
  ASSERT_EQ(entries.size(), 2U);
  EXPECT_EQ(entries[0].checksum, first.checksum);
  EXPECT_EQ(entries[0].tokens, 38U);
  EXPECT_EQ(entries[0].details, R"({"blocks":2})");
  EXPECT_EQ(entries[1].file, second.file);
  EXPECT_EQ(entries[1].bytes, fs::file_size(folder.path() / second.file));
}

TEST(Segment, IsNotWrittenOverAnother) {
  const Communicator comm = Communicator::world();
  const SharedFolder folder(comm);
  const SegmentEntry entry = commit(folder.path(), 0, testing::small_model(7, 2), {}, {30, 8}, comm);
  const std::string text = error_text([&] { commit(folder.path(), 0, testing::small_model(7, 2), {}, {30, 8}, comm); });
  EXPECT_THAT(text, ::testing::HasSubstr("segment-000000.h5: the segment is there already"));
  EXPECT_EQ(segment_fault(folder.path(), entry), std::nullopt);
}

/// One rank brings what does not fit: all ranks throw its Error, nothing is left, and the ranks can go on.
TEST(Segment, OfOneWrongRankFailsOnAllRanksAlike) {
  const Communicator comm = Communicator::world();
  const SharedFolder folder(comm);
  const ModelFacts model = testing::small_model(7, 2);
  const int wrong_rank = comm.size() - 1;
  testing::RankShare share = testing::share_of_segment(model, RecordLevel::tokens, 0, {40}, comm.rank(), comm.size());
  if (comm.rank() == wrong_rank) share.blocks[0].layers[1].expert.at(3) = 7;
  const auto action = [&] { commit_segment(folder.path(), 0, model, share.contents, {}, "{}", comm); };
  EXPECT_EQ(error_text(action), "/routing/layer_012/expert: expert 7 of 7");
  if (comm.rank() == wrong_rank) share.blocks[0].layers[1].expert.at(3) = 6;
  if (comm.rank() == wrong_rank) share.contents.ranges[0].count += 1;
  EXPECT_NE(error_text(action), "");
  comm.barrier();
  EXPECT_FALSE(fs::exists(folder.path() / "segments/segment-000000.h5"));
  EXPECT_FALSE(fs::exists(folder.path() / "segments/segment-000000.h5.part"));
  EXPECT_TRUE(read_manifest(folder.path()).empty());
  commit(folder.path(), 0, model, {}, {40}, comm);
  EXPECT_EQ(read_manifest(folder.path()).size(), 1U);
}

TEST(Segment, OfTooFewRowsIsRefused) {
  const Communicator comm = Communicator::world();
  const SharedFolder folder(comm);
  const ModelFacts model = testing::small_model(7, 2);
  testing::RankShare share = testing::share_of_segment(model, RecordLevel::tokens, 0, {40}, comm.rank(), comm.size());
  share.contents.n_rows = 41;
  EXPECT_EQ(error_text([&] { commit_segment(folder.path(), 0, model, share.contents, {}, "{}", comm); }),
            "the ranks bring 40 rows for a segment of 41");
}

TEST(Segment, OnAFullDiskSaysSoOnEveryRank) {
  const Communicator comm = Communicator::world();
  const SharedFolder folder(comm);
  const fs::path out = folder.path() / "small";
  const SmallDisk disk(out, "size=1m", 0, comm);
  if (!disk.is_mounted()) GTEST_SKIP() << "mounting a small tmpfs needs root";
  const ModelFacts model = testing::small_model(7, 2);
  EXPECT_THAT(error_text([&] { commit(out, 0, model, {}, {70001}, comm); }),
              ::testing::AllOf(::testing::HasSubstr((out / "segments").string() + ": the disk is full: 26"),
                               ::testing::HasSubstr("are free; free some space")));
  EXPECT_TRUE(read_manifest(out).empty());
  comm.barrier();  // rank 0 removes what is left before it throws
  EXPECT_FALSE(fs::exists(out / "segments/segment-000000.h5.part"));
  commit(out, 0, model, {}, {100}, comm);  // a smaller one fits
  EXPECT_EQ(read_manifest(out).size(), 1U);
}

/// The free space was there when it was asked for, and is gone when the ranks begin to write.
TEST(Segment, OnADiskThatFillsMeanwhileFailsOnEveryRankBeforeAnyWrite) {
  const Communicator comm = Communicator::world();
  const SharedFolder folder(comm);
  const fs::path disk_path = folder.path() / "small";
  const SmallDisk disk(disk_path, "size=1m", 0, comm);
  if (!disk.is_mounted()) GTEST_SKIP() << "mounting a small tmpfs needs root";
  const ModelFacts model = testing::small_model(7, 2);
  testing::RankShare share =
      testing::share_of_segment(model, RecordLevel::tokens, 0, {50000, 60000}, comm.rank(), comm.size());
  for (const bool compress : {false, true}) {
    const WriteOptions options{RecordLevel::tokens, compress};
    RowFile rows(disk_path / "rows.h5", model, share.contents, options, comm);
    EXPECT_THAT(
        error_text([&] { reserve_rows(disk_path / "rows.h5", model, share.contents, options.layout.level); }),
        ::testing::AllOf(::testing::HasSubstr("rows.h5: cannot reserve "), ::testing::HasSubstr("No space left")));
    rows.close();
  }
}

TEST(Segment, InAReadOnlyFolderSaysSo) {
  const Communicator comm = Communicator::world();
  const SharedFolder folder(comm);
  const fs::path out = folder.path() / "readonly";
  const SmallDisk disk(out, "size=1m", MS_RDONLY, comm);
  if (!disk.is_mounted()) GTEST_SKIP() << "mounting a read-only tmpfs needs root";
  EXPECT_EQ(error_text([&] { commit(out, 0, testing::small_model(7, 2), {}, {100}, comm); }),
            (out / "segments").string() +
                ": cannot make the folder: Read-only file system; give an output folder that you may write to");
}

// Open MPI's shared file pointers take a semaphore of this name, and a run that is killed there leaves it taken.
TEST(CommitSegment, DoesNotWaitForASemaphoreThatAKilledRunLeft) {
  const Communicator comm = Communicator::world();
  const SharedFolder folder(comm);
  const char* name = "/OMPIO_segment-000007.h5.part";
  if (comm.rank() == 0) {
    sem_t* taken = ::sem_open(name, O_CREAT, 0600, 0);
    ASSERT_NE(taken, SEM_FAILED);
    ::sem_close(taken);
  }
  comm.barrier();
  const SegmentEntry entry = commit(folder.path(), 7, testing::small_model(7, 2), {}, {30, 8}, comm);
  EXPECT_EQ(segment_fault(folder.path(), entry), std::nullopt);
  comm.barrier();
  if (comm.rank() == 0) ::sem_unlink(name);
}

TEST(SegmentFault, NamesWhatIsWrong) {
  const Communicator comm = Communicator::world();
  const SharedFolder folder(comm);
  const SegmentEntry entry = commit(folder.path(), 0, testing::small_model(7, 2), {}, {30, 8}, comm);
  SegmentEntry other = entry;
  other.bytes += 1;
  EXPECT_THAT(segment_fault(folder.path(), other).value_or(""), ::testing::HasSubstr("bytes, the manifest says"));
  other = entry;
  other.checksum[0] = other.checksum[0] == 'a' ? 'b' : 'a';
  EXPECT_THAT(segment_fault(folder.path(), other).value_or(""), ::testing::HasSubstr("its checksum is"));
  other.file = "segments/segment-000009.h5";
  EXPECT_THAT(segment_fault(folder.path(), other).value_or(""), ::testing::HasSubstr("No such file"));
}

TEST(RoutingReader, RefusesOtherFiles) {
  const Communicator comm = Communicator::world();
  const SharedFolder folder(comm);
  const SegmentEntry entry = commit(folder.path(), 0, testing::small_model(7, 2), {}, {30, 8}, comm);
  if (comm.rank() == 0) {
    const fs::path newer = folder.path() / "newer.h5";
    fs::copy_file(folder.path() / entry.file, newer);
    hdf5::File file = hdf5::File::open(newer, hdf5::File::Access::modify);
    file.set_attribute("/", "format_version", std::string("2.0"));
    file.close();
    EXPECT_THAT(
        error_text([&] { RoutingReader reader(newer); }),
        ::testing::AllOf(::testing::HasSubstr("newer.h5: its format_version is 2.0"), ::testing::HasSubstr("1.x")));
    hdf5::File other = hdf5::File::open(newer, hdf5::File::Access::modify);
    other.set_attribute("/", "format", std::string(kStatsFormat));
    other.close();
    EXPECT_THAT(error_text([&] { RoutingReader reader(newer); }), ::testing::HasSubstr("switchyard-stats"));
    testing::write_file(newer, "not HDF5");
    EXPECT_THAT(error_text([&] { RoutingReader reader(newer); }), ::testing::HasSubstr("newer.h5: cannot open"));
  }
}

}  // namespace
}  // namespace switchyard
