// Run on 1 to 4 ranks: answers equal those of recomputing whole sequences for every token.
#include "pipeline/generation.h"

#include <gtest/gtest.h>

#include <cmath>

#include "pipeline/sampling.h"
#include "tests/support/golden_model.h"

namespace switchyard {
namespace {

using testing_support::GoldenModel;
using testing_support::KeepAll;
using Answers = std::vector<std::vector<std::uint32_t>>;

TEST(Sampling, TokensFollowTheirProbabilities) {
  const std::vector<float> logits = {0, std::log(2.0F), std::log(3.0F), std::log(4.0F)};  // 0.1, 0.2, 0.3, 0.4
  const std::vector<std::pair<double, std::uint32_t>> at_one = {{0, 0},      {0.0999, 0}, {0.1001, 1}, {0.2999, 1},
                                                                {0.3001, 2}, {0.5999, 2}, {0.6001, 3}, {0.9999999, 3}};
  for (const auto& [uniform, token] : at_one) EXPECT_EQ(sample_token(logits, 1, uniform), token) << uniform;
  // Squares: 1, 4, 9, 16 of 30.
  const std::vector<std::pair<double, std::uint32_t>> at_half = {{0.033, 0}, {0.034, 1}, {0.166, 1},
                                                                 {0.167, 2}, {0.466, 2}, {0.467, 3}};
  for (const auto& [uniform, token] : at_half) EXPECT_EQ(sample_token(logits, 0.5, uniform), token) << uniform;
  for (int i = 0; i < 100; ++i) EXPECT_EQ(sample_token(logits, 1e-6, i / 100.0), 3U);
  // What rounding leaves above all goes to the last token that has a weight.
  const std::vector<float> one = {-1000, 5, -1000};
  EXPECT_EQ(sample_token(one, 0.1, 1.0), 1U);
}

TEST(Sampling, NumbersAreOfSeedDocumentAndPosition) {
  double sum = 0;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    const double number = answer_number(1, i / 10, i % 10);
    EXPECT_TRUE(number >= 0 && number < 1);
    sum += number;
  }
  EXPECT_NEAR(sum / 1000, 0.5, 0.03);  // 3 standard errors of a uniform number's mean
  EXPECT_EQ(answer_number(7, 3, 5), answer_number(7, 3, 5));
  EXPECT_NE(answer_number(7, 3, 5), answer_number(8, 3, 5));
  EXPECT_NE(answer_number(7, 3, 5), answer_number(7, 4, 5));
  EXPECT_NE(answer_number(7, 3, 5), answer_number(7, 3, 6));
}

/// A golden model on all ranks, and its sequences' beginnings as a block of documents.
class GenerationTest : public ::testing::TestWithParam<const char*> {
 protected:
  GenerationTest()
      : golden_(GetParam()),
        checkpoint_(golden_.folder()),
        config_(ModelConfig::parse(checkpoint_.config_text(), golden_.folder().string())) {
    const Batch whole = golden_.batch();
    for (std::size_t s = 0; s + 1 < whole.window_offsets.size(); ++s) {
      const std::int64_t length = std::min<std::int64_t>(whole.window_offsets[s + 1] - whole.window_offsets[s],
                                                         static_cast<std::int64_t>(3 + 4 * s));
      const auto begin = whole.tokens.begin() + whole.window_offsets[s];
      block_.windows.push_back({100 + s, block_.tokens.size(), length, -1, static_cast<std::uint16_t>(s)});
      block_.tokens.insert(block_.tokens.end(), begin, begin + length);
    }
    options_.tokens = 24;
  }

  std::size_t n_windows() const { return block_.windows.size(); }

