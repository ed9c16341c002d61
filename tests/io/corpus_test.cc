// g++ 12 takes an insertion in Boost's gzip_compressor for an overlapping copy.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wrestrict"
#endif

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <boost/iostreams/copy.hpp>
#include <boost/iostreams/device/array.hpp>
#include <boost/iostreams/device/back_inserter.hpp>
#include <boost/iostreams/filter/gzip.hpp>
#include <boost/iostreams/filter/zstd.hpp>
#include <boost/iostreams/filtering_streambuf.hpp>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "io/corpus/byte_stream.h"
#include "io/corpus/document_reader.h"
#include "io/corpus/format_reader.h"
#include "io/corpus/prompt_template.h"
#include "parallel/error.h"
#include "tests/fuzz/corpus_fuzz.h"
#include "tests/support/temp_folder.h"

namespace switchyard {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TempFolder;
using testing::write_file;
using Strings = std::vector<std::string>;

template <typename Compressor>
std::string compress(const std::string& bytes, const Compressor& compressor) {
  std::string compressed;
  boost::iostreams::filtering_streambuf<boost::iostreams::input> source;
  source.push(compressor);
  source.push(boost::iostreams::array_source(bytes.data(), bytes.size()));
  boost::iostreams::copy(source, boost::iostreams::back_inserter(compressed));
  return compressed;
}
std::string gzip(const std::string& bytes) { return compress(bytes, boost::iostreams::gzip_compressor()); }
std::string zstd(const std::string& bytes) { return compress(bytes, boost::iostreams::zstd_compressor()); }

std::string packed(const std::string& bytes, const std::string& suffix) {
  return suffix == ".gz" ? gzip(bytes) : suffix == ".zst" ? zstd(bytes) : bytes;
}

DocumentReader open_corpus(const std::string& option, const ReaderOptions& options = {}) {
  const CorpusSpec spec = CorpusSpec::parse(option);
  return {spec, list_files(spec), options};
}

std::vector<Document> read_all(DocumentReader& reader) {
  std::vector<Document> documents;
  while (auto document = reader.next()) documents.push_back(std::move(*document));
  return documents;
}
std::vector<Document> read_all(const std::string& option, const ReaderOptions& options = {}) {
  DocumentReader reader = open_corpus(option, options);
  return read_all(reader);
}

Strings texts(const std::vector<Document>& documents) {
  Strings texts;
  for (const Document& document : documents) texts.push_back(document.text);
  return texts;
}
Strings ids(const std::vector<Document>& documents) {
  Strings ids;
  for (const Document& document : documents) ids.push_back(document.id);
  return ids;
}

bool same(const Document& a, const Document& b) {
  return a.id == b.id && a.category == b.category && a.text == b.text && a.tokens == b.tokens &&
         a.has_tokens == b.has_tokens && a.truncated == b.truncated && a.ordinal == b.ordinal;
}

template <typename Thrown = Error>
std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Thrown& error) {
    return error.what();
  }
  return "nothing thrown";
}

// --- options ---

TEST(CorpusSpec, ReadsEveryKey) {
  const CorpusSpec spec =
      CorpusSpec::parse("my.wiki-1=/data/a.bin,format=jsonl,field=body,tokens=input_ids,id=key,category=lang,of it");
  EXPECT_EQ(spec.name, "my.wiki-1");
  EXPECT_EQ(spec.path, "/data/a.bin");
  EXPECT_EQ(spec.format, CorpusFormat::jsonl);
  EXPECT_TRUE(spec.format_given);
  EXPECT_EQ(spec.field, "body");
  EXPECT_EQ(spec.tokens_field, "input_ids");
  EXPECT_EQ(spec.id_field, "key");
  EXPECT_EQ(spec.category_field, "lang,of it");
  EXPECT_EQ(CorpusSpec::parse("a=b.md,split=blank").split, TextSplit::blank_line);
  EXPECT_EQ(CorpusSpec::parse("a=b.md,split=line").split, TextSplit::line);
  EXPECT_FALSE(CorpusSpec::parse("a=b.tsv.gz,header=no,field=2").header);
}

TEST(CorpusSpec, OnlyNeedsACategory) {
  EXPECT_EQ(CorpusSpec::parse("a=b.csv,category=1,only=sports, and more").only, "sports, and more");
  EXPECT_THAT(error_of<UsageError>([] { CorpusSpec::parse("a=b.csv,only=sports"); }), HasSubstr("add category="));
  EXPECT_THAT(error_of<UsageError>([] { CorpusSpec::parse("a=b.txt,format=text,only=x"); }),
              HasSubstr("has no fields"));
}

TEST(CorpusSpec, PathsKeepCommasAndEqualsSigns) {
  EXPECT_EQ(CorpusSpec::parse("a=x,y=1,z.txt").path, "x,y=1,z.txt");
  EXPECT_EQ(CorpusSpec::parse("a=x,fields=1,field=t,format=csv").path, "x,fields=1");
}

TEST(CorpusSpec, TellsTheFormatByName) {
  EXPECT_EQ(CorpusSpec::parse("a=x.jsonl.zst").format, CorpusFormat::jsonl);
  EXPECT_EQ(CorpusSpec::parse("a=x.csv").format, CorpusFormat::csv);
  EXPECT_EQ(CorpusSpec::parse("a=x.tsv.gz").format, CorpusFormat::tsv);
  EXPECT_EQ(CorpusSpec::parse("a=x.csv.bz2").format, CorpusFormat::text);
  EXPECT_EQ(CorpusSpec::parse("a=folder").format, CorpusFormat::text);
}

