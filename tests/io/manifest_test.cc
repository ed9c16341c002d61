#include "io/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "parallel/error.h"
#include "tests/support/error_text.h"
#include "tests/support/temp_folder.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using testing::error_text;
using testing::read_file;
using testing::TempFolder;
using testing::write_file;

std::string line(int number) {
  return to_line({segment_file(static_cast<std::uint64_t>(number)), 10, "00000000000000aa", 5, R"({"z":1,"a":[2]})"});
}

TEST(Manifest, IsEmptyWithoutAFile) {
  const TempFolder folder;
  EXPECT_TRUE(read_manifest(folder.path()).empty());
  repair_after_kill(folder.path());
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

TEST(Manifest, KeepsEntriesInOrderAndTheirDetails) {
  const TempFolder folder;
  append_entry(folder.path(), {"segments/segment-000007.h5", 1ULL << 40U, "0123456789abcdef", 12,
                               R"({"z": 1, "a": {"text": "ü\n"}})"});
  append_entry(folder.path(), {"segments/segment-000003.h5", 2, "f", 0, ""});
  const std::vector<SegmentEntry> entries = read_manifest(folder.path());
  ASSERT_EQ(entries.size(), 2U);
  EXPECT_EQ(entries[0].file, "segments/segment-000007.h5");
  EXPECT_EQ(entries[0].bytes, 1ULL << 40U);
  EXPECT_EQ(entries[0].checksum, "0123456789abcdef");
  EXPECT_EQ(entries[0].tokens, 12U);
  EXPECT_EQ(entries[0].details, R"({"z":1,"a":{"text":"ü\n"}})");
  EXPECT_EQ(entries[1].file, "segments/segment-000003.h5");
  EXPECT_EQ(entries[1].details, "{}");
  EXPECT_THAT(error_text([&] {
                append_entry(folder.path(), {"segments/segment-000008.h5", 2, "f", 0, "[1]"});
              }),
              ::testing::HasSubstr("no JSON object"));
}

/// A kill may leave any number of the last line's bytes.
TEST(Manifest, DropsATornLastLine) {
  const TempFolder folder;
  const std::string last = line(2);
  int tried = 0;
  for (std::size_t kept = 0; kept < last.size(); ++kept, ++tried) {
    write_file(folder / "manifest.jsonl", line(0) + line(1) + last.substr(0, kept));
    ASSERT_EQ(read_manifest(folder.path()).size(), 2U) << kept;
    repair_after_kill(folder.path());
    ASSERT_EQ(read_file(folder / "manifest.jsonl"), line(0) + line(1)) << kept;
  }
  EXPECT_GT(tried, 100);
  write_file(folder / "manifest.jsonl", line(0) + std::string(4096, '\0'));
  EXPECT_EQ(read_manifest(folder.path()).size(), 1U);
}

TEST(Manifest, NamesAMalformedLine) {
  const TempFolder folder;
  const auto text_of = [&](const std::string& second) {
    write_file(folder / "manifest.jsonl", line(0) + second + "\n" + line(1));
    return error_text([&] { read_manifest(folder.path()); });
  };
  const std::string place = (folder / "manifest.jsonl").string() + ", line 2: ";
  const std::vector<std::string> malformed = {
      "",
      "{",
      "[]",
      "{}",
      R"({"file":"segments/segment-000001.h5","bytes":-1,"checksum":"a","tokens":1,"details":{}})",
      R"({"file":"segments/segment-000001.h5","bytes":1,"checksum":5,"tokens":1,"details":{}})",
      R"({"file":"segments/segment-000001.h5","bytes":1,"checksum":"a","tokens":1.5,"details":{}})",
      R"({"file":"segments/segment-000001.h5","bytes":1,"checksum":"a","tokens":1,"details":[]})",
      R"({"file":"../segment-000001.h5","bytes":1,"checksum":"a","tokens":1,"details":{}})",
      R"({"file":"segments/../../etc/passwd","bytes":1,"checksum":"a","tokens":1,"details":{}})"};
  for (const std::string& text : malformed) EXPECT_THAT(text_of(text), ::testing::StartsWith(place)) << text;
  const std::string twice = line(0);
  EXPECT_THAT(text_of(twice.substr(0, twice.size() - 1)), ::testing::HasSubstr("is named twice"));
}

TEST(Manifest, RepairRemovesWhatNoLineNamesAndNothingElse) {
  const TempFolder folder;
  fs::create_directories(folder / "segments/segment-000009.h5.d");
  write_file(folder / "manifest.jsonl", line(0) + line(1) + "{\"file");
  for (const char* name :
       {"segments/segment-000000.h5", "segments/segment-000001.h5", "segments/segment-000002.h5",
        "segments/segment-000003.h5.part", "segments/notes.txt", "routing.h5", "routing.h5.part", "stats.h5"})
    write_file(folder / name, "x");
  repair_after_kill(folder.path());
  std::vector<std::string> left;
  for (const auto& entry : fs::recursive_directory_iterator(folder.path()))
    left.push_back(fs::relative(entry.path(), folder.path()).string());
  EXPECT_THAT(left, ::testing::UnorderedElementsAre("manifest.jsonl", "segments", "segments/segment-000009.h5.d",
                                                    "segments/segment-000000.h5", "segments/segment-000001.h5",
                                                    "segments/notes.txt", "routing.h5", "stats.h5"));
  EXPECT_EQ(read_file(folder / "manifest.jsonl"), line(0) + line(1));
}

TEST(Checksum, IsXxh3OfTheBytes) {
  const TempFolder folder;
  write_file(folder / "empty", "");
  EXPECT_EQ(checksum_of(folder / "empty"), "2d06800538d394c2");  // XXH3-64 of no bytes, seed 0
  std::string text(9000000, 'a');                                // more than a buffer
  write_file(folder / "a", text);
  const std::string before = checksum_of(folder / "a");
  text[8999999] = 'b';
  write_file(folder / "a", text);
  EXPECT_NE(checksum_of(folder / "a"), before);
  EXPECT_THROW(checksum_of(folder / "none"), Error);
}

}  // namespace
}  // namespace switchyard
