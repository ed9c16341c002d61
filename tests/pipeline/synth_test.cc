#include "pipeline/synth.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "io/checkpoint.h"
#include "parallel/error.h"
#include "pipeline/model/model_config.h"
#include "tests/support/temp_folder.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::read_file;
using testing::TempFolder;

/// No two sizes equal, so that a transposed shape shows.
SynthSpec odd_spec() {
  SynthSpec spec;
  spec.n_layers = 3;
  spec.d_model = 40;
  spec.d_ff = 56;
  spec.n_heads = 6;
  spec.n_kv_heads = 2;
  spec.head_dim = 8;
  spec.vocabulary = 131;
  spec.n_experts = 5;
  spec.top_k = 2;
  return spec;
}

using Shape = std::vector<std::int64_t>;

std::vector<float> values_of(const Checkpoint& checkpoint, const std::string& name) {
  const Tensor tensor = to_tensor(checkpoint.tensor(name), DType::f32);
  return {tensor.data<float>(), tensor.data<float>() + tensor.rows() * tensor.cols()};
}

std::size_t count_tensors(const Checkpoint& checkpoint) {
  std::size_t count = 0;
  for (const SafetensorsFile& file : checkpoint.files()) count += file.tensors().size();
  return count;
}

TEST(Synth, MixtralHasTheGoldensTensors) {
  const Checkpoint golden(fs::path(SWITCHYARD_TEST_DATA) / "golden" / "mixtral");
  SynthSpec spec;
  spec.n_layers = 3;
  spec.d_model = 48;
  spec.d_ff = 56;
  spec.head_dim = 12;
  spec.vocabulary = 160;
  spec.max_positions = 256;
  const TempFolder folder;
  synthesize_checkpoint(folder.path(), spec);
  const Checkpoint made(folder.path());
  std::size_t compared = 0;
  for (const StoredTensor& tensor : golden.files().front().tensors()) {
    ASSERT_TRUE(made.contains(tensor.name)) << tensor.name;
    EXPECT_EQ(made.tensor(tensor.name).shape, tensor.shape) << tensor.name;
    EXPECT_EQ(made.tensor(tensor.name).dtype, "BF16");
    ++compared;
  }
  EXPECT_EQ(compared, 96U);
  EXPECT_EQ(count_tensors(made), compared);

  const auto config = nlohmann::json::parse(made.config_text());
  const auto reference = nlohmann::json::parse(golden.config_text());
  for (const char* key :
       {"architectures", "model_type", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
        "num_experts_per_tok", "num_hidden_layers", "num_local_experts", "vocab_size", "max_position_embeddings",
        "hidden_act", "rms_norm_eps", "sliding_window", "tie_word_embeddings"}) {
    EXPECT_EQ(config.at(key), reference.at(key)) << key;
  }
  EXPECT_EQ(config.at("head_dim"), 12);
}

TEST(Synth, DeepseekAndGrokHaveTheGoldensTensors) {
  SynthSpec spec;
  spec.n_layers = 3;
  spec.d_model = 48;
  spec.head_dim = 12;
  spec.vocabulary = 160;
  spec.max_positions = 256;
  SynthSpec deepseek = spec;
  deepseek.family = "deepseek";
  deepseek.d_ff = 40;
  deepseek.dense_d_ff = 96;
  deepseek.n_experts = 16;
  deepseek.top_k = 4;
  SynthSpec grok = spec;
  grok.family = "grok-1";
  grok.d_ff = 56;
  std::size_t compared = 0;
  for (const auto& [name, made_of] : {std::pair{"deepseek", &deepseek}, {"grok1", &grok}}) {
    const Checkpoint golden(fs::path(SWITCHYARD_TEST_DATA) / "golden" / name);
    const TempFolder folder;
    synthesize_checkpoint(folder.path(), *made_of);
    const Checkpoint made(folder.path());
    for (const StoredTensor& tensor : golden.files().front().tensors()) {
      ASSERT_TRUE(made.contains(tensor.name)) << tensor.name;
      EXPECT_EQ(made.tensor(tensor.name).shape, tensor.shape) << tensor.name;
      ++compared;
    }
    EXPECT_EQ(count_tensors(made), golden.files().front().tensors().size());
    // As switchyard reads it, but for the embeddings' scale, which goes with the width.
    ModelConfig read = ModelConfig::parse(made.config_text(), "made");
    const ModelConfig reference = ModelConfig::parse(golden.config_text(), "golden");
    EXPECT_EQ(read.facts("m"), reference.facts("m"));
    EXPECT_EQ(std::tuple(read.d_ff, read.dense_d_ff, read.shared_d_ff, read.tied_embeddings, read.activation),
              std::tuple(reference.d_ff, reference.dense_d_ff, reference.shared_d_ff, reference.tied_embeddings,
                         reference.activation));
    EXPECT_EQ(read.logit_scale, reference.logit_scale);
    EXPECT_EQ(read.attention_softcap, reference.attention_softcap);
    const auto written = nlohmann::json::parse(made.config_text());
    EXPECT_EQ(written.at("architectures"), nlohmann::json::parse(golden.config_text()).at("architectures"));
  }
  EXPECT_EQ(compared, 229U);
}