TEST(CorpusSpec, RefusesWhatItCannotMean) {
  const std::vector<std::pair<std::string, std::string>> wrong{
      {"", "no NAME=PATH"},
      {"wiki", "no NAME=PATH"},
      {"=x", "no name"},
      {"a/b=x", "letters, digits"},
      {".a=x", "letters, digits"},
      {"a=", "no path"},
      {"a=,field=x", "no path"},
      {"a=x.jsonl,field=", "field= has no value"},
      {"a=x.jsonl,field=a,field=b", "given twice"},
      {"a=x,format=xml", "text, jsonl, csv, tsv"},
      {"a=x,split=word", "file, line, blank"},
      {"a=x.csv,header=maybe", "yes, no"},
      {"a=x.csv,split=line", "split= is for format=text"},
      {"a=x.jsonl,header=no", "header= is for"},
      {"a=x.csv,tokens=ids", "tokens= is for"},
      {"a=x,format=text,id=key", "no fields"},
      {"a=x.csv,header=no", "by number"},
      {"a=x.csv,header=no,field=1,id=0", "by number"},
  };
  for (const auto& [option, message] : wrong) {
    EXPECT_THAT(error_of<UsageError>([&] { CorpusSpec::parse(option); }),
                AllOf(HasSubstr(message), HasSubstr("--corpus")))
        << option;
  }
}

TEST(ListFiles, SortsAndWalksFoldersAndGlobs) {
  const TempFolder folder;
  std::filesystem::create_directories(folder / "b/deep");
  std::filesystem::create_directories(folder / "b/.hidden");
  for (const char* name : {"z.txt", "a.txt", "b/two.txt", "b/deep/one.txt", "b/.hidden/no.txt", "b/.no", "B.txt"}) {
    write_file(folder / name, name);
  }
  const auto names = [&](const std::string& path) {
    Strings found;
    const CorpusFiles files = list_files(CorpusSpec::parse("c=" + path));
    for (const CorpusFile& file : *files) {
      EXPECT_EQ(file.bytes, std::filesystem::file_size(file.path));
      found.push_back(std::filesystem::path(file.path).lexically_relative(folder.path()).string());
    }
    return found;
  };
  const std::string root = folder.path().string();
  EXPECT_THAT(names(root), ElementsAre("B.txt", "a.txt", "b/deep/one.txt", "b/two.txt", "z.txt"));
  EXPECT_THAT(names(root + "/[az].txt"), ElementsAre("a.txt", "z.txt"));
  EXPECT_THAT(names(root + "/*"), ElementsAre("B.txt", "a.txt", "b/deep/one.txt", "b/two.txt", "z.txt"));
  EXPECT_THAT(names(root + "/z.txt"), ElementsAre("z.txt"));

  EXPECT_THAT(ids(read_all("c=" + root)),
              ElementsAre("B.txt:0", "a.txt:0", "b/deep/one.txt:0", "b/two.txt:0", "z.txt:0"));
  EXPECT_THAT(ids(read_all("c=" + root + "/*/t*.txt")), ElementsAre("b/two.txt:0"));
  EXPECT_THAT(ids(read_all("c=" + root + "/b/two.txt")), ElementsAre("two.txt:0"));
}

TEST(ListFiles, SaysWhatIsNotThere) {
  const TempFolder folder;
  const auto message = [](const std::string& path) {
    return error_of([&] { list_files(CorpusSpec::parse("c=" + path)); });
  };
  EXPECT_THAT(message((folder / "none").string()), AllOf(HasSubstr("no such file"), HasSubstr("none")));
  EXPECT_THAT(message((folder / "none.csv,filed=x").string()), HasSubstr("known key"));
  EXPECT_THAT(message(folder.path().string()), HasSubstr("no files"));
}

// --- text ---

TEST(TextCorpus, SplitsByFileLineAndBlankLine) {
  const TempFolder folder;
  const std::string option = "c=" + (folder / "a.txt").string();
  write_file(folder / "a.txt", "one\r\ntwo\n \t\n\n  three\n\r\nfour");
  EXPECT_THAT(texts(read_all(option)), ElementsAre("one\r\ntwo\n \t\n\n  three\n\r\nfour"));
  EXPECT_THAT(texts(read_all(option + ",split=line")), ElementsAre("one", "two", "  three", "four"));
  EXPECT_THAT(texts(read_all(option + ",split=blank")), ElementsAre("one\ntwo", "  three", "four"));
  EXPECT_THAT(ids(read_all(option + ",split=blank")), ElementsAre("a.txt:0", "a.txt:1", "a.txt:2"));
}

TEST(TextCorpus, EmptyAndBlankFilesHaveNoDocuments) {
  const TempFolder folder;
  write_file(folder / "a.txt", "");
  write_file(folder / "b.txt", "\n\n \n");
  write_file(folder / "c.txt", "text\n");
  const std::string option = "c=" + folder.path().string();
  EXPECT_THAT(texts(read_all(option)), ElementsAre("\n\n \n", "text\n"));
  EXPECT_THAT(texts(read_all(option + ",split=line")), ElementsAre("text"));
  EXPECT_THAT(texts(read_all(option + ",split=blank")), ElementsAre("text"));
}

