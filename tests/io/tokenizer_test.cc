#include "io/tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sentencepiece_processor.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "parallel/error.h"
#include "tests/support/temp_folder.h"

namespace switchyard {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using Ids = std::vector<std::uint32_t>;

const std::filesystem::path kData = SWITCHYARD_TEST_DATA;

const Tokenizer& mixtral() {
  static const std::unique_ptr<Tokenizer> tokenizer = open_tokenizer_file(kData / "golden/tokenizer/mixtral.model");
  return *tokenizer;
}

nlohmann::json golden_cases() {
  return nlohmann::json::parse(testing::read_file(kData / "golden/tokenizer/mixtral_ids.json")).at("cases");
}

void append(Ids& ids, const Ids& more) { ids.insert(ids.end(), more.begin(), more.end()); }

TEST(Tokenizer, GivesTheGoldenIds) {
  std::size_t compared = 0;
  for (const auto& golden : golden_cases()) {
    const auto text = golden.at("text").get<std::string>();
    const auto ids = golden.at("ids").get<Ids>();
    EXPECT_EQ(mixtral().encode(text), ids) << text;
    compared += ids.size();
  }
  EXPECT_GT(compared, 100U);
}

TEST(Tokenizer, DecodesWhatItEncodes) {
  std::size_t decoded = 0;
  for (const std::string text : {"Hello, world", "two  spaces\nand a line", "na\u00efve \u4e16\u754c \U0001f600", ""}) {
    Ids ids = mixtral().encode(text);
    ids.insert(ids.begin(), static_cast<std::uint32_t>(mixtral().bos_id()));
    ids.push_back(static_cast<std::uint32_t>(mixtral().eos_id()));
    EXPECT_EQ(mixtral().decode(ids), text);
    decoded += ids.size();
  }
  EXPECT_GT(decoded, 20U);
  EXPECT_EQ(mixtral().eos_id(), 2);
  EXPECT_EQ(mixtral().decode(Ids{32000}), "");
}

/// An I32 tensor of a safetensors file.
std::vector<std::int32_t> read_tensor(const std::string& file, const std::string& name) {
  std::uint64_t header_size = 0;
  std::memcpy(&header_size, file.data(), sizeof(header_size));
  const auto header = nlohmann::json::parse(file.substr(sizeof(header_size), header_size));
  const auto begin = header.at(name).at("data_offsets").at(0).get<std::size_t>();
  const auto end = header.at(name).at("data_offsets").at(1).get<std::size_t>();
  std::vector<std::int32_t> values((end - begin) / sizeof(std::int32_t));
  std::memcpy(values.data(), file.data() + sizeof(header_size) + header_size + begin, end - begin);
  return values;
}

TEST(Tokenizer, GivesTheDemoModelsInput) {
  const auto tokenizer = open_tokenizer(kData / "data/demo");
  ASSERT_NE(tokenizer, nullptr);
  const std::string file = testing::read_file(kData / "data/demo/golden.safetensors");
  const auto texts = nlohmann::json::parse(testing::read_file(kData / "data/demo/golden_texts.json")).at("texts");
  const auto input_ids = read_tensor(file, "input_ids");
  const auto lengths = read_tensor(file, "lengths");
  ASSERT_EQ(texts.size(), lengths.size());
  const std::size_t row = input_ids.size() / lengths.size();
  std::size_t compared = 0;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    Ids ids{static_cast<std::uint32_t>(tokenizer->bos_id())};
    append(ids, tokenizer->encode(texts[i].get<std::string>()));
    ASSERT_GE(ids.size(), static_cast<std::size_t>(lengths[i]));
    for (std::size_t j = 0; j < static_cast<std::size_t>(lengths[i]); ++j, ++compared) {
      ASSERT_EQ(static_cast<std::int32_t>(ids[j]), input_ids[i * row + j]) << i << ", " << j;
    }
  }
  EXPECT_EQ(compared, 648U);
}