  /// Answers of all windows, which ranks share; at most `at_once` together.
  Answers generated(std::size_t at_once) const {
    const Communicator comm = Communicator::world();
    const auto placement = ExpertPlacement::contiguous(config_.n_moe_layers(), config_.n_experts, comm.size());
    const auto transport = make_transport("mpi", comm);
    Model model(checkpoint_, config_, placement, comm, *transport, {Precision::f32});
    Recorder recorder(config_.facts("golden"), RecordLevel::tokens, {}, {},
                      config_.n_moe_layers() > 0 ? &placement : nullptr, model.row_bytes(), ModelFlops(config_), comm,
                      true);
    Generator generator(model, recorder, options_, comm);
    const auto ranks = static_cast<std::size_t>(comm.size());
    const std::size_t share = (n_windows() + ranks - 1) / ranks;
    const std::size_t begin = std::min(n_windows(), share * static_cast<std::size_t>(comm.rank()));
    const std::size_t end = std::min(n_windows(), begin + share);
    std::vector<std::uint32_t> lengths;
    std::vector<std::uint32_t> ids;
    for (std::size_t turn = 0; turn < share; turn += at_once) {
      const std::size_t first = std::min(end, begin + turn);
      const auto answers =
          generator.answer(block_, first, std::min(end, first + at_once), [](double, std::uint64_t) {});
      for (const auto& answer : answers.value()) {
        lengths.push_back(static_cast<std::uint32_t>(answer.size()));
        ids.insert(ids.end(), answer.begin(), answer.end());
      }
    }
    lengths = comm.all_gather_v<std::uint32_t>(lengths);
    ids = comm.all_gather_v<std::uint32_t>(ids);
    Answers all;
    auto at = ids.begin();
    for (const std::uint32_t length : lengths) {
      all.emplace_back(at, at + length);
      at += length;
    }
    return all;
  }

  /// The same by one rank alone that runs all tokens of a document again for each of its answer.
  Answers recomputed() const {
    const Communicator self = Communicator::self();
    const auto placement = ExpertPlacement::contiguous(config_.n_moe_layers(), config_.n_experts, 1);
    const auto transport = make_transport("local", self);
    Model model(checkpoint_, config_, placement, self, *transport, {Precision::f32});
    Answers all;
    for (const Window& window : block_.windows) {
      const auto begin = block_.tokens.begin() + static_cast<std::ptrdiff_t>(window.first);
      Batch batch;
      batch.tokens.assign(begin, begin + window.count);
      batch.window_offsets = {0, 0};
      std::vector<std::uint32_t> answer;
      while (static_cast<std::int64_t>(answer.size()) < options_.tokens) {
        batch.window_offsets[1] = static_cast<std::int32_t>(batch.tokens.size());
        batch.targets.resize(batch.tokens.size(), -1);
        KeepAll seen;
        Tensor x = model.embed(batch);
        model.run_layers(x, batch, 0, config_.n_layers, seen);
        const std::vector<std::int32_t> last = {static_cast<std::int32_t>(x.rows() - 1)};
        const Tensor logits = model.logits(x, last);
        const std::span<const float> row = logits.view().row<float>(0);
        answer.push_back(options_.temperature == 0
                             ? static_cast<std::uint32_t>(std::ranges::max_element(row) - row.begin())
                             : sample_token(row, options_.temperature,
                                            answer_number(options_.seed, window.document, answer.size())));
        batch.tokens.push_back(answer.back());
        if (std::ranges::find(options_.end_tokens, answer.back()) != options_.end_tokens.end()) break;
      }
      all.push_back(std::move(answer));
    }
    return all;
  }

  GoldenModel golden_;
  Checkpoint checkpoint_;
  ModelConfig config_;
  Block block_;
  GenerationOptions options_;
};

TEST_P(GenerationTest, GreedyAnswersAreThoseOfRecomputing) {
  const Answers expected = recomputed();
  ASSERT_GE(expected.size(), 3U);
  for (const auto& answer : expected) EXPECT_EQ(answer.size(), 24U);
  EXPECT_EQ(generated(64), expected);
  EXPECT_EQ(generated(1), expected);
}

TEST_P(GenerationTest, AnEndTokenEndsAnAnswer) {
  const Answers whole = recomputed();
  options_.end_tokens = {whole[0][2], whole[1][5]};
  const Answers expected = recomputed();
  EXPECT_LE(expected[0].size(), 3U);
  EXPECT_LE(expected[1].size(), 6U);
  EXPECT_EQ(generated(64), expected);
}

TEST_P(GenerationTest, DrawnAnswersDependOnSeedAndDocumentAlone) {
  const Answers greedy = recomputed();
  options_.temperature = 1.5;
  options_.seed = 11;
  const Answers expected = recomputed();
  EXPECT_NE(expected, greedy);
  EXPECT_EQ(generated(64), expected);
  EXPECT_EQ(generated(2), expected);
  options_.seed = 12;
  EXPECT_NE(generated(64), expected);
  options_.temperature = 1e-6;
  EXPECT_EQ(generated(64), greedy);
}

INSTANTIATE_TEST_SUITE_P(All, GenerationTest,
                         ::testing::Values("golden/mixtral", "golden/mistral", "golden/mistral_swa", "golden/deepseek",
                                           "golden/grok1"));

}  // namespace
}  // namespace switchyard