TEST(TextCorpus, KeepsStrangeBytesAndDropsAByteOrderMark) {
  const TempFolder folder;
  const std::string strange("a\0b\xFF\xC3", 5);
  write_file(folder / "a.txt", "\xEF\xBB\xBF" + strange + "\nnext");
  EXPECT_THAT(texts(read_all("c=" + (folder / "a.txt").string() + ",split=line")), ElementsAre(strange, "next"));
}

TEST(TextCorpus, CutsLongDocumentsBetweenCharacters) {
  const TempFolder folder;
  const std::string option = "c=" + (folder / "a.txt").string();
  ReaderOptions options;
  options.max_document_bytes = 8;
  // "é" has two bytes: seven letters and it would be nine.
  write_file(folder / "a.txt", "1234567é890\n12345678\nshort\n" + std::string(3'000'000, 'x') + "\nend\n");
  const auto lines = read_all(option + ",split=line", options);
  EXPECT_THAT(texts(lines), ElementsAre("1234567", "12345678", "short", "xxxxxxxx", "end"));
  std::vector<bool> truncated;
  for (const Document& line : lines) truncated.push_back(line.truncated);
  EXPECT_THAT(truncated, ElementsAre(true, false, false, true, false));

  EXPECT_THAT(texts(read_all(option, options)), ElementsAre("1234567"));
  write_file(folder / "a.txt", "12\n" + std::string(50, 'y') + "\n34\n\n1\n2\n3\n4é\n5\n\n1\n2\n3\n4\n\n");
  const auto paragraphs = read_all(option + ",split=blank", options);
  EXPECT_THAT(texts(paragraphs), ElementsAre("12\nyyyyy", "1\n2\n3\n4", "1\n2\n3\n4"));
  EXPECT_TRUE(paragraphs[0].truncated);
  EXPECT_TRUE(paragraphs[1].truncated);
  EXPECT_FALSE(paragraphs[2].truncated);
}

// --- JSONL ---

TEST(JsonlCorpus, TakesFieldsIdsCategoriesAndTokens) {
  const TempFolder folder;
  const auto file = folder / "a.jsonl";
  write_file(
      file,
      "\xEF\xBB\xBF{\"id\": 7, \"text\": \"caf\\u00e9\\n\", \"label\": \"x\", \"extra\": {\"text\": \"inner\"}}\r\n"
      "\n"
      "{\"id\": \"k\", \"tokens\": [0, 1, 4294967295], \"label\": 2.50}\n"
      "  {\"tokens\": [\"unused\"], \"text\": \"\", \"id\": true, \"label\": null}");
  const auto documents = read_all("c=" + file.string() + ",id=id,category=label");
  ASSERT_EQ(documents.size(), 3U);
  EXPECT_EQ(documents[0].text, "café\n");
  EXPECT_THAT(ids(documents), ElementsAre("7", "k", "true"));
  EXPECT_EQ(documents[0].category, "x");
  EXPECT_EQ(documents[1].category, "2.50");
  EXPECT_EQ(documents[2].category, "");
  EXPECT_FALSE(documents[0].has_tokens);
  EXPECT_TRUE(documents[1].has_tokens);
  EXPECT_THAT(documents[1].tokens, ElementsAre(0U, 1U, 4294967295U));
  const auto only = read_all("c=" + file.string() + ",id=id,category=label,only=2.50");
  EXPECT_THAT(ids(only), ElementsAre("k"));
  EXPECT_EQ(only[0].ordinal, 0U);
  EXPECT_EQ(documents[2].text, "");
  EXPECT_FALSE(documents[2].has_tokens);
}

TEST(JsonlCorpus, NamesEveryFaultAndItsLine) {
  const std::vector<std::pair<std::string, std::string>> bad{
      {"[1]", "not a JSON object"},
      {"12", "not a JSON object"},
      {"{\"text\": \"a\"", "not valid JSON at byte"},
      {"{\"text\": \"a\"} x", "not valid JSON at byte"},
      {"{\"text\": \"\xFF\"}", "not valid JSON at byte 11"},
      {"{\"text\": \"\\ud800\"}", "not valid JSON"},
      {"{\"a\": 1e999, \"text\": \"\"}", "not valid JSON"},
      {"{}", "no text under \"text\""},
      {"{\"text\": null}", "no text under \"text\""},
      {"{\"text\": 5}", "is no string"},
      {"{\"text\": [\"a\"]}", "is no string"},
      {"{\"tokens\": [-1]}", "non-negative integers"},
      {"{\"tokens\": [1.0]}", "non-negative integers"},
      {"{\"tokens\": [4294967296]}", "non-negative integers"},
      {"{\"tokens\": [[1]]}", "non-negative integers"},
      {"{\"tokens\": [null]}", "non-negative integers"},
      {"{\"tokens\": \"1 2\"}", "non-negative integers"},
      {"{\"tokens\": {\"a\": 1}}", "non-negative integers"},
      {"{\"text\": \"" + std::string(300, 'a') + "\"}",
       "a line of 312 bytes from byte 18 on, more than the 256 allowed"},
  };
  const TempFolder folder;
  const auto file = folder / "a.jsonl";
  std::string content;
  ReaderOptions options;
  options.max_document_bytes = 64;
  for (const auto& [line, message] : bad) {
    write_file(file, "\n{\"text\": \"good\"}\n" + line + "\n{\"text\": \"after\"}\n");
    DocumentReader reader = open_corpus("c=" + file.string(), options);
    ASSERT_EQ(reader.next()->text, "good");
    EXPECT_THAT(error_of([&] { reader.next(); }),
                AllOf(HasSubstr("a.jsonl:3: "), HasSubstr(message), HasSubstr("--on-bad-document=skip")))
        << line;
    content += line + "\n{\"text\": \"good\"}\n";
  }
  write_file(file, content);
  options.on_bad_document = BadDocument::skip;
  DocumentReader reader = open_corpus("c=" + file.string(), options);
  const auto documents = read_all(reader);
  ASSERT_EQ(documents.size(), bad.size());
  EXPECT_EQ(documents[4].ordinal, 4U);
  EXPECT_EQ(documents[4].id, "a.jsonl:9");  // bad ones counted
  EXPECT_EQ(reader.skipped(), bad.size());
  ASSERT_EQ(reader.skipped_places().size(), bad.size());
  EXPECT_EQ(reader.skipped_places()[2].find(file.string() + ":5: not valid JSON"), 0U);
}

