#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/safetensors.h"

namespace switchyard {

/// A Hugging Face model folder: config.json and model*.safetensors, one file or shards named by
/// model.safetensors.index.json. Everything is mapped, nothing is read until a tensor is asked for.
class Checkpoint {
 public:
  /// Throws Error: folder or config.json missing, no safetensors files, an index that names a missing shard, a shard
  /// path that leaves the folder, a tensor that the index places in a shard without it, the same tensor in two shards.
  /// As in Hugging Face's loader a model.safetensors is taken before an index.
  explicit Checkpoint(const std::filesystem::path& folder);
  Checkpoint(Checkpoint&&) = default;
  Checkpoint& operator=(Checkpoint&&) = default;
  Checkpoint(const Checkpoint&) = delete;
  Checkpoint& operator=(const Checkpoint&) = delete;
  ~Checkpoint() = default;

  const std::filesystem::path& folder() const { return folder_; }
  const std::string& config_text() const { return config_text_; }
  /// The files, in the order of their names.
  const std::vector<SafetensorsFile>& files() const { return files_; }
  /// Everything that it was read from: config.json, the index if there is one, the files.
  std::vector<std::filesystem::path> paths() const;
  bool contains(std::string_view name) const { return index_.contains(std::string(name)); }
  /// Throws Error naming the tensor and the folder ("copy the folder again").
  const StoredTensor& tensor(std::string_view name) const;
  /// All tensors' bytes in all files.
  std::uint64_t bytes() const;
  /// Identity for run.json and restart: hash (hex) of config.json, of every shard's header, and of a few pages spread
  /// over every shard's data: two models of one shape differ, and nothing needs to be read whole.
  std::string fingerprint() const;

 private:
  void open_shards(const std::filesystem::path& index_path);
  void add_file(const std::filesystem::path& path);

  std::filesystem::path folder_;
  std::string config_text_;
  std::vector<SafetensorsFile> files_;
  std::unordered_map<std::string, const StoredTensor*> index_;
};

}  // namespace switchyard