TEST(Synth, MistralHasTheGoldensTensors) {
  const Checkpoint golden(fs::path(SWITCHYARD_TEST_DATA) / "golden" / "mistral_swa");
  SynthSpec spec;
  spec.family = "mistral";
  spec.n_layers = 3;
  spec.d_model = 48;
  spec.d_ff = 96;
  spec.head_dim = 12;
  spec.vocabulary = 160;
  spec.sliding_window = 16;
  spec.top_k = 99;  // of no matter to a dense model
  spec.dtype = DType::f32;
  const TempFolder folder;
  synthesize_checkpoint(folder.path(), spec);
  const Checkpoint made(folder.path());
  for (const StoredTensor& tensor : golden.files().front().tensors()) {
    ASSERT_TRUE(made.contains(tensor.name)) << tensor.name;
    EXPECT_EQ(made.tensor(tensor.name).shape, tensor.shape) << tensor.name;
    EXPECT_EQ(made.tensor(tensor.name).dtype, "F32");
  }
  EXPECT_EQ(count_tensors(made), golden.files().front().tensors().size());
  const auto config = nlohmann::json::parse(made.config_text());
  EXPECT_EQ(config.at("model_type"), "mistral");
  EXPECT_EQ(config.at("sliding_window"), 16);
  EXPECT_FALSE(config.contains("num_local_experts"));
}

TEST(Synth, FusedLayoutIsTheSameModel) {
  const TempFolder folder;
  SynthSpec spec = odd_spec();
  synthesize_checkpoint(folder / "split", spec);
  spec.layout = ExpertLayout::fused;
  synthesize_checkpoint(folder / "fused", spec);
  const Checkpoint split(folder / "split");
  const Checkpoint fused(folder / "fused");
  EXPECT_EQ(fused.tensor("model.layers.2.mlp.experts.gate_up_proj").shape, (Shape{5, 112, 40}));
  EXPECT_EQ(fused.tensor("model.layers.2.mlp.experts.down_proj").shape, (Shape{5, 40, 56}));
  std::size_t compared = 0;
  for (int layer = 0; layer < spec.n_layers; ++layer) {
    const std::string name = "model.layers." + std::to_string(layer) + ".";
    EXPECT_EQ(values_of(fused, name + "mlp.gate.weight"), values_of(split, name + "block_sparse_moe.gate.weight"));
    EXPECT_EQ(values_of(fused, name + "self_attn.k_proj.weight"), values_of(split, name + "self_attn.k_proj.weight"));
    std::vector<float> gate_up;
    std::vector<float> down;
    for (int expert = 0; expert < spec.n_experts; ++expert) {
      const std::string part = name + "block_sparse_moe.experts." + std::to_string(expert) + ".";
      for (const float value : values_of(split, part + "w1.weight")) gate_up.push_back(value);
      for (const float value : values_of(split, part + "w3.weight")) gate_up.push_back(value);
      for (const float value : values_of(split, part + "w2.weight")) down.push_back(value);
    }
    EXPECT_EQ(values_of(fused, name + "mlp.experts.gate_up_proj"), gate_up);
    EXPECT_EQ(values_of(fused, name + "mlp.experts.down_proj"), down);
    compared += gate_up.size() + down.size();
  }
  EXPECT_EQ(compared, 3U * 5U * 3U * 56U * 40U);
  EXPECT_EQ(count_tensors(fused), 3U + 3U * (6U + 3U));
}

