#include "pipeline/block_source.h"

#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "parallel/error.h"
#include "pipeline/analysis/document_groups.h"

namespace switchyard {
namespace {

/// A corpus of ready tokens: token t of document d is d * 1000 + t. Made by rank 0, read by all.
class BlockSourceTest : public ::testing::Test {
 protected:
  BlockSourceTest() : comm_(Communicator::world()) {
    std::string name =
        std::filesystem::temp_directory_path() / ("switchyard-blocks-" + std::to_string(std::random_device{}()));
    folder_ = comm_.broadcast(name);
    if (comm_.rank() == 0) {
      std::filesystem::create_directories(folder_);
      std::ofstream a(folder_ / "a.jsonl");
      for (std::size_t d = 0; d < kLengths.size(); ++d) write_document(a, d, kLengths[d]);
      std::ofstream b(folder_ / "b.jsonl");
      write_document(b, 50, 33);
      std::ofstream empty(folder_ / "empty.jsonl");
    }
    comm_.barrier();
  }
  ~BlockSourceTest() override {
    comm_.barrier();
    if (comm_.rank() == 0) std::filesystem::remove_all(folder_);
  }

  static void write_document(std::ofstream& out, std::size_t d, std::size_t length) {
    out << R"({"id": "d)" << d << R"(", "tokens": [)";
    for (std::size_t t = 0; t < length; ++t) out << (t > 0 ? "," : "") << d * 1000 + t;
    out << "]}\n";
  }
  std::vector<CorpusSpec> corpora(const std::vector<std::string>& names) const {
    std::vector<CorpusSpec> specs;
    for (const std::string& name : names)
      specs.push_back(CorpusSpec::parse(name + "=" + (folder_ / (name + ".jsonl")).string() + ",id=id"));
    return specs;
  }
  static BlockOptions options() {
    BlockOptions options;
    options.context = 16;
    options.block_tokens = 100;
    options.vocabulary = 100000;
    return options;
  }
  std::vector<Block> read_all(const std::vector<std::string>& names, const BlockOptions& wanted,
                              const SourcePosition& start = {}) const {
    std::vector<CorpusFiles> files;
    for (const CorpusSpec& corpus : corpora(names)) files.push_back(comm_.rank() == 0 ? list_files(corpus) : nullptr);
    BlockSource source(corpora(names), files, nullptr, wanted, start, comm_);
    std::vector<Block> blocks;
    while (std::optional<Block> block = source.next()) blocks.push_back(std::move(*block));
    return blocks;
  }

  static constexpr std::array<std::size_t, 9> kLengths = {5, 0, 40, 16, 17, 350, 1, 64, 80};
  static constexpr std::size_t kTotal = 5 + 40 + 16 + 17 + 350 + 1 + 64 + 80;
  Communicator comm_;
  std::filesystem::path folder_;
};

TEST_F(BlockSourceTest, EveryTokenOnceInCorpusOrder) {
  const std::vector<Block> blocks = read_all({"a", "b"}, options());
  ASSERT_GT(blocks.size(), 5U);
  std::vector<std::uint32_t> seen;
  std::vector<std::uint64_t> lengths;
  std::uint64_t row = 0;
  std::uint64_t next_document = 0;
  std::map<std::uint64_t, std::set<std::uint16_t>> groups;  // of each document's windows, known on every rank
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    EXPECT_EQ(blocks[b].ordinal, b);
    EXPECT_EQ(blocks[b].first_row, row);
    EXPECT_LE(blocks[b].tokens.size(), 116U);
    row += blocks[b].tokens.size();
    for (const DocumentRow& document : blocks[b].documents) {
      EXPECT_EQ(document.first_token, next_document);
      next_document += document.n_tokens;
      lengths.push_back(document.n_tokens);
    }
    for (const Window& window : blocks[b].windows) {
      EXPECT_LE(window.count, 16);
      for (std::int64_t i = 0; i < window.count; ++i)
        seen.push_back(blocks[b].tokens[window.first + static_cast<std::size_t>(i)]);
      const std::uint32_t last = seen.back();
      groups[window.document].insert(window.group);
      // Row 9 is the document of corpus b: its tokens begin at 50000.
      const std::uint64_t name = window.document == 9 ? 50 : window.document;
      const std::size_t length = window.document == 9 ? 33 : kLengths[window.document];
      EXPECT_EQ(last / 1000, name);
      EXPECT_EQ(window.next, last % 1000 + 1 == length ? -1 : static_cast<std::int64_t>(last) + 1);
    }
  }
  std::vector<std::uint32_t> expected;
  for (std::size_t d = 0; d < kLengths.size(); ++d)
    for (std::size_t t = 0; t < kLengths[d]; ++t) expected.push_back(static_cast<std::uint32_t>(d * 1000 + t));
  for (std::uint32_t t = 0; t < 33; ++t) expected.push_back(50000 + t);
  EXPECT_EQ(seen, expected);
  EXPECT_EQ(groups.size(), 9U);  // one of the ten documents is empty
  for (const auto& [document, of_windows] : groups) {
    const std::string id = "d" + std::to_string(document == 9 ? 50 : document);
    EXPECT_EQ(of_windows, std::set<std::uint16_t>{document_group(id)}) << id;
  }
  ASSERT_EQ(lengths.size(), 10U);
  for (std::size_t d = 0; d < kLengths.size(); ++d) EXPECT_EQ(lengths[d], kLengths[d]);
  EXPECT_TRUE(blocks.back().last_of_corpus);
  EXPECT_EQ(blocks.back().after.corpus, 2U);
}

/// A corpus of which little is wanted ends without its rest being read, here a line of 1 TB (a hole in the file).
TEST_F(BlockSourceTest, MaxTokensDoesNotWaitForWhatIsBehind) {
  if (comm_.rank() == 0) {
    std::ofstream out(folder_ / "huge.jsonl");
    for (std::size_t d = 0; d < 40; ++d) write_document(out, d, 60);
    out.close();
    std::filesystem::resize_file(folder_ / "huge.jsonl", 1'000'000'000'000);
  }
  comm_.barrier();
  BlockOptions wanted = options();
  wanted.max_tokens = 70;
  wanted.block_tokens = 200;
  const auto start = std::chrono::steady_clock::now();
  const std::vector<Block> blocks = read_all({"huge", "b"}, wanted);
  ASSERT_EQ(blocks.size(), 2U);
  EXPECT_EQ(blocks[0].tokens.size(), 70U);
  EXPECT_EQ(blocks[1].tokens.size(), 33U);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(30));  // reading it takes minutes
}

