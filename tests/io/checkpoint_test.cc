#include "io/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "parallel/error.h"
#include "tests/support/temp_folder.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::read_file;
using testing::TempFolder;
using testing::write_file;

const fs::path kGolden = fs::path(SWITCHYARD_TEST_DATA) / "golden" / "mixtral";

Tensor filled(std::int64_t n, float value) {
  Tensor values(DType::f32, 1, n);
  for (std::int64_t i = 0; i < n; ++i) values.data<float>()[i] = value;
  return values;
}

void write_shard(const fs::path& path, const std::vector<std::pair<std::string, float>>& tensors,
                 std::int64_t size = 4) {
  std::vector<TensorToWrite> declared;
  for (const auto& [name, value] : tensors) declared.push_back({name, {size}});
  std::size_t next = 0;
  write_safetensors(path, DType::f32, declared,
                    [&](const TensorToWrite&) { return filled(size, tensors[next++].second); });
}

void write_index(const fs::path& folder, const json& weight_map) {
  write_file(folder / "model.safetensors.index.json",
             json{{"metadata", {{"total_size", 1}}}, {"weight_map", weight_map}}.dump());
}

/// Three tensors in two shards.
void write_sharded(const fs::path& folder) {
  write_file(folder / "config.json", R"({"model_type": "mixtral"})");
  write_shard(folder / "one.safetensors", {{"a", 1.0F}, {"b", 2.0F}});
  write_shard(folder / "two.safetensors", {{"c", 3.0F}});
  write_index(folder, {{"a", "one.safetensors"}, {"b", "one.safetensors"}, {"c", "two.safetensors"}});
}

/// The message of the Error that opening gives; empty when it opens. Asserts that it names the folder.
std::string fault_of(const fs::path& folder) {
  try {
    const Checkpoint checkpoint(folder);
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr(folder.string()));
    return error.what();
  }
  return "";
}

TEST(Checkpoint, OpensOneFile) {
  const Checkpoint checkpoint(kGolden);
  EXPECT_EQ(checkpoint.bytes(), 462240U);
  EXPECT_EQ(checkpoint.files().size(), 1U);
  EXPECT_EQ(checkpoint.config_text(), read_file(kGolden / "config.json"));
  EXPECT_TRUE(checkpoint.contains("model.norm.weight"));
  EXPECT_FALSE(checkpoint.contains("model.norm.bias"));
  EXPECT_EQ(to_tensor(checkpoint.tensor("model.embed_tokens.weight"), DType::f32).row<float>(159)[47], 0.71875F);
  EXPECT_EQ(to_tensor(checkpoint.tensor("model.layers.1.block_sparse_moe.gate.weight"), DType::f32).row<float>(3)[10],
            -0.6171875F);
  try {
    checkpoint.tensor("model.norm.bias");
    ADD_FAILURE() << "an absent tensor was found";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(),
                AllOf(HasSubstr("'model.norm.bias'"), HasSubstr(kGolden.string()), HasSubstr("copy the folder again")));
  }
}

TEST(Checkpoint, OpensShards) {
  const TempFolder folder;
  write_sharded(folder.path());
  Checkpoint opened(folder.path());
  const Checkpoint checkpoint = std::move(opened);
  EXPECT_EQ(checkpoint.files().size(), 2U);
  EXPECT_EQ(checkpoint.bytes(), 48U);
  float expected = 1.0F;
  for (const std::string name : {"a", "b", "c"}) {
    const Tensor values = to_tensor(checkpoint.tensor(name), DType::f32);
    ASSERT_EQ(values.cols(), 4);
    for (const float value : values.row<float>(0)) EXPECT_EQ(value, expected) << name;
    expected += 1.0F;
  }
}

// As downloaded by the hub's own client: a folder of links into a cache.
TEST(Checkpoint, FollowsLinks) {
  const TempFolder folder;
  for (const char* name : {"config.json", "model.safetensors"}) fs::create_symlink(kGolden / name, folder / name);
  EXPECT_EQ(Checkpoint(folder.path()).fingerprint(), Checkpoint(kGolden).fingerprint());
}

TEST(Checkpoint, FolderOrFilesMissing) {
  const TempFolder folder;
  EXPECT_THAT(fault_of(folder / "absent"), HasSubstr("not a folder"));
  EXPECT_THAT(fault_of(folder.path()), HasSubstr("no config.json"));
  write_file(folder / "config.json", "{}");
  EXPECT_THAT(fault_of(folder.path()), HasSubstr("neither model.safetensors nor model.safetensors.index.json"));
  EXPECT_THAT(fault_of(folder / "config.json"), HasSubstr("not a folder"));
}

TEST(Checkpoint, MissingShard) {
  const TempFolder folder;
  write_sharded(folder.path());
  fs::remove(folder / "two.safetensors");
  EXPECT_THAT(fault_of(folder.path()),
              AllOf(HasSubstr("shard 'two.safetensors' is missing"), HasSubstr("copy the folder again")));
}

TEST(Checkpoint, BrokenShardIsNamed) {
  const TempFolder folder;
  write_sharded(folder.path());
  fs::resize_file(folder / "two.safetensors", fs::file_size(folder / "two.safetensors") - 1);
  EXPECT_THAT(fault_of(folder.path()), AllOf(HasSubstr("two.safetensors"), HasSubstr("truncated data")));
}