TEST(Tokenizer, KnowsItsVocabulary) {
  EXPECT_EQ(mixtral().vocabulary_size(), 32000U);
  EXPECT_EQ(mixtral().bos_id(), 1);
  EXPECT_EQ(mixtral().piece(22557), "\xE2\x96\x81Hello");
  EXPECT_EQ(mixtral().piece(13), "<0x0A>");
  for (std::uint32_t id = 0; id < 10; ++id) EXPECT_EQ(mixtral().is_special(id), id < 3) << id;
  EXPECT_THROW(mixtral().piece(32000), Error);
  EXPECT_THROW(mixtral().is_special(0xFFFFFFFF), Error);
}

TEST(Tokenizer, FingerprintIsOfTheFile) {
  const testing::TempFolder folder;
  const std::string model = testing::read_file(kData / "golden/tokenizer/mixtral.model");
  testing::write_file(folder / "tokenizer.model", model);
  EXPECT_EQ(open_tokenizer(folder.path())->fingerprint(), mixtral().fingerprint());
  EXPECT_EQ(mixtral().fingerprint().size(), 32U);
  EXPECT_NE(open_tokenizer(kData / "data/demo")->fingerprint(), mixtral().fingerprint());
}

TEST(Tokenizer, RefusesBrokenFiles) {
  const testing::TempFolder folder;
  EXPECT_EQ(open_tokenizer(folder.path()), nullptr);
  const std::string model = testing::read_file(kData / "golden/tokenizer/mixtral.model");
  for (const std::string& bytes :
       {std::string(), std::string("{\"version\": 1}"), model.substr(0, 1000), model.substr(1)}) {
    testing::write_file(folder / "tokenizer.model", bytes);
    try {
      open_tokenizer(folder.path());
      ADD_FAILURE() << "opened " << bytes.size() << " bytes";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("tokenizer.model"));
    }
  }
}

/// Text of every kind that occurs in the goldens, mixed at random, `bytes` long or a little longer.
std::string awkward_text(std::size_t bytes, unsigned seed) {
  static const std::vector<std::string> parts = [] {
    std::vector<std::string> all{" ",
                                 "  ",
                                 "   ",
                                 "\n",
                                 "\r\n\r\n",
                                 "\t",
                                 "\xE2\x96\x81",
                                 "\xE2\x96\x81 ",
                                 "日本語",
                                 "の",
                                 "。",
                                 "é",
                                 "🙂",
                                 "👩‍👩‍👧",
                                 "\xFF",
                                 "\xC3",
                                 "\xE2\x96",
                                 std::string(1, '\0'),
                                 "<s>",
                                 "</s>",
                                 "<unk>",
                                 "<0x0A>",
                                 "ing",
                                 "the",
                                 " The",
                                 "1234567",
                                 "==========",
                                 "aaaaaaaaaaa",
                                 "ﬁ",
                                 "\u00A0",
                                 "\u3000",
                                 "\u200B",
                                 "https://x.org/a_b?c=d"};
    for (const auto& golden : golden_cases()) all.push_back(golden.at("text").get<std::string>());
    return all;
  }();
  std::mt19937 random(seed);
  std::string text;
  while (text.size() < bytes) {
    text += parts[random() % parts.size()];
    if (random() % 2 == 0) text += ' ';
  }
  return text;
}

