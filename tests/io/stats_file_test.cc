#include "io/stats_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "io/hdf5/file.h"
#include "io/routing_schema.h"
#include "parallel/error.h"
#include "tests/support/error_text.h"
#include "tests/support/temp_folder.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using testing::error_text;
using testing::TempFolder;

const std::map<std::string, std::string> kAttributes = {{"format", std::string(kStatsFormat)}, {"note", "größe"}};
const std::map<std::string, std::string> kGroups = {{"/a", "first"}, {"/a/b", "below"}, {"/z", "last"}};

/// Every type; dimensions shared, of several lengths by group, of length 0; one value; strings empty, long and UTF-8.
/// By path.
std::vector<Table> all_kinds() {
  const auto big = std::numeric_limits<std::uint64_t>::max();
  const auto low = std::numeric_limits<std::int64_t>::min();
  return {
      {"/a/b/bin", {"bin"}, {2}, std::vector<double>{0.5, 1e300}, "nats", "a coordinate: it is its own scale"},
      {"/a/b/histogram", {"dataset", "bin"}, {3, 2}, std::vector<std::uint64_t>{1, 2, 3, 4, 5, big}, "1", "u64"},
      {"/a/empty", {"nonzero"}, {0}, std::vector<std::uint32_t>{}, "1", "nothing"},
      {"/a/empty_names", {"nonzero"}, {0}, std::vector<std::string>{}, "1", "no names"},
      {"/a/i16", {"dataset"}, {3}, std::vector<std::int16_t>{-32768, -1, 32767}, "1", "i16"},
      {"/a/i32", {"dataset"}, {3}, std::vector<std::int32_t>{-2000000000, 0, 2000000000}, "1", "i32"},
      {"/a/i64", {"dataset"}, {3}, std::vector<std::int64_t>{low, -1, 7}, "1", "i64"},
      {"/a/names", {"dataset"}, {3}, std::vector<std::string>{"", "größe", std::string(300, 'x')}, "1", "names"},
      {"/a/u8", {"dataset"}, {3}, std::vector<std::uint8_t>{0, 7, 255}, "1", "u8"},
      {"/z/f32",
       {"bin"},
       {4},
       std::vector<float>{-0.0F, 1.5F, std::numeric_limits<float>::infinity(), 1e-40F},
       "s",
       "f32"},
      {"/z/one", {}, {}, std::vector<std::uint16_t>{65535}, "1", "no dimension"},
      {"/z/square", {"bin", "bin"}, {4, 4}, std::vector<std::uint16_t>(16, 3), "1", "one dimension twice"},
  };
}

TEST(StatsFile, RoundTripsEveryKindOfTable) {
  const TempFolder folder;
  const fs::path path = folder / "stats.h5";
  const std::vector<Table> tables = all_kinds();
  write_tables(path, kAttributes, kGroups, tables);
  const std::vector<Table> found = read_tables(path, std::string(kStatsFormat));
  ASSERT_EQ(found.size(), tables.size());
  for (std::size_t i = 0; i < tables.size(); ++i) {
    EXPECT_EQ(found[i].path, tables[i].path);
    EXPECT_EQ(found[i].dimensions, tables[i].dimensions) << tables[i].path;
    EXPECT_EQ(found[i].shape, tables[i].shape) << tables[i].path;
    EXPECT_EQ(found[i].values, tables[i].values) << tables[i].path;
    EXPECT_EQ(found[i].units, tables[i].units) << tables[i].path;
    EXPECT_EQ(found[i].long_name, tables[i].long_name) << tables[i].path;
  }
  EXPECT_FALSE(fs::exists(folder / "stats.h5.part"));
  const hdf5::File file = hdf5::File::open(path, hdf5::File::Access::read);
  EXPECT_EQ(file.string_attribute("/", "note"), "größe");
  EXPECT_EQ(file.string_attribute("/a/b", "description"), "below");
  EXPECT_TRUE(file.contains("/dataset"));  // one length: at the root
  EXPECT_TRUE(file.contains("/z/bin"));    // two lengths: by group
  EXPECT_FALSE(file.contains("/bin"));
}

TEST(StatsFile, KeepsNaNsAndEndsStringsAtTheirFirstNul) {
  const TempFolder folder;
  const std::vector<Table> tables = {
      {"/a/nan", {"x"}, {2}, std::vector<float>{std::nanf(""), 1.0F}, "1", "NaN"},
      {"/a/text", {"x"}, {2}, std::vector<std::string>{std::string("ab\0cd", 5), "ab"}, "1", "text"}};
  write_tables(folder / "s.h5", kAttributes, kGroups, tables);
  const std::vector<Table> found = read_tables(folder / "s.h5", std::string(kStatsFormat));
  ASSERT_EQ(found.size(), 2U);
  const auto& values = std::get<std::vector<float>>(found[0].values);
  EXPECT_TRUE(std::isnan(values[0]));
  EXPECT_EQ(values[1], 1.0F);
  EXPECT_EQ(std::get<std::vector<std::string>>(found[1].values), (std::vector<std::string>{"ab", "ab"}));
}