TEST(Checkpoint, ShardPathsLeavingTheFolder) {
  const TempFolder folder;
  const fs::path model = folder / "model";
  fs::create_directory(model);
  write_sharded(model);
  write_shard(folder / "outside.safetensors", {{"a", 1.0F}});
  fs::create_directory(model / "sub");
  write_shard(model / "sub" / "one.safetensors", {{"a", 1.0F}});
  const std::string outside = (folder / "outside.safetensors").string();
  int tried = 0;
  for (const std::string& shard : {std::string("../outside.safetensors"), outside, std::string("sub/one.safetensors"),
                                   std::string("./one.safetensors"), std::string(".."), std::string("."), std::string(),
                                   std::string("one.safetensors\0x", 17)}) {
    write_index(model, {{"a", shard}});
    EXPECT_THAT(fault_of(model),
                AllOf(HasSubstr("'a'"), HasSubstr("index.json"), HasSubstr("not a file name of this folder")))
        << shard;
    ++tried;
  }
  EXPECT_EQ(tried, 8);
}

TEST(Checkpoint, TensorInTheIndexButNotInItsShard) {
  const TempFolder folder;
  write_sharded(folder.path());
  write_index(folder.path(), {{"a", "one.safetensors"}, {"b", "two.safetensors"}, {"c", "two.safetensors"}});
  EXPECT_THAT(fault_of(folder.path()),
              AllOf(HasSubstr("tensor 'b' is not in 'two.safetensors'"), HasSubstr("index.json")));
}

TEST(Checkpoint, TensorInTwoShards) {
  const TempFolder folder;
  write_sharded(folder.path());
  write_shard(folder / "two.safetensors", {{"c", 3.0F}, {"a", 9.0F}});
  EXPECT_THAT(fault_of(folder.path()), AllOf(HasSubstr("'a' is also in another shard"), HasSubstr("two.safetensors")));
}

TEST(Checkpoint, BrokenIndex) {
  const TempFolder folder;
  write_sharded(folder.path());
  const auto with_index = [&](const std::string& text) {
    write_file(folder / "model.safetensors.index.json", text);
    return fault_of(folder.path());
  };
  EXPECT_THAT(with_index("{"), AllOf(HasSubstr("index.json"), HasSubstr("not valid JSON")));
  EXPECT_THAT(with_index(""), HasSubstr("not valid JSON"));
  EXPECT_THAT(with_index("[]"), HasSubstr("no object 'weight_map'"));
  EXPECT_THAT(with_index(R"({"weight_map": ["a"]})"), HasSubstr("no object 'weight_map'"));
  EXPECT_THAT(with_index(R"({"weight_map": {}})"), HasSubstr("'weight_map' is empty"));
  EXPECT_THAT(with_index(R"({"weight_map": {"a": 1}})"), HasSubstr("shard of tensor 'a' is not a string"));
  EXPECT_THAT(with_index(R"({"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}})"),
              HasSubstr("'a' is given twice"));
  EXPECT_THAT(with_index(std::string("{\"weight_map\": {\"a\": \"one.safetensors\"}}\0hidden", 48)),
              HasSubstr("zero byte"));
}

TEST(Checkpoint, FingerprintIsOfTheContent) {
  const TempFolder folder;
  fs::create_directory(folder / "copy");
  write_sharded(folder.path());
  for (const char* name : {"config.json", "one.safetensors", "two.safetensors", "model.safetensors.index.json"}) {
    fs::copy_file(folder / name, folder / "copy" / name);
  }
  const std::string print = Checkpoint(folder.path()).fingerprint();
  EXPECT_THAT(print, ::testing::MatchesRegex("[0-9a-f]{32}"));
  EXPECT_EQ(Checkpoint(folder / "copy").fingerprint(), print);

  write_shard(folder / "copy" / "two.safetensors", {{"c", 3.0000002F}});
  EXPECT_NE(Checkpoint(folder / "copy").fingerprint(), print);
  write_shard(folder / "copy" / "two.safetensors", {{"c", 3.0F}});
  EXPECT_EQ(Checkpoint(folder / "copy").fingerprint(), print);
  write_file(folder / "copy" / "config.json", R"({"model_type": "mistral"})");
  EXPECT_NE(Checkpoint(folder / "copy").fingerprint(), print);
}

// A file above the sampled size: other values everywhere, another first value, another last value.
TEST(Checkpoint, FingerprintSamplesLargeFiles) {
  const TempFolder folder;
  constexpr std::int64_t kSize = 300'001;
  write_file(folder / "config.json", "{}");
  const auto print_of = [&](float value) {
    write_shard(folder / "model.safetensors", {{"w", value}}, kSize);
    return Checkpoint(folder.path()).fingerprint();
  };
  const std::string print = print_of(1.0F);
  EXPECT_NE(print_of(2.0F), print);
  EXPECT_EQ(print_of(1.0F), print);
  const std::string content = read_file(folder / "model.safetensors");
  for (const std::size_t at : {content.size() - kSize * 4, content.size() - 1}) {
    std::string changed = content;
    changed[at] = static_cast<char>(changed[at] ^ 1);
    write_file(folder / "model.safetensors", changed);
    EXPECT_NE(Checkpoint(folder.path()).fingerprint(), print) << at;
  }
}

}  // namespace
}  // namespace switchyard
