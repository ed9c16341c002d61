#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <fstream>
#include <optional>
#include <string>

#include "io/corpus/document_reader.h"
#include "io/run_folder.h"
#include "tests/support/error_text.h"
#include "tests/support/temp_folder.h"

namespace switchyard {
namespace {

using ::testing::HasSubstr;
using testing::TempFolder;
using testing::write_file;

constexpr std::uint64_t kHoleBytes = 50'000'000'000;

/// A file of 50 GB whose middle takes no space on disk and reads as NUL bytes.
void write_with_hole(const std::filesystem::path& path, const std::string& front, const std::string& back) {
  write_file(path, front);
  std::filesystem::resize_file(path, front.size() + kHoleBytes);
  std::ofstream out(path, std::ios::binary | std::ios::app);
  out << back;
}

/// A reader of one file that counts its reads of at most 1 MiB.
class CountedReader {
 public:
  explicit CountedReader(const std::string& option, ReaderOptions options = {}) {
    const CorpusSpec spec = CorpusSpec::parse(option);
    options.called_off = [this] { return ++reads_ > most_reads_; };
    reader_.emplace(spec, list_files(spec), options);
  }
  DocumentReader* operator->() { return &*reader_; }
  std::uint64_t reads() const { return reads_; }
  void call_off_after(std::uint64_t reads) { most_reads_ = reads; }

 private:
  std::uint64_t reads_ = 0;
  std::uint64_t most_reads_ = 1'000'000'000;
  std::optional<DocumentReader> reader_;
};

TEST(LargeCorpus, ContinuesDeepInAFileWithoutReadingUpToThere) {
  const TempFolder folder;
  const std::string front = "one\ntwo\n";
  for (const auto& [name, first, back, second] :
       {std::array<std::string, 4>{"a.txt", "deep line", "\ndeep line\nlast line\n", "last line"},
        {"a.jsonl", "deep", "\n{\"text\": \"deep\"}\n{\"text\": \"last\"}\n", "last"},
        {"a.csv", "deep", "\ndeep\nlast\n", "last"}}) {
    const std::string begin = name == "a.csv" ? "text\none\n" : front;
    write_with_hole(folder / name, begin, back);
    CountedReader reader("c=" + (folder / name).string() + (name == "a.txt" ? ",split=line" : ""));
    reader->seek({0, begin.size() + kHoleBytes + 1, 3, 3, 3});
    EXPECT_EQ(reader->next()->text, first);
    EXPECT_EQ(reader->next()->text, second);
    EXPECT_FALSE(reader->next());
    EXPECT_EQ(reader->cursor(), (CorpusCursor{1, 0, 0, 5, 0}));
    EXPECT_LE(reader.reads(), 4U) << name;
  }
}

TEST(LargeCorpus, ALineIsNamedByItsNumberWithoutReadingUpToThere) {
  const TempFolder folder;
  write_with_hole(folder / "a.jsonl", "{\"text\": \"one\"}\n", "\n{\"text\": \"deep\"}\n[]\n");
  CountedReader reader("c=" + (folder / "a.jsonl").string());
  reader->seek({0, 16 + kHoleBytes + 1, 2, 1, 2});
  EXPECT_TRUE(reader->next());
  EXPECT_THAT(testing::error_text([&] { reader->next(); }), HasSubstr("a.jsonl:4: not a JSON object"));
  EXPECT_LE(reader.reads(), 4U);
}

TEST(LargeCorpus, WhatIsBeyondADocumentsLimitIsNotRead) {
  const TempFolder folder;
  write_with_hole(folder / "a.txt", "text", "end");
  ReaderOptions options;
  options.max_document_bytes = 1 << 20;
  CountedReader reader("c=" + (folder / "a.txt").string(), options);
  const std::optional<Document> document = reader->next();
  ASSERT_TRUE(document);
  EXPECT_EQ(document->text.size(), options.max_document_bytes);
  EXPECT_TRUE(document->truncated);
  EXPECT_EQ(reader->cursor().offset, kHoleBytes + 7);
  EXPECT_FALSE(reader->next());
  EXPECT_LE(reader.reads(), 5U);
}

TEST(LargeCorpus, ReadingIsCalledOffInsideALine) {
  const TempFolder folder;
  for (const std::string format : {"text,split=line", "text,split=blank", "jsonl", "csv"}) {
    const std::string line = format == "jsonl" ? "{\"text\": \"one\"}\n\n" : "text\n\none\n\n";
    write_with_hole(folder / "a", line, "\nend\n");
    CountedReader reader("c=" + (folder / "a").string() + ",format=" + format);
    EXPECT_TRUE(reader->next()) << format;
    const CorpusCursor before = reader->cursor();
    reader.call_off_after(10);
    while (reader->next()) EXPECT_LE(reader.reads(), 10U) << format;  // no document of half a line, and no error
    EXPECT_GT(reader.reads(), 10U);
    EXPECT_FALSE(reader->next());
    EXPECT_GE(reader->cursor().offset, before.offset);
    EXPECT_LT(reader->cursor().offset, 20U);
  }
}

TEST(LargeCorpus, LinesOfHundredMegabytesAreCutAtTheLimit) {
  const TempFolder folder;
  const std::string line(100'000'000, 'x');
  write_file(folder / "a.txt", line + "\nnext\n");
  write_file(folder / "a.jsonl", "{\"text\": \"" + line + "\"}\n{\"text\": \"next\"}\n");
  for (const std::string name : {"a.txt,split=line", "a.jsonl"}) {
    CountedReader reader("c=" + (folder / name).string());
    const std::optional<Document> document = reader->next();
    ASSERT_TRUE(document) << name;
    EXPECT_EQ(document->text.size(), 64U << 20U);
    EXPECT_TRUE(document->truncated);
    EXPECT_EQ(reader->next()->text, "next");
  }
}

TEST(LargeCorpus, IsIdentifiedByItsSizesAndSomeBeginnings) {
  const TempFolder folder;
  const auto identity = [&] {
    const CorpusSpec spec = CorpusSpec::parse("c=" + folder.path().string());
    return identify(spec, list_files(spec));
  };
  write_with_hole(folder / "a.txt", "text", "end");
  const CorpusIdentity first = identity();
  EXPECT_EQ(first.bytes, kHoleBytes + 7);
  EXPECT_EQ(first.files, 1U);
  EXPECT_EQ(identity().hash, first.hash);
  write_with_hole(folder / "a.txt", "text", "end!");
  EXPECT_NE(identity().hash, first.hash);
  write_with_hole(folder / "a.txt", "texT", "end");
  EXPECT_NE(identity().hash, first.hash);
}

}  // namespace
}  // namespace switchyard