TEST(Synth, ShardsHoldTheSameModel) {
  const TempFolder folder;
  SynthSpec spec = odd_spec();
  synthesize_checkpoint(folder / "1", spec);
  const Checkpoint whole(folder / "1");
  for (const int shards : {2, 3, 7, 69}) {
    spec.shards = shards;
    const fs::path sharded_folder = folder / std::to_string(shards);
    synthesize_checkpoint(sharded_folder, spec);
    const Checkpoint sharded(sharded_folder);
    ASSERT_EQ(sharded.files().size(), static_cast<std::size_t>(shards));
    EXPECT_EQ(sharded.bytes(), whole.bytes());
    const auto index = nlohmann::json::parse(read_file(sharded_folder / "model.safetensors.index.json"));
    EXPECT_EQ(index.at("metadata").at("total_size"), whole.bytes());
    std::size_t compared = 0;
    std::uint64_t largest = 0;
    for (const SafetensorsFile& file : sharded.files()) largest = std::max<std::uint64_t>(largest, file.data().size());
    for (const StoredTensor& tensor : whole.files().front().tensors()) {
      EXPECT_TRUE(index.at("weight_map").contains(tensor.name));
      const StoredTensor& other = sharded.tensor(tensor.name);
      ASSERT_EQ(other.shape, tensor.shape);
      ASSERT_EQ(std::memcmp(other.data.data(), tensor.data.data(), tensor.data.size()), 0) << tensor.name;
      ++compared;
    }
    EXPECT_EQ(compared, 69U);
    if (shards <= 3) {
      EXPECT_LT(static_cast<double>(largest), 1.2 * static_cast<double>(whole.bytes()) / shards);
    }
  }
  EXPECT_TRUE(fs::exists(folder / "7" / "model-00007-of-00007.safetensors"));
}

TEST(Synth, SameBytesForAnyNumberOfThreadsAndAnotherSeedAnotherModel) {
  const TempFolder folder;
  SynthSpec spec = odd_spec();
  spec.n_layers = 1;
  spec.d_ff = 3000;  // above the size that is worth threads
  const int threads = omp_get_max_threads();
  std::vector<std::string> contents;
  for (const int count : {1, 2, 5}) {
    omp_set_num_threads(count);
    const fs::path target = folder / std::to_string(count);
    synthesize_checkpoint(target, spec);
    contents.push_back(read_file(target / "model.safetensors"));
  }
  omp_set_num_threads(threads);
  EXPECT_TRUE(contents[0] == contents[1]);
  EXPECT_TRUE(contents[0] == contents[2]);
  spec.seed = 2;
  synthesize_checkpoint(folder / "other", spec);
  EXPECT_FALSE(contents[0] == read_file(folder / "other" / "model.safetensors"));
  EXPECT_NE(Checkpoint(folder / "other").fingerprint(), Checkpoint(folder / "1").fingerprint());
}

TEST(Synth, WeightsAreNearNormalAndDifferFromTensorToTensor) {
  const TempFolder folder;
  SynthSpec spec = odd_spec();
  spec.dtype = DType::f32;
  spec.n_layers = 2;
  spec.d_ff = 700;
  synthesize_checkpoint(folder.path(), spec);
  const Checkpoint checkpoint(folder.path());
  std::set<float> firsts;
  std::size_t matrices = 0;
  for (const StoredTensor& stored : checkpoint.files().front().tensors()) {
    const std::vector<float> values = values_of(checkpoint, stored.name);
    if (stored.shape.size() == 1) {
      EXPECT_TRUE(std::all_of(values.begin(), values.end(), [](float value) { return value == 1.0F; })) << stored.name;
      continue;
    }
    EXPECT_TRUE(firsts.insert(values[0]).second) << stored.name << " begins like another tensor";
    ++matrices;
    if (stored.name.find("gate.weight") != std::string::npos) continue;
    double sum = 0;
    double squares = 0;
    double beyond = 0;  // 1.96 deviations
    for (const float value : values) {
      sum += value;
      squares += static_cast<double>(value) * value;
      beyond += std::abs(value) > 1.96 * 0.02 ? 1 : 0;
    }
    const auto n = static_cast<double>(values.size());
    EXPECT_NEAR(sum / n, 0, 5 * 0.02 / std::sqrt(n)) << stored.name;
    EXPECT_NEAR(squares / n / (0.02 * 0.02), 1, 5 * std::sqrt(2 / n)) << stored.name;
    EXPECT_NEAR(beyond / n, 0.05, 5 * std::sqrt(0.05 / n)) << stored.name;
  }
  EXPECT_EQ(matrices, 2U + 2U * (4U + 1U + 15U));
}