TEST(JsonlCorpus, AMissingIdIsAFaultAndPlacesAreLimited) {
  const TempFolder folder;
  const auto file = folder / "a.jsonl";
  std::string content;
  for (int i = 0; i < 150; ++i) content += "{\"text\": \"t\"}\n{\"text\": \"t\", \"key\": " + std::to_string(i) + "}\n";
  write_file(file, content);
  ReaderOptions options;
  options.on_bad_document = BadDocument::skip;
  DocumentReader reader = open_corpus("c=" + file.string() + ",id=key", options);
  EXPECT_EQ(read_all(reader).size(), 150U);
  EXPECT_EQ(reader.skipped(), 150U);
  EXPECT_EQ(reader.skipped_places().size(), 100U);
  EXPECT_THAT(reader.skipped_places().back(), HasSubstr(":199: no id under \"key\""));
}

TEST(JsonlCorpus, CutsLongTexts) {
  const TempFolder folder;
  write_file(folder / "a.jsonl", "{\"text\": \"123\\u00e9\"}\n{\"text\": \"1234\"}\n");
  ReaderOptions options;
  options.max_document_bytes = 4;
  options.on_bad_document = BadDocument::skip;
  DocumentReader reader = open_corpus("c=" + (folder / "a.jsonl").string(), options);
  EXPECT_EQ(read_all(reader).size(), 1U);  // the first line has more than 16 bytes
  options.max_document_bytes = 6;
  EXPECT_THAT(texts(read_all("c=" + (folder / "a.jsonl").string(), options)), ElementsAre("123é", "1234"));
  options.max_document_bytes = 5;
  write_file(folder / "a.jsonl", "{\"text\":\"1234é\"}\n");
  const auto documents = read_all("c=" + (folder / "a.jsonl").string(), options);
  EXPECT_THAT(texts(documents), ElementsAre("1234"));
  EXPECT_TRUE(documents[0].truncated);
}

TEST(JsonlCorpus, PassesOverALongBadLineWithoutKeepingIt) {
  const TempFolder folder;
  write_file(folder / "a.jsonl", std::string(20'000'000, '[') + "\n{\"text\": \"after\"}\n");
  ReaderOptions options;
  options.on_bad_document = BadDocument::skip;
  EXPECT_THAT(texts(read_all("c=" + (folder / "a.jsonl").string(), options)), ElementsAre("after"));
  options.max_document_bytes = 1000;
  EXPECT_THAT(texts(read_all("c=" + (folder / "a.jsonl").string(), options)), ElementsAre("after"));
}

// --- CSV ---

using Records = std::vector<Strings>;

Records csv_records(const std::string& bytes, std::size_t buffer_bytes = 1024) {
  return fuzzing::good_csv_records(bytes, buffer_bytes);
}

Strings csv_faults(const std::string& bytes, std::uint64_t limit = 1000) {
  ByteStream stream(memory_source(bytes), "memory");
  CsvRecord record;
  Strings faults;
  while (record.read(stream, ',', limit)) faults.push_back(record.fault());
  return faults;
}

TEST(CsvRecord, FollowsRfc4180) {
  EXPECT_EQ(csv_records("aaa,bbb,ccc\r\nzzz,yyy,xxx\r\n"), (Records{{"aaa", "bbb", "ccc"}, {"zzz", "yyy", "xxx"}}));
  EXPECT_EQ(csv_records("aaa,bbb,ccc\nzzz,yyy,xxx"), (Records{{"aaa", "bbb", "ccc"}, {"zzz", "yyy", "xxx"}}));
  EXPECT_EQ(csv_records("\"aaa\",\"b\r\nbb\",\"ccc\"\r\nzzz,yyy,xxx"),
            (Records{{"aaa", "b\r\nbb", "ccc"}, {"zzz", "yyy", "xxx"}}));
  EXPECT_EQ(csv_records("\"aaa\",\"b\"\"bb\",\"c,c\""), (Records{{"aaa", "b\"bb", "c,c"}}));
  EXPECT_EQ(csv_records("\"\"\"\",\"\"\"\"\"\""), (Records{{"\"", "\"\""}}));
  EXPECT_EQ(csv_records(",\n,,\r\n"), (Records{{"", ""}, {"", "", ""}}));
  EXPECT_EQ(csv_records("\"\"\n"), (Records{{""}}));
  EXPECT_EQ(csv_records("\n\r\na\n\n"), (Records{{"a"}}));
  EXPECT_EQ(csv_records(" a , \tb"), (Records{{" a ", " \tb"}}));
  EXPECT_EQ(csv_records("a\rb,\"c\"\r\n"), (Records{{"a\rb", "c"}}));
  EXPECT_EQ(csv_records(std::string("a\0b,\xFF", 5)), (Records{{std::string("a\0b", 3), "\xFF"}}));
  EXPECT_EQ(csv_records("a,"), (Records{{"a", ""}}));
  EXPECT_EQ(csv_records(""), Records{});
}