TEST(StatsFile, HoldsManyLongStrings) {
  const TempFolder folder;
  std::vector<std::string> names(5000, "short");
  names[4321] = std::string(4000, 'l');
  const std::vector<Table> tables = {{"/a/names", {"x"}, {names.size()}, names, "1", "names"}};
  write_tables(folder / "s.h5", kAttributes, kGroups, tables);
  EXPECT_EQ(read_tables(folder / "s.h5", std::string(kStatsFormat)).at(0).values, tables[0].values);
  EXPECT_LT(fs::file_size(folder / "s.h5"), 1000000U);  // 20 MB of padding deflated
}

TEST(StatsFile, ReplacesAFileWholeOrNotAtAll) {
  const TempFolder folder;
  const fs::path path = folder / "s.h5";
  write_tables(path, kAttributes, kGroups, std::vector<Table>{{"/a/x", {"x"}, {1}, std::vector<float>{1}, "1", ""}});
  const std::vector<Table> wrong = {{"/a/x", {"x"}, {1}, std::vector<float>{1}, "1", ""},
                                    {"/a/y", {"x"}, {2}, std::vector<float>{1, 2}, "1", ""}};
  EXPECT_EQ(error_text([&] { write_tables(path, kAttributes, kGroups, wrong); }),
            "/a/y: dimension x has length 2 here and 1 in /a/x");
  EXPECT_EQ(read_tables(path, std::string(kStatsFormat)).size(), 1U);
  EXPECT_FALSE(fs::exists(folder / "s.h5.part"));
}

TEST(StatsFile, RefusesTablesThatDoNotAddUp) {
  const TempFolder folder;
  const fs::path path = folder / "s.h5";
  const auto text_of = [&](const Table& table) {
    return error_text([&] { write_tables(path, kAttributes, kGroups, std::vector<Table>{table}); });
  };
  EXPECT_EQ(text_of({"/a/x", {"x"}, {2}, std::vector<float>{1}, "1", ""}), "table /a/x: 1 values for a shape of 2");
  EXPECT_EQ(text_of({"/a/x", {"x"}, {1, 1}, std::vector<float>{1}, "1", ""}), "table /a/x: 1 names for 2 dimensions");
  EXPECT_THAT(text_of({"a/x", {"x"}, {1}, std::vector<float>{1}, "1", ""}), ::testing::HasSubstr("begins with /"));
  EXPECT_THAT(text_of({"/a/x", {"x", "y"}, {1, 1}, std::vector<float>{1}, "1", ""}), "");
  EXPECT_THAT(text_of({"/a/x", {"a"}, {1}, std::vector<float>{1}, "1", ""}),
              ::testing::HasSubstr("a dimension is named like a group or data set"));
  EXPECT_THAT(text_of({"/q/x", {"x"}, {1}, std::vector<float>{1}, "1", ""}),
              ::testing::HasSubstr("/q: the group has no description"));
}

TEST(StatsFile, RefusesAnotherFormatAndABrokenFile) {
  const TempFolder folder;
  write_tables(folder / "s.h5", kAttributes, kGroups, all_kinds());
  EXPECT_THAT(error_text([&] { read_tables(folder / "s.h5", "switchyard-routing"); }),
              ::testing::HasSubstr("its format is \"switchyard-stats\"; give a file of format \"switchyard-routing\""));
  EXPECT_THAT(error_text([&] { read_tables(folder / "none.h5", std::string(kStatsFormat)); }),
              ::testing::AllOf(::testing::HasSubstr("none.h5: cannot open"),
                               ::testing::HasSubstr("No such file or directory")));
  const std::string bytes = testing::read_file(folder / "s.h5");
  int refused = 0;
  for (const std::size_t kept : {std::size_t{0}, std::size_t{20}, std::size_t{600}, bytes.size() / 2}) {
    testing::write_file(folder / "cut.h5", bytes.substr(0, kept));
    refused += error_text([&] { read_tables(folder / "cut.h5", std::string(kStatsFormat)); }).empty() ? 0 : 1;
  }
  EXPECT_EQ(refused, 4);
}

TEST(StatsFile, OnAFullDiskSaysSo) {
  const TempFolder folder;
  const fs::path disk = folder / "small";
  fs::create_directories(disk);
  if (mount("none", disk.c_str(), "tmpfs", 0, "size=1m") != 0) GTEST_SKIP() << "mounting a small tmpfs needs root";
  std::vector<std::string> names(400, "n");
  std::vector<std::uint32_t> noise(1U << 16U, 0);
  for (std::size_t i = 0; i < noise.size(); ++i) noise[i] = static_cast<std::uint32_t>(i * i);
  std::vector<Table> tables;
  for (int i = 0; i < 8; ++i) {
    const std::string suffix = std::to_string(i);
    tables.push_back({"/a/names" + suffix, {"x"}, {names.size()}, names, "1", ""});
    tables.push_back({"/a/noise" + suffix, {"y"}, {noise.size()}, noise, "1", ""});
  }
  EXPECT_THAT(error_text([&] { write_tables(disk / "s.h5", kAttributes, kGroups, tables); }),
              ::testing::AllOf(::testing::HasSubstr("s.h5.part, /a/noise"), ::testing::HasSubstr("No space left")));
  EXPECT_TRUE(fs::is_empty(disk));
  umount(disk.c_str());
}

}  // namespace
}  // namespace switchyard