TEST_F(BlockSourceTest, WithAnswersADocumentIsOneWindow) {
  BlockOptions wanted = options();
  wanted.context = 60;
  wanted.answer_tokens = 20;
  const std::vector<Block> blocks = read_all({"a", "b"}, wanted);
  EXPECT_GT(blocks.size(), 4U);  // of 199 tokens and 9 answers of 20, then the one of corpus b
  std::vector<std::uint64_t> windows;
  std::uint64_t row = 0;
  for (const Block& block : blocks) {
    for (const DocumentRow& document : block.documents) {
      const std::size_t d = windows.size();
      const std::size_t length = d == 9 ? 33 : kLengths[d];
      EXPECT_EQ(document.n_tokens, std::min<std::size_t>(length, 40));
      EXPECT_EQ(document.prompt_tokens, document.n_tokens);
      EXPECT_EQ(document.truncated, length > 40);
      EXPECT_EQ(document.first_token, row);
      row += document.n_tokens;
      windows.push_back(0);
    }
    for (const Window& window : block.windows) {
      ASSERT_LT(window.document, windows.size());  // in the block where its document begins
      ++windows[window.document];
      EXPECT_EQ(block.tokens[window.first] % 1000, 0U);
      EXPECT_EQ(window.next, -1);
    }
    EXPECT_EQ(std::accumulate(block.windows.begin(), block.windows.end(), std::size_t{0},
                              [](std::size_t n, const Window& w) { return n + static_cast<std::size_t>(w.count); }),
              block.tokens.size());
  }
  EXPECT_EQ(windows, (std::vector<std::uint64_t>{1, 0, 1, 1, 1, 1, 1, 1, 1, 1}));
}

TEST_F(BlockSourceTest, ContinuesBehindEveryBlock) {
  const std::vector<Block> all = read_all({"a", "b"}, options());
  for (std::size_t b = 0; b < all.size(); ++b) {
    const std::vector<Block> rest = read_all({"a", "b"}, options(), all[b].after);
    ASSERT_EQ(rest.size(), all.size() - b - 1);
    for (std::size_t i = 0; i < rest.size(); ++i) {
      const Block& expected = all[b + 1 + i];
      EXPECT_EQ(rest[i].ordinal, expected.ordinal);
      EXPECT_EQ(rest[i].corpus, expected.corpus);
      EXPECT_EQ(rest[i].first_row, expected.first_row);
      EXPECT_EQ(rest[i].corpus_first_token, expected.corpus_first_token);
      EXPECT_EQ(rest[i].tokens, expected.tokens);
      EXPECT_EQ(rest[i].documents.size(), expected.documents.size());
      EXPECT_EQ(rest[i].last_of_corpus, expected.last_of_corpus);
      for (std::size_t w = 0; w < rest[i].windows.size(); ++w)
        EXPECT_EQ(rest[i].windows[w].document, expected.windows[w].document);
    }
  }
}

TEST_F(BlockSourceTest, LimitsEndACorpusAlsoWhenContinued) {
  for (const std::uint64_t limit : {1ULL, 60ULL, 100ULL, 333ULL, 10000ULL}) {
    BlockOptions wanted = options();
    wanted.max_tokens = limit;
    const std::vector<Block> all = read_all({"a"}, wanted);
    std::uint64_t tokens = 0;
    for (const Block& block : all) tokens += block.tokens.size();
    EXPECT_EQ(tokens, std::min<std::uint64_t>(limit, kTotal));
    EXPECT_EQ(read_all({"a"}, wanted, all.front().after).size(), all.size() - 1);
  }
  BlockOptions wanted = options();
  wanted.max_documents = 4;
  std::size_t documents = 0;
  for (const Block& block : read_all({"a"}, wanted)) documents += block.documents.size();
  EXPECT_EQ(documents, 4U);
}

TEST_F(BlockSourceTest, AnEmptyCorpusIsOneEmptyBlock) {
  const std::vector<Block> blocks = read_all({"empty", "b"}, options());
  ASSERT_EQ(blocks.size(), 2U);
  EXPECT_TRUE(blocks[0].tokens.empty());
  EXPECT_TRUE(blocks[0].last_of_corpus);
  EXPECT_EQ(blocks[1].corpus, 1U);
  EXPECT_EQ(blocks[1].tokens.size(), 33U);
}

TEST_F(BlockSourceTest, TokensOutsideTheVocabularyAreRefused) {
  BlockOptions wanted = options();
  wanted.vocabulary = 5000;  // document 5 goes beyond
  EXPECT_THROW(read_all({"a"}, wanted), Error);
}

}  // namespace
}  // namespace switchyard