TEST(CsvRecord, NamesFaultsAndGoesOn) {
  EXPECT_THAT(csv_faults("a,b\"c,d\ngood,1\n"), ElementsAre(HasSubstr("quote inside"), ""));
  EXPECT_THAT(csv_faults("\"a\"b,c\ngood,1\n"), ElementsAre(HasSubstr("after the closing quote"), ""));
  EXPECT_THAT(csv_faults("\"a\"\rb,c\ngood,1\n"), ElementsAre(HasSubstr("after the closing quote"), ""));
  EXPECT_THAT(csv_faults("good\n\"a,b\nc\n"), ElementsAre("", HasSubstr("not closed")));
  EXPECT_THAT(csv_faults("\"" + std::string(2000, 'a') + "\n\"\ngood\n"),
              ElementsAre(HasSubstr("more than the 1000 bytes"), ""));
  EXPECT_THAT(csv_faults(std::string(70'000, ',') + "\na\n", 1'000'000), ElementsAre(HasSubstr("65536 fields"), ""));
}

TEST(CsvRecord, BuffersOfEverySizeGiveTheSame) {
  const std::string bytes = "a,\"b\"\"\r\n\"\"\",c\r\n\"\",\r\n\n\"long, quoted\",x\"y\n\"q\"\r\nlast";
  const Records whole = csv_records(bytes, 1024);
  EXPECT_EQ(whole.size(), 4U);
  for (std::size_t size = 3; size < 40; ++size) EXPECT_EQ(csv_records(bytes, size), whole) << size;
}

TEST(CsvCorpus, FindsColumnsByNameAndNumber) {
  const TempFolder folder;
  const auto file = folder / "a.csv";
  write_file(file, "\xEF\xBB\xBFkey,text,\"the label\",2\r\nk1,\"first,\ntext\",x,q\r\n\r\nk2,,y,r\r\n");
  const std::string option = "c=" + file.string();
  auto documents = read_all(option + ",id=key,category=the label");
  EXPECT_THAT(texts(documents), ElementsAre("first,\ntext", ""));
  EXPECT_THAT(ids(documents), ElementsAre("k1", "k2"));
  EXPECT_EQ(documents[1].category, "y");
  EXPECT_THAT(texts(read_all(option + ",field=3")), ElementsAre("x", "y"));
  EXPECT_THAT(texts(read_all(option + ",field=2")), ElementsAre("q", "r"));  // a name comes first
  EXPECT_THAT(ids(read_all(option)), ElementsAre("a.csv:0", "a.csv:1"));
  EXPECT_THAT(texts(read_all(option + ",header=no,field=1")), ElementsAre("key", "k1", "k2"));

  write_file(folder / "b.tsv", "text\tn\na, b\t1\n\"tab\there\"\t2\n");
  EXPECT_THAT(texts(read_all("c=" + (folder / "b.tsv").string())), ElementsAre("a, b", "tab\there"));
  write_file(folder / "empty.csv", "");
  EXPECT_TRUE(read_all("c=" + (folder / "empty.csv").string()).empty());
}

TEST(CsvCorpus, FaultsOfFilesAndRecords) {
  const TempFolder folder;
  const auto file = folder / "a.csv";
  const std::string option = "c=" + file.string();
  ReaderOptions skip;
  skip.on_bad_document = BadDocument::skip;
  write_file(file, "key,body,body\n1,2,3\n");
  EXPECT_THAT(error_of([&] { read_all(option, skip); }),
              AllOf(HasSubstr("no column \"text\""), HasSubstr("\"key\", \"body\"")));
  EXPECT_THAT(error_of([&] { read_all(option + ",field=body", skip); }), HasSubstr("twice"));
  EXPECT_THAT(error_of([&] { read_all(option + ",field=4", skip); }), HasSubstr("no column \"4\""));
  write_file(file, "te\"xt\n1\n");
  EXPECT_THAT(error_of([&] { read_all(option, skip); }), AllOf(HasSubstr("the header"), HasSubstr("a.csv:1")));

  write_file(file, "text,b\n\"two\nlines\",1\nonly\n\"x\"y,1\na,1\n\"open,1\nb,2\n");
  EXPECT_THAT(error_of([&] { read_all(option); }),
              AllOf(HasSubstr("a.csv:4: "), HasSubstr("1 fields where the header has 2")));
  DocumentReader reader = open_corpus(option, skip);
  EXPECT_THAT(texts(read_all(reader)), ElementsAre("two\nlines", "a"));
  EXPECT_THAT(reader.skipped_places(),
              ElementsAre(HasSubstr("a.csv:4: "), HasSubstr("a.csv:5: "), HasSubstr("a.csv:7: ")));

  write_file(file, "a,b\nc\n");
  EXPECT_THAT(error_of([&] { read_all(option + ",header=no,field=2"); }), HasSubstr("a.csv:2: no text under \"2\""));
}

TEST(CsvCorpus, CutsLongTexts) {
  const TempFolder folder;
  write_file(folder / "a.csv", "text\n123é56\n");
  ReaderOptions options;
  options.max_document_bytes = 4;
  const auto documents = read_all("c=" + (folder / "a.csv").string(), options);
  EXPECT_THAT(texts(documents), ElementsAre("123"));
  EXPECT_TRUE(documents[0].truncated);
}

// --- prompt templates ---

TEST(PromptTemplate, FillsNamesAndBraces) {
  const PromptTemplate prompt("{{{a}}} {b c}{a}.");
  EXPECT_THAT(prompt.names(), ElementsAre("a", "b c"));
  EXPECT_EQ(prompt.fill([](const std::string& name) -> std::string_view { return name == "a" ? "1{}" : "2"; }),
            "{1{}} 21{}.");
  EXPECT_TRUE(PromptTemplate("").empty());
  for (const char* wrong : {"{a", "a}", "{}", "{a{b}", "{{a}"}) {
    EXPECT_THAT(error_of<UsageError>([&] { PromptTemplate{wrong}; }), HasSubstr("--prompt-template")) << wrong;
  }
}

TEST(PromptTemplate, AppliesToDocuments) {
  const TempFolder folder;
  ReaderOptions options;
  options.prompt_template = "Q: {question} ({n}, {ok}) {text}";
  write_file(folder / "a.jsonl",
             "{\"body\": \"B\", \"text\": \"other\", \"question\": \"why\", \"n\": -1.50, \"ok\": true}\n"
             "{\"body\": \"B\", \"question\": \"why\", \"n\": 1, \"ok\": null}\n"
             "{\"tokens\": [1], \"question\": \"why\", \"n\": 1, \"ok\": false}\n"
             "{\"body\": \"B\", \"question\": {}, \"n\": 1, \"ok\": false}\n");
  options.on_bad_document = BadDocument::skip;
  DocumentReader reader = open_corpus("c=" + (folder / "a.jsonl").string() + ",field=body", options);
  EXPECT_THAT(texts(read_all(reader)), ElementsAre("Q: why (-1.50, true) B"));
  EXPECT_THAT(reader.skipped_places(), ElementsAre(HasSubstr("{ok}"), HasSubstr("{text}"), HasSubstr("{question}")));

  options.prompt_template = "{2}: {name}";
  write_file(folder / "b.csv", "name,value\nx,1\ny,2\n");
  EXPECT_THAT(texts(read_all("c=" + (folder / "b.csv").string(), options)), ElementsAre("1: x", "2: y"));
  options.prompt_template = "<{1}|{text}>";
  EXPECT_THAT(texts(read_all("c=" + (folder / "b.csv").string() + ",header=no,field=2,id=2", options)),
              ElementsAre("<name|value>", "<x|1>", "<y|2>"));
  options.prompt_template = "say {text}";
  write_file(folder / "c.txt", "hello");
  EXPECT_THAT(texts(read_all("c=" + (folder / "c.txt").string(), options)), ElementsAre("say hello"));
}

// --- compression ---

TEST(CompressedCorpus, ReadsSeveralMembersAndFrames) {
  const TempFolder folder;
  for (const std::string suffix : {".gz", ".zst"}) {
    const auto file = folder / ("a.txt" + suffix);
    write_file(file, packed("one\ntw", suffix) + packed("", suffix) + packed("o\nthree\n", suffix));
    EXPECT_THAT(texts(read_all("c=" + file.string() + ",split=line")), ElementsAre("one", "two", "three"));
  }
  // A skippable frame (RFC 8878, 3.1.2), as seekable zstd files have them.
  write_file(folder / "b.zst", std::string("\x5F\x2A\x4D\x18\x03\x00\x00\x00xyz", 11) + zstd("text"));
  EXPECT_THAT(texts(read_all("c=" + (folder / "b.zst").string())), ElementsAre("text"));
}

TEST(CompressedCorpus, AnyCutOrBrokenFileIsAnError) {
  const TempFolder folder;
  ReaderOptions options;
  options.on_bad_document = BadDocument::skip;
  std::string content;
  std::mt19937 random(5);
  for (int i = 0; i < 400; ++i) content += std::to_string(random()) + (i % 7 == 0 ? "\n" : " ");
  content.append(300'000, 'z');  // run-length blocks
  std::size_t cuts = 0;
  for (const std::string suffix : {".gz", ".zst"}) {
    const auto file = folder / ("a.txt" + suffix);
    const std::string whole = packed(content, suffix) + packed("end", suffix);
    const std::size_t boundary = packed(content, suffix).size();
    const auto message = [&](const std::string& bytes) {
      write_file(file, bytes);
      return error_of([&] { read_all("c=" + file.string() + ",split=line", options); });
    };
    EXPECT_EQ(message(whole), "nothing thrown");
    EXPECT_EQ(message(whole.substr(0, boundary)), "nothing thrown");
    for (std::size_t size = 0; size < whole.size(); size += size < 40 || size + 40 > boundary ? 1 : 37) {
      if (size == boundary) continue;
      EXPECT_THAT(message(whole.substr(0, size)), AllOf(HasSubstr("corrupt or truncated"), HasSubstr("a.txt" + suffix)))
          << size;
      ++cuts;
    }
    // Inside the data only gzip must notice: zstd's checksum is optional.
    for (const std::size_t at : {std::size_t{0}, boundary, boundary + 3, suffix == ".gz" ? boundary / 2 : 1}) {
      std::string broken = whole;
      broken[at] = static_cast<char>(broken[at] ^ 0x55);
      EXPECT_THAT(message(broken), HasSubstr("corrupt or truncated")) << at;
    }
    EXPECT_THAT(message("plain text"), HasSubstr("corrupt or truncated"));
    EXPECT_THAT(message(whole + "rest"), HasSubstr("corrupt or truncated"));
  }
  EXPECT_GT(cuts, 200U);
}

// --- cursors ---

struct SampleFile {
  std::string name;
  std::string content;
  std::string keys;
};

/// One file per format, with bad documents, blank lines, and no line feed at the end.
std::vector<SampleFile> sample_files() {
  std::string lines, json, csv;
  std::mt19937 random(11);
  for (int i = 0; i < 40; ++i) {
    const std::string word = "wörd " + std::string(random() % 60, static_cast<char>('a' + i % 26));
    lines += word + (i % 3 == 0 ? "\r\n" : i % 3 == 1 ? "\n\n" : "\n");
    json += i % 5 == 2 ? "{bad\n\n" : "{\"text\": \"" + word + "\", \"key\": " + std::to_string(i) + "}\n";
    csv += i % 5 == 2 ? "a\"b,c\n\n" : "\"" + word + "\n\"\"x\"," + std::to_string(i) + "\r\n";
  }
  lines += "last";
  json += "{\"tokens\": [1, 2, 3], \"key\": \"k\"}";
  csv += "last,x";
  std::string tsv = "key\ttext\n";
  for (int i = 0; i < 20; ++i) tsv += std::to_string(i) + "\tsome, text\n";
  return {{"file.txt", lines, ""},
          {"line.txt", lines, ",split=line"},
          {"blank.txt", lines, ",split=blank"},
          {"a.jsonl", json, ",category=key"},
          {"a.csv", "text,key\n" + csv, ",category=key"},
          {"b.csv", csv, ",header=no,field=1,category=2"},
          {"a.tsv", tsv, ",id=key"}};
}

ReaderOptions small_documents() {
  ReaderOptions options;
  options.on_bad_document = BadDocument::skip;
  options.max_document_bytes = 40;  // cuts some texts
  return options;
}

/// Continues in a new reader after every document; returns how many continuations were compared.
std::size_t check_cursors(const std::string& option) {
  const ReaderOptions options = small_documents();
  DocumentReader reader = open_corpus(option, options);
  std::vector<Document> documents;
  std::vector<CorpusCursor> cursors{reader.cursor()};
  while (auto document = reader.next()) {
    documents.push_back(std::move(*document));
    cursors.push_back(reader.cursor());
  }
  std::size_t compared = 0;
  for (std::size_t start = 0; start < cursors.size(); ++start) {
    DocumentReader again = open_corpus(option, options);
    again.seek(cursors[start]);
    EXPECT_EQ(again.cursor(), cursors[start]);
    for (std::size_t i = start; i < documents.size(); ++i) {
      const auto document = again.next();
      if (!document || !same(*document, documents[i]) || again.cursor() != cursors[i + 1]) {
        ADD_FAILURE() << option << ": from " << start << ", document " << i;
        return compared;
      }
    }
    EXPECT_FALSE(again.next().has_value());
    EXPECT_EQ(again.cursor(), reader.cursor());
    ++compared;
  }
  return compared;
}

TEST(Cursor, ContinuesAfterEveryDocumentOfEveryFormat) {
  for (const std::string suffix : {"", ".gz", ".zst"}) {
    for (const SampleFile& file : sample_files()) {
      const TempFolder folder;
      // A second and an empty file between: cursors cross files.
      for (const std::string prefix : {"1", "3"})
        write_file(folder / (prefix + file.name + suffix), packed(file.content, suffix));
      write_file(folder / ("2" + file.name + suffix), packed("", suffix));
      const std::size_t compared = check_cursors("c=" + folder.path().string() + file.keys);
      EXPECT_GE(compared, file.keys.empty() ? 3U : 20U) << file.name << suffix;
    }
  }
}

TEST(Cursor, LineNumbersAreRightAfterASeek) {
  for (const std::string suffix : {"", ".gz", ".zst"}) {
    const TempFolder folder;
    std::string content;
    for (int i = 0; i < 200'000; ++i) content += "{\"text\": \"0123456789\"}\n\n";
    content += "[]\n";
    write_file(folder / ("a.jsonl" + suffix), packed(content, suffix));
    const std::string option = "c=" + (folder / ("a.jsonl" + suffix)).string();
    DocumentReader reader = open_corpus(option);
    reader.seek({0, 24ULL * 199'000, 199'000, 199'000, 398'000});
    for (int i = 0; i < 1000; ++i) ASSERT_TRUE(reader.next());
    EXPECT_THAT(error_of([&] { reader.next(); }), HasSubstr(":400001: not a JSON object"));
    DocumentReader skipping = open_corpus(option, small_documents());
    skipping.seek({0, 24ULL * 100'000, 100'000, 100'000, 200'000});
    EXPECT_EQ(read_all(skipping).size(), 100'000U);
    EXPECT_THAT(skipping.skipped_places(), ElementsAre(HasSubstr(":400001: ")));
  }
}

TEST(Cursor, AChangedCorpusIsAnError) {
  for (const std::string suffix : {"", ".gz", ".zst"}) {
    const TempFolder folder;
    write_file(folder / ("a.txt" + suffix), packed("short", suffix));
    DocumentReader reader = open_corpus("c=" + folder.path().string());
    EXPECT_THAT(error_of([&] {
                  reader.seek({0, 1'000'000, 3, 3});
                }),
                AllOf(HasSubstr("ends before byte 1000000"), HasSubstr("a.txt")));
    EXPECT_THAT(error_of([&] { reader.seek({2, 0, 0, 0}); }), HasSubstr("file 3 of 1"));
    reader.seek({1, 0, 0, 1});
    EXPECT_FALSE(reader.next());
  }
}

TEST(Cursor, GoesBackToo) {
  const TempFolder folder;
  write_file(folder / "a.txt", "one\ntwo\n");
  DocumentReader reader = open_corpus("c=" + (folder / "a.txt").string() + ",split=line");
  EXPECT_EQ(read_all(reader).size(), 2U);
  reader.seek({});
  EXPECT_THAT(texts(read_all(reader)), ElementsAre("one", "two"));
}

// --- samples ---

TEST(SampleOrdinals, AreChosenBySeedAlone) {
  const TempFolder folder;
  std::string content;
  for (int i = 0; i < 1000; ++i) content += "line\n";
  write_file(folder / "a.txt", content);
  const std::string option = "c=" + (folder / "a.txt").string() + ",split=line";
  const auto sample = [&](std::uint64_t count, std::uint64_t seed) {
    return sample_ordinals(open_corpus(option), count, seed);
  };
  const auto few = sample(100, 1);
  EXPECT_EQ(few.size(), 100U);
  EXPECT_TRUE(std::is_sorted(few.begin(), few.end()));
  EXPECT_EQ(std::adjacent_find(few.begin(), few.end()), few.end());
  EXPECT_EQ(few, sample(100, 1));
  EXPECT_NE(few, sample(100, 2));
  // The smallest hashes: a larger sample holds the smaller one.
  const auto more = sample(101, 1);
  EXPECT_TRUE(std::includes(more.begin(), more.end(), few.begin(), few.end()));
  // Spread over the corpus: each quarter has its part, 25 expected, 6 standard deviations allowed.
  for (std::uint64_t quarter = 0; quarter < 4; ++quarter) {
    const auto part =
        std::count_if(few.begin(), few.end(), [&](std::uint64_t ordinal) { return ordinal / 250 == quarter; });
    EXPECT_NEAR(static_cast<double>(part), 25.0, 25.0);
  }
  const auto all = sample(5000, 1);
  ASSERT_EQ(all.size(), 1000U);
  EXPECT_EQ(all.back(), 999U);
  EXPECT_TRUE(sample(0, 1).empty());
}

// --- streams and foreign bytes ---

TEST(ByteStream, LinesAreTheSameForEveryBuffer) {
  const std::string bytes = "one\n\nlonger line\r\n\n" + std::string(50, 'x') + "\nlast";
  for (const std::size_t size : {3U, 4U, 5U, 7U, 16U, 64U, 1000U}) {
    ByteStream stream(memory_source(bytes), "memory", size);
    Strings lines;
    std::vector<std::uint64_t> lengths;
    for (auto line = stream.read_line(20); line.found; line = stream.read_line(20)) {
      lines.emplace_back(line.bytes);
      lengths.push_back(line.length);
    }
    EXPECT_THAT(lines, ElementsAre("one", "", "longer line\r", "", std::string(20, 'x'), "last")) << size;
    EXPECT_THAT(lengths, ElementsAre(3U, 0U, 12U, 0U, 50U, 4U)) << size;
    EXPECT_EQ(stream.offset(), bytes.size());
    EXPECT_EQ(stream.newlines(), 5U);
  }
}

std::string mutate(std::string bytes, std::mt19937& random) {
  constexpr char kBytes[] = "{}[]\",:\\u0e1-.\n\r \xC3\xA9\xFF\0tn";
  static const std::string alphabet(kBytes, sizeof(kBytes) - 1);
  const auto changes = 1 + random() % 6;
  for (unsigned i = 0; i < changes; ++i) {
    const std::size_t at = bytes.empty() ? 0 : random() % bytes.size();
    const char byte = alphabet[random() % alphabet.size()];
    switch (random() % 4) {
      case 0:
        bytes.insert(at, 1, byte);
        break;
      case 1:
        if (!bytes.empty()) bytes.erase(at, 1 + random() % 3);
        break;
      case 2:
        if (!bytes.empty()) bytes[at] = byte;
        break;
      default:
        bytes.insert(at, bytes.substr(random() % (bytes.size() + 1), random() % 8));
    }
  }
  return bytes;
}

TEST(Fuzz, MutatedJsonLinesKeepTheirProperties) {
  std::mt19937 random(1);
  const Strings seeds{R"({"text": "a\u00e9\n\"", "id": 5, "tokens": [1, 2]})",
                      R"({"tokens": [0, 17, 4000000000], "x": {"text": [1]}})",
                      R"({"text": null, "text": "twice", "a": [[], {}, -1.5e3, true]})"};
  for (int i = 0; i < 30'000; ++i) fuzzing::check_json_line(mutate(seeds[random() % seeds.size()], random));
  SUCCEED();
}

TEST(Fuzz, MutatedCsvKeepsItsProperties) {
  std::mt19937 random(2);
  const Strings seeds{"a,b\r\n\"c \"\"q\"\"\",\"d\ne\"\r\n,\n", "\"\",\"x\",\n\n1,2,3", "text\n\"long\r\n\",\"\"\n"};
  for (int i = 0; i < 30'000; ++i) fuzzing::check_csv(mutate(seeds[random() % seeds.size()], random));
  SUCCEED();
}

}  // namespace
}  // namespace switchyard
