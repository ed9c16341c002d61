#include "pipeline/model/model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>

#include "parallel/error.h"
#include "pipeline/model/family.h"
#include "pipeline/synth.h"
#include "tests/support/golden_bounds.h"
#include "tests/support/golden_model.h"
#include "tests/support/one_rank.h"
#include "tests/support/temp_folder.h"

namespace switchyard {
namespace {

using ::testing::HasSubstr;
using testing_support::Bounds;
using testing_support::GoldenModel;
using testing_support::kBf16;
using testing_support::kBf16Wide;
using testing_support::KeepAll;
using testing_support::kF32;
using testing_support::OneRank;

Tensor to_matrix(const std::vector<float>& values, std::int64_t cols) {
  Tensor matrix(DType::f32, static_cast<std::int64_t>(values.size()) / cols, cols);
  std::ranges::copy(values, matrix.data<float>());
  return matrix;
}

class Golden : public ::testing::TestWithParam<std::tuple<std::string, Bounds>> {
 protected:
  void SetUp() override {
    if (bounds().precision == Precision::bf16 && best_precision() != Precision::bf16) {
      GTEST_SKIP() << "this CPU has no bf16";
    }
  }
  std::string folder() const { return std::get<0>(GetParam()); }
  Bounds bounds() const { return std::get<1>(GetParam()); }
};

TEST_P(Golden, HiddenRoutingAndLossAgreeWithTheReference) {
  const GoldenModel golden(folder());
  OneRank one(golden.folder(), bounds().precision);
  testing_support::expect_agreement(golden, one.model(), bounds());
}

TEST_P(Golden, LogitsAndArgMaxAgreeWithTheReference) {
  const GoldenModel golden(folder());
  if (folder() == "data/demo") GTEST_SKIP() << "its golden has no logits";
  OneRank one(golden.folder(), bounds().precision);
  KeepAll seen;
  const TokenLosses losses = one.forward(golden.batch(), seen);
  const Tensor last = to_matrix(seen.hiddens.back(), one.model().config().d_model);
  std::vector<std::int32_t> rows(static_cast<std::size_t>(last.rows()));
  std::iota(rows.begin(), rows.end(), 0);
  const Tensor logits = one.model().logits(last, rows);
  const std::vector<float> expected = golden.floats("logits");
  ASSERT_EQ(logits.rows() * logits.cols(), static_cast<std::int64_t>(expected.size()));
  testing_support::expect_close({logits.data<float>(), expected.size()}, expected, bounds());
  for (std::int64_t t = 0; t < logits.rows(); ++t) {
    const std::span<const float> row = logits.view().row<float>(t);
    EXPECT_EQ(losses.predicted[static_cast<std::size_t>(t)], std::ranges::max_element(row) - row.begin());
  }
}

// Every window alone, and all of them in reverse order: no bit may change.
TEST_P(Golden, NothingDependsOnWhatSharesTheBatch) {
  const GoldenModel golden(folder());
  OneRank one(golden.folder(), bounds().precision);
  KeepAll together;
  const Batch batch = golden.batch();
  const TokenLosses losses = one.forward(batch, together);
  std::size_t compared = 0;
  for (std::size_t w = 0; w + 1 < batch.window_offsets.size(); ++w) {
    KeepAll alone;
    const TokenLosses alone_losses = one.forward(golden.batch(w, w + 1), alone);
    const auto begin = static_cast<std::size_t>(batch.window_offsets[w]);
    const auto n = alone_losses.loss.size();
    EXPECT_EQ(std::memcmp(&losses.loss[begin], alone_losses.loss.data(), n * sizeof(float)), 0) << "window " << w;
    for (std::size_t layer = 0; layer < together.hiddens.size(); ++layer) {
      const auto d = static_cast<std::size_t>(one.model().config().d_model);
      EXPECT_EQ(std::memcmp(&together.hiddens[layer][begin * d], alone.hiddens[layer].data(), n * d * sizeof(float)), 0)
          << "window " << w << " layer " << layer;
      compared += n;
    }
  }
  EXPECT_EQ(compared, batch.tokens.size() * together.hiddens.size());
}

INSTANTIATE_TEST_SUITE_P(F32, Golden,
                         ::testing::Combine(::testing::Values("golden/mixtral", "golden/mistral", "golden/mistral_swa",
                                                              "golden/deepseek", "golden/grok1", "data/demo"),
                                            ::testing::Values(kF32)));
INSTANTIATE_TEST_SUITE_P(Bf16, Golden,
                         ::testing::Combine(::testing::Values("golden/mixtral", "golden/mistral", "golden/mistral_swa",
                                                              "data/demo"),
                                            ::testing::Values(kBf16)));
INSTANTIATE_TEST_SUITE_P(Bf16Wide, Golden,
                         ::testing::Combine(::testing::Values("golden/deepseek", "golden/grok1"),
                                            ::testing::Values(kBf16Wide)));

TEST(ModelTest, AnEmptyBatchGivesNothing) {
  OneRank one(GoldenModel("golden/mixtral").folder(), Precision::f32);
  KeepAll seen;
  Batch empty;
  empty.window_offsets = {0};
  const TokenLosses losses = one.forward(empty, seen);
  EXPECT_TRUE(losses.loss.empty());
  EXPECT_EQ(seen.routings.size(), 3U);
}

TEST(ModelTest, FusedAndSeparateExpertsAreTheSameModel) {
  const testing::TempFolder folder;
  SynthSpec spec{.layout = ExpertLayout::per_expert, .n_layers = 2, .d_ff = 72, .n_experts = 5};
  synthesize_checkpoint(folder.path() / "separate", spec);
  spec.layout = ExpertLayout::fused;
  synthesize_checkpoint(folder.path() / "fused", spec);
  OneRank separate(folder.path() / "separate", Precision::f32);
  OneRank fused(folder.path() / "fused", Precision::f32);
  Batch batch;
  batch.window_offsets = {0, 1, 30, 100};
  for (std::uint32_t t = 0; t < 100; ++t) {
    batch.tokens.push_back(t * 37 % 256);
    batch.targets.push_back(t * 11 % 256);
  }
  KeepAll first;
  KeepAll second;
  const TokenLosses a = separate.forward(batch, first);
  const TokenLosses b = fused.forward(batch, second);
  EXPECT_EQ(a.loss, b.loss);
  EXPECT_EQ(first.hiddens, second.hiddens);
  EXPECT_EQ(a.loss.size(), 100U);
}

/// The text of the Error that `action` throws.
template <typename Action>
std::string error_of(Action action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(ModelTest, NotANumberInARouterNamesLayerAndToken) {
  const testing::TempFolder folder;
  const GoldenModel golden("golden/mixtral");
  std::filesystem::copy(golden.folder(), folder.path() / "bad");
  const auto path = folder.path() / "bad" / "model.safetensors";
  const SafetensorsFile file(golden.folder() / "model.safetensors");
  const StoredTensor* embedding = file.find("model.embed_tokens.weight");
  ASSERT_NE(embedding, nullptr);
  // One element of token 5's embedding becomes a NaN, in the file's last bytes counted from its end.
  const std::size_t data_size = std::filesystem::file_size(path);
  const StoredTensor* last = &file.tensors().back();
  const std::byte* data_end = last->data.data() + last->data.size();
  const auto from_end = static_cast<std::size_t>(data_end - embedding->data.data()) - 5U * 48U * 2U;
  {
    std::fstream bytes(path, std::ios::in | std::ios::out | std::ios::binary);
    bytes.seekp(static_cast<std::streamoff>(data_size - from_end));
    bytes.write("\xc0\x7f", 2);
  }
  OneRank one(folder.path() / "bad", Precision::f32);
  Batch batch;
  batch.tokens = {1, 2, 5, 3, 4};  // the first of its window: what follows it sees it, what precedes it does not
  batch.targets = {2, -1, 3, 4, -1};
  batch.window_offsets = {0, 2, 5};
  KeepAll seen;
  const std::string text = error_of([&] { one.forward(batch, seen); });
  EXPECT_THAT(text, HasSubstr("layer 0"));
  EXPECT_THAT(text, HasSubstr("token 2"));
}

TEST(ModelTest, MalformedBatchesAreRefused) {
  OneRank one(GoldenModel("golden/mixtral").folder(), Precision::f32);
  KeepAll seen;
  Batch batch;
  batch.tokens = {1, 2};
  batch.targets = {2, -1};
  batch.window_offsets = {0, 1};
  EXPECT_THAT(error_of([&] { one.forward(batch, seen); }), HasSubstr("window offsets"));
  batch.window_offsets = {0, 2};
  batch.tokens[1] = 160;
  EXPECT_THAT(error_of([&] { one.forward(batch, seen); }), HasSubstr("token id 160"));
}

TEST(ModelTest, MemoryCountsThisRanksExpertsOnly) {
  ModelConfig config;
  config.n_layers = 2, config.d_model = 8, config.d_ff = 16, config.n_heads = 2, config.n_kv_heads = 1;
  config.head_dim = 4, config.vocabulary = 10, config.n_experts = 3, config.top_k = 1, config.moe_layers = {0, 1};
  const auto placement = ExpertPlacement::contiguous(2, 3, 2);
  const ModelMemory first = Model::memory(config, placement, 0, {Precision::bf16}, 4);
  const ModelMemory second = Model::memory(config, placement, 1, {Precision::bf16}, 4);
  EXPECT_EQ(first.expert_bytes + second.expert_bytes, 2U * 3U * 3U * 8U * 16U * 2U);
  EXPECT_EQ(first.replicated_bytes, second.replicated_bytes);
  // Embedding and head 2 * 10 * 8, attention 2 * (16 + 8) * 8 elements; norms 5 * 8, routers 2 * 3 * 8 floats.
  EXPECT_EQ(first.replicated_bytes, (160U + 384U) * 2U + (40U + 48U) * 4U);
  EXPECT_EQ(Model::memory(config, placement, 0, {Precision::f32}, 4).expert_bytes, 2 * first.expert_bytes);
}

TEST(ModelTest, MemoryCountsDenseLayersAndSharedExperts) {
  ModelConfig config;
  config.n_layers = 3, config.d_model = 8, config.d_ff = 16, config.dense_d_ff = 20, config.shared_d_ff = 32;
  config.n_heads = 2, config.n_kv_heads = 1, config.head_dim = 4, config.vocabulary = 10;
  config.n_experts = 3, config.top_k = 1, config.moe_layers = {1, 2};
  const ModelMemory memory = Model::memory(config, ExpertPlacement::contiguous(2, 3, 1), 0, {Precision::bf16}, 4);
  EXPECT_EQ(memory.expert_bytes, 2U * 3U * 3U * 8U * 16U * 2U);
  // Embedding and head, attention of 3 layers, a dense block, 2 shared ones; norms 7 * 8, routers 2 * 3 * 8 floats.
  EXPECT_EQ(memory.replicated_bytes, (160U + 576U + 3U * 8U * 20U + 2U * 3U * 8U * 32U) * 2U + (56U + 48U) * 4U);
}

TEST(ModelTest, LoadingTellsOfEveryByteButThoseOfNorms) {
  for (const char* name : {"golden/mixtral", "golden/deepseek"}) {
    const GoldenModel golden(name);
    const Checkpoint checkpoint(golden.folder());
    const ModelConfig config = ModelConfig::parse(checkpoint.config_text(), name);
    const Communicator self = Communicator::self();
    const auto transport = make_transport("local", self);
    const auto placement = ExpertPlacement::contiguous(config.n_moe_layers(), config.n_experts, 1);
    std::uint64_t last = 0;
    std::uint64_t whole = 0;
    int told = 0;
    const Model model(checkpoint, config, placement, self, *transport, {Precision::f32},
                      [&](std::uint64_t there, std::uint64_t all) {
                        EXPECT_GT(there, last);
                        last = there;
                        whole = all;
                        ++told;
                      });
    const ModelMemory memory = Model::memory(config, placement, 0, {Precision::f32}, 0);
    EXPECT_EQ(whole, memory.replicated_bytes + memory.expert_bytes);
    EXPECT_EQ(last, whole - static_cast<std::uint64_t>((2 * config.n_layers + 1) * config.d_model) * 4);
    EXPECT_GT(told, 3 * config.n_experts * config.n_moe_layers());
  }
}

nlohmann::json golden_json(const std::string& folder) {
  return nlohmann::json::parse(Checkpoint(GoldenModel(folder).folder()).config_text());
}

nlohmann::json mixtral_json() { return golden_json("golden/mixtral"); }

TEST(ModelConfigTest, BothGenerationsAreRead) {
  const ModelConfig newer = ModelConfig::parse(mixtral_json().dump(), "config.json");
  EXPECT_EQ(newer.family, "mixtral");
  EXPECT_EQ(newer.head_dim, 12);
  EXPECT_EQ(newer.n_experts, 8);
  EXPECT_EQ(newer.rope_theta, 1e6F);
  EXPECT_EQ(newer.sliding_window, 0);
  const Checkpoint demo(GoldenModel("data/demo").folder());
  const ModelConfig older = ModelConfig::parse(demo.config_text(), "config.json");
  EXPECT_EQ(older.rope_theta, 1e4F);
  EXPECT_EQ(older.head_dim, 32);
  const ModelFacts facts = older.facts("demo");
  EXPECT_EQ(facts.moe_layers, (std::vector<int>{0, 1, 2, 3, 4, 5}));
  const Checkpoint sliding(GoldenModel("golden/mistral_swa").folder());
  EXPECT_EQ(ModelConfig::parse(sliding.config_text(), "config.json").sliding_window, 16);
}

TEST(ModelConfigTest, LayersWithoutExpertsAndSharedExperts) {
  nlohmann::json json = golden_json("golden/deepseek");
  const auto read = [&] { return ModelConfig::parse(json.dump(), "config.json"); };
  const ModelConfig config = read();
  EXPECT_EQ(config.moe_layers, (std::vector<int>{1, 2}));
  EXPECT_EQ(config.d_ff, 40);
  EXPECT_EQ(config.dense_d_ff, 96);
  EXPECT_EQ(config.shared_d_ff, 80);
  EXPECT_EQ(config.top_k, 4);
  EXPECT_FALSE(config.renormalise);
  EXPECT_FALSE(config.facts("m").renormalised);
  json["norm_topk_prob"] = true;
  EXPECT_TRUE(read().renormalise);
  json["moe_layer_freq"] = 2;
  EXPECT_EQ(read().moe_layers, (std::vector<int>{2}));
  json["n_shared_experts"] = nullptr;
  EXPECT_EQ(read().shared_d_ff, 0);
  json.erase("first_k_dense_replace");
  EXPECT_EQ(read().moe_layers, (std::vector<int>{0, 2}));
  json["first_k_dense_replace"] = 3;  // no layer is routed
  EXPECT_EQ(read().n_experts, 0);
  EXPECT_EQ(read().dense_d_ff, 96);

  int refused = 0;
  for (const auto& [key, value] : std::vector<std::pair<std::string, nlohmann::json>>{{"scoring_func", "sigmoid"},
                                                                                      {"topk_method", "noaux_tc"},
                                                                                      {"n_group", 8},
                                                                                      {"routed_scaling_factor", 2.5},
                                                                                      {"attention_bias", true},
                                                                                      {"hidden_act", "gelu"},
                                                                                      {"n_shared_experts", -1},
                                                                                      {"first_k_dense_replace", 4},
                                                                                      {"norm_topk_prob", 1}}) {
    nlohmann::json bad = golden_json("golden/deepseek");
    bad[key] = value;
    EXPECT_THAT(error_of([&] { ModelConfig::parse(bad.dump(), "some/config.json"); }), HasSubstr("\"" + key + "\""));
    ++refused;
  }
  EXPECT_EQ(refused, 9);
}

TEST(ModelConfigTest, ScalesOfGrok) {
  nlohmann::json json = golden_json("golden/grok1");
  const auto read = [&] { return ModelConfig::parse(json.dump(), "config.json"); };
  const ModelConfig config = read();
  EXPECT_EQ(config.rope_theta, 1e4F);
  EXPECT_EQ(config.embedding_scale, 78.38367176906169F);
  EXPECT_EQ(config.logit_scale, 0.5773502691896257F);
  EXPECT_EQ(config.attention_scale, 0.08838834764831845F);
  EXPECT_EQ(config.attention_softcap, 30);
  EXPECT_EQ(config.activation, Activation::gelu);
  EXPECT_TRUE(config.tied_embeddings);
  json.erase("tie_word_embeddings");
  EXPECT_TRUE(read().tied_embeddings);
  json["rope_theta"] = 500.0;
  EXPECT_EQ(read().rope_theta, 500);
  json["hidden_act"] = "silu";
  EXPECT_THAT(error_of(read), HasSubstr("hidden_act"));
  json["hidden_act"] = "gelu";
  json["max_attn_value"] = -1;
  EXPECT_THAT(error_of(read), HasSubstr("max_attn_value"));
}

TEST(ModelConfigTest, EndTokensAreOneOrSeveral) {
  auto json = mixtral_json();
  const auto end_tokens = [&](const nlohmann::json& value) {
    json["eos_token_id"] = value;
    return ModelConfig::parse(json.dump(), "config.json").end_tokens;
  };
  using Ids = std::vector<std::uint32_t>;
  EXPECT_EQ(end_tokens(2), (Ids{2}));
  EXPECT_EQ(end_tokens({2, 7}), (Ids{2, 7}));
  EXPECT_EQ(end_tokens({-1, 7, 151645}), (Ids{7}));  // the others are not in the vocabulary
  EXPECT_EQ(end_tokens(nullptr), Ids());
  EXPECT_THROW(end_tokens("</s>"), Error);
}

TEST(ModelConfigTest, WhatIsWrongIsNamed) {
  const auto error_with = [](const std::string& key, const nlohmann::json& value) {
    nlohmann::json json = mixtral_json();
    if (value.is_discarded()) {
      json.erase(key);
    } else {
      json[key] = value;
    }
    return error_of([&] { ModelConfig::parse(json.dump(), "some/config.json"); });
  };
  const nlohmann::json none(nlohmann::json::value_t::discarded);
  for (const char* key :
       {"model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size",
        "num_local_experts", "num_experts_per_tok", "rms_norm_eps", "max_position_embeddings"}) {
    EXPECT_THAT(error_with(key, none), HasSubstr(key));
    EXPECT_THAT(error_with(key, none), HasSubstr("some/config.json"));
  }
  EXPECT_THAT(error_with("rope_parameters", none), HasSubstr("rope_theta"));
  EXPECT_THAT(error_with("model_type", "gpt2"), HasSubstr("mixtral, mistral, deepseek, grok-1"));
  EXPECT_THAT(error_with("num_experts_per_tok", 9), HasSubstr("num_experts_per_tok"));
  EXPECT_THAT(error_with("num_key_value_heads", 3), HasSubstr("num_key_value_heads"));
  EXPECT_THAT(error_with("hidden_size", -1), HasSubstr("hidden_size"));
  EXPECT_THAT(error_with("hidden_size", 1e30), HasSubstr("hidden_size"));
  EXPECT_THAT(error_with("hidden_size", 18446744073709551615U), HasSubstr("hidden_size"));
  EXPECT_THAT(error_with("hidden_act", "gelu"), HasSubstr("hidden_act"));
  EXPECT_THAT(error_with("head_dim", 7), HasSubstr("head_dim"));
  EXPECT_THAT(error_with("rope_parameters", {{"rope_theta", 1e4}, {"rope_type", "yarn"}}), HasSubstr("yarn"));
  EXPECT_EQ(error_with("unknown_key", 1), "no error");
}

TEST(ModelConfigTest, ACheckpointOfAnotherShapeIsNamed) {
  const testing::TempFolder folder;
  const GoldenModel golden("golden/mixtral");
  std::filesystem::copy(golden.folder(), folder.path() / "bad");
  nlohmann::json json = mixtral_json();
  json["intermediate_size"] = 57;
  std::ofstream(folder.path() / "bad" / "config.json") << json;
  const std::string text = error_of([&] { OneRank one(folder.path() / "bad", Precision::f32); });
  EXPECT_THAT(text, HasSubstr("model.layers.0.block_sparse_moe.experts.0.w1.weight"));
  EXPECT_THAT(text, HasSubstr("[56, 48]"));
  EXPECT_THAT(text, HasSubstr("[57, 48]"));
}

}  // namespace
}  // namespace switchyard