TEST(Tokenizer, SectionsOfALongTextGiveTheIdsOfTheWhole) {
  std::size_t compared = 0;
  for (const char* model : {"golden/tokenizer/mixtral.model", "data/demo/tokenizer.model"}) {
    const auto tokenizer = open_tokenizer_file(kData / model);
    sentencepiece::SentencePieceProcessor whole;
    ASSERT_TRUE(whole.Load((kData / model).string()).ok());
    for (unsigned seed = 0; seed < 12; ++seed) {
      const std::string text = awkward_text(100'000, seed);
      const std::vector<int> expected = whole.EncodeAsIds(text);
      ASSERT_EQ(tokenizer->encode(text), Ids(expected.begin(), expected.end())) << model << ", " << seed;
      compared += expected.size();
    }
  }
  EXPECT_GT(compared, 500'000U);
}

/// Where letters run on without a break, the ids may differ from the whole's around cuts alone, one for each 1 MiB.
TEST(Tokenizer, ARunOfOneLetterIsCutRarely) {
  const std::string text(5 << 18U, 'a');
  const Ids ids = mixtral().encode(text);
  std::size_t bytes = 0;
  for (const std::uint32_t id : ids) bytes += mixtral().piece(id).size();
  EXPECT_EQ(bytes, text.size() + 3);  // U+2581 once: no cut adds a space
  const auto usual = static_cast<std::ptrdiff_t>(std::count(ids.begin(), ids.end(), ids[ids.size() / 2]));
  EXPECT_LE(static_cast<std::ptrdiff_t>(ids.size()) - usual, 6);
}

TEST(Tokenizer, LeavesOutWhatIsBeyondEnough) {
  std::string text;
  for (int i = 0; i < 20'000; ++i) text += "word " + std::to_string(i) + " ";
  const Ids all = mixtral().encode(text);
  for (const std::size_t enough : {std::size_t{0}, std::size_t{1}, std::size_t{30'000}, all.size() - 1}) {
    const Ids some = mixtral().encode(text, enough);
    EXPECT_GT(some.size(), enough);
    EXPECT_TRUE(
        std::equal(some.begin(), some.end(), all.begin(), all.begin() + static_cast<std::ptrdiff_t>(some.size())));
  }
  EXPECT_LT(mixtral().encode(text, 30'000).size(), 50'000U);
  EXPECT_GT(all.size(), 100'000U);
  EXPECT_EQ(mixtral().encode(text, all.size()), all);
}

TEST(Tokenizer, TakesAnyBytes) {
  const std::string replacement = "\xEF\xBF\xBD";
  const std::vector<std::pair<std::string, std::string>> same{
      {"a\xFF z", "a" + replacement + " z"},
      {"\xC3", replacement},
      {"\xED\xA0\x80", replacement + replacement + replacement},
      {"\xF4\x90\x80\x80", replacement + replacement + replacement + replacement},
  };
  for (const auto& [bytes, valid] : same) EXPECT_EQ(mixtral().encode(bytes), mixtral().encode(valid));
  const Ids with_nul = mixtral().encode(std::string("a\0b", 3));
  EXPECT_NE(std::find(with_nul.begin(), with_nul.end(), 3U), with_nul.end());  // <0x00>
  EXPECT_FALSE(mixtral().encode(std::string(100'000, '\xFF')).empty());
  EXPECT_FALSE(mixtral().encode(std::string(100'000, '\0')).empty());
  EXPECT_FALSE(mixtral().encode(std::string(100'000, ' ')).empty());
}

TEST(Tokenizer, ThreadsEncodeAtTheSameTime) {
  constexpr unsigned kThreads = 4;
  std::vector<std::string> texts;
  std::vector<Ids> expected;
  for (unsigned i = 0; i < kThreads; ++i) {
    texts.push_back(awkward_text(40'000, i));
    expected.push_back(mixtral().encode(texts.back()));
  }
  std::vector<int> right(kThreads, 0);
  {
    std::vector<std::jthread> threads;
    for (unsigned i = 0; i < kThreads; ++i) {
      threads.emplace_back([&, i] {
        for (unsigned turn = 0; turn < kThreads; ++turn) {
          const unsigned text = (i + turn) % kThreads;
          right[i] += mixtral().encode(texts[text]) == expected[text] ? 1 : 0;
        }
      });
    }
  }
  for (const int count : right) EXPECT_EQ(count, static_cast<int>(kThreads));
}

}  // namespace
}  // namespace switchyard