// Hidden states of unit RMS through the routers: loads are skewed, every expert is reached, the hot expert moves from
// layer to layer.
TEST(Synth, RoutersAreNotUniform) {
  const TempFolder folder;
  SynthSpec spec = odd_spec();
  spec.n_experts = 8;
  synthesize_checkpoint(folder.path(), spec);
  const Checkpoint checkpoint(folder.path());
  std::mt19937_64 random(7);
  std::normal_distribution<float> normal;
  std::set<std::size_t> hottest;
  constexpr int kTokens = 4000;
  for (int layer = 0; layer < spec.n_layers; ++layer) {
    const Tensor router = to_tensor(
        checkpoint.tensor("model.layers." + std::to_string(layer) + ".block_sparse_moe.gate.weight"), DType::f32);
    std::vector<int> load(8);
    for (int token = 0; token < kTokens; ++token) {
      std::vector<float> hidden(40);
      for (float& value : hidden) value = normal(random);
      std::vector<std::pair<float, std::size_t>> logits;
      for (std::size_t e = 0; e < 8; ++e) {
        const auto row = router.row<float>(static_cast<std::int64_t>(e));
        float logit = 0;
        for (std::size_t i = 0; i < 40; ++i) logit += row[i] * hidden[i];
        logits.emplace_back(-logit, e);
      }
      std::partial_sort(logits.begin(), logits.begin() + 2, logits.end());
      ++load[logits[0].second];
      ++load[logits[1].second];
    }
    const auto [least, most] = std::minmax_element(load.begin(), load.end());
    EXPECT_GT(*most, 2 * *least) << "layer " << layer;
    EXPECT_GT(*least, kTokens / 100) << "layer " << layer;
    hottest.insert(static_cast<std::size_t>(most - load.begin()));
  }
  EXPECT_GT(hottest.size(), 1U);
}

TEST(Synth, RefusesAFolderInUse) {
  const TempFolder folder;
  synthesize_checkpoint(folder / "model", odd_spec());
  const std::string before = read_file(folder / "model" / "config.json");
  try {
    synthesize_checkpoint(folder / "model", odd_spec());
    ADD_FAILURE() << "a checkpoint was overwritten";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr((folder / "model").string()), HasSubstr("already holds")));
  }
  EXPECT_EQ(read_file(folder / "model" / "config.json"), before);
  testing::write_file(folder / "file", "");
  EXPECT_THROW(synthesize_checkpoint(folder / "file" / "model", odd_spec()), Error);
}

TEST(Synth, NamesTheFieldThatIsOutOfRange) {
  const TempFolder folder;
  int refused = 0;
  const auto expect_refusal = [&](const std::string& words, auto change) {
    SynthSpec spec = odd_spec();
    change(spec);
    try {
      synthesize_checkpoint(folder / "model", spec);
      ADD_FAILURE() << words << " was not refused";
    } catch (const UsageError& error) {
      EXPECT_THAT(error.what(), HasSubstr(words));
      ++refused;
    }
  };
  expect_refusal("family 'gpt'", [](SynthSpec& spec) { spec.family = "gpt"; });
  expect_refusal("n_layers", [](SynthSpec& spec) { spec.n_layers = 0; });
  expect_refusal("vocabulary", [](SynthSpec& spec) { spec.vocabulary = -1; });
  expect_refusal("n_kv_heads (4)", [](SynthSpec& spec) { spec.n_kv_heads = 4; });
  expect_refusal("head_dim must be even", [](SynthSpec& spec) { spec.head_dim = 7; });
  expect_refusal("top_k", [](SynthSpec& spec) { spec.top_k = 6; });
  expect_refusal("top_k", [](SynthSpec& spec) { spec.top_k = 0; });
  expect_refusal("sliding_window", [](SynthSpec& spec) { spec.sliding_window = -1; });
  expect_refusal("shards must be at least 1", [](SynthSpec& spec) { spec.shards = 0; });
  expect_refusal("69 tensors", [](SynthSpec& spec) { spec.shards = 70; });
  expect_refusal("dense_layers", [](SynthSpec& spec) {
    spec.family = "deepseek";
    spec.dense_layers = 3;
  });
  expect_refusal("no fused layout", [](SynthSpec& spec) {
    spec.family = "grok-1";
    spec.layout = ExpertLayout::fused;
  });
  EXPECT_EQ(refused, 12);
  EXPECT_FALSE(fs::exists(folder / "model"));
}

}  // namespace
}  // namespace switchyard
