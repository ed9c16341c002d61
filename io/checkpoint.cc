#include "io/checkpoint.h"

#include <cstddef>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <span>

#include "io/fingerprint.h"
#include "io/mapped_file.h"
#include "io/strict_json.h"
#include "parallel/error.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr const char* kCopyAgain = "the copy is incomplete: copy the folder again";
constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

std::string read_text(const fs::path& path) {
  const MappedFile file(path);
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

bool is_plain_file_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

/// Tensor -> shard, from the index.
std::map<std::string, std::string> read_weight_map(const fs::path& path) {
  const nlohmann::json index = parse_strict_json(read_text(path), path.string());
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    throw Error("no object 'weight_map' in it", path.string(), kCopyAgain);
  }
  std::map<std::string, std::string> shard_of;
  for (const auto& [tensor, shard] : index["weight_map"].items()) {
    if (!shard.is_string())
      throw Error("the shard of tensor " + quote_name(tensor) + " is not a string", path.string());
    const auto& name = shard.get_ref<const std::string&>();
    if (!is_plain_file_name(name)) {
      throw Error("tensor " + quote_name(tensor) + " is placed in " + quote_name(name) +
                      ", which is not a file name of this folder",
                  path.string(), "do not trust this checkpoint");
    }
    shard_of.emplace(tensor, name);
  }
  if (shard_of.empty()) throw Error("'weight_map' is empty", path.string(), kCopyAgain);
  return shard_of;
}

std::span<const std::byte> bytes_of(const std::uint64_t& number) { return std::as_bytes(std::span(&number, 1)); }

/// All of a small span; of a large one its first page, its last, and pages evenly between.
void add_sample(Fingerprint& hash, std::span<const std::byte> data) {
  constexpr std::size_t kPage = 4096;
  constexpr std::size_t kPages = 16;
  if (data.size() <= kPages * kPage) return hash.add(data);
  const std::size_t last = data.size() - kPage;
  for (std::size_t page = 0; page < kPages; ++page) hash.add(data.subspan(last / (kPages - 1) * page, kPage));
  hash.add(data.subspan(last));
}

}  // namespace

Checkpoint::Checkpoint(const fs::path& folder) : folder_(folder) {
  if (!fs::is_directory(folder)) {
    throw Error("not a folder", folder.string(), "name a folder with config.json and model*.safetensors");
  }
  if (!fs::exists(folder / "config.json")) throw Error("no config.json in it", folder.string(), kCopyAgain);
  config_text_ = read_text(folder / "config.json");
  if (fs::exists(folder / kSingleFile)) {
    add_file(folder / kSingleFile);
  } else if (fs::exists(folder / kIndexFile)) {
    open_shards(folder / kIndexFile);
  } else {
    throw Error(std::string("neither ") + kSingleFile + " nor " + kIndexFile + " in it", folder.string(),
                "copy the folder again, or convert the checkpoint to safetensors");
  }
}

void Checkpoint::open_shards(const fs::path& index_path) {
  const std::map<std::string, std::string> shard_of = read_weight_map(index_path);
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : shard_of) shards.insert(shard);
  for (const std::string& shard : shards) {
    if (!fs::exists(folder_ / shard)) {
      throw Error("the shard " + quote_name(shard) + " is missing", folder_.string(), kCopyAgain);
    }
    add_file(folder_ / shard);
  }
  std::map<std::string, const SafetensorsFile*> file_of;
  for (const SafetensorsFile& file : files_) file_of.emplace(file.path().filename().string(), &file);
  for (const auto& [tensor, shard] : shard_of) {
    if (file_of.at(shard)->find(tensor) == nullptr) {
      throw Error("tensor " + quote_name(tensor) + " is not in " + quote_name(shard) + ", where the index places it",
                  index_path.string(), kCopyAgain);
    }
  }
}

void Checkpoint::add_file(const fs::path& path) {
  const SafetensorsFile& file = files_.emplace_back(path);
  for (const StoredTensor& tensor : file.tensors()) {
    if (!index_.emplace(tensor.name, &tensor).second) {
      throw Error("tensor " + quote_name(tensor.name) + " is also in another shard", path.string(), kCopyAgain);
    }
  }
}

std::vector<fs::path> Checkpoint::paths() const {
  std::vector<fs::path> found = {folder_ / "config.json"};
  if (!fs::exists(folder_ / kSingleFile)) found.push_back(folder_ / kIndexFile);
  for (const SafetensorsFile& file : files_) found.push_back(file.path());
  return found;
}

const StoredTensor& Checkpoint::tensor(std::string_view name) const {
  const auto found = index_.find(std::string(name));
  if (found == index_.end()) {
    throw Error("no tensor " + quote_name(name), folder_.string(),
                "copy the folder again, or check that config.json belongs to it");
  }
  return *found->second;
}

std::uint64_t Checkpoint::bytes() const {
  std::uint64_t total = 0;
  for (const SafetensorsFile& file : files_) total += file.data().size();
  return total;
}

std::string Checkpoint::fingerprint() const {
  Fingerprint hash;
  hash.add(bytes_of(config_text_.size()));  // sizes, so that a byte moved from one part to the next shows
  hash.add(config_text_);
  for (const SafetensorsFile& file : files_) {
    hash.add(bytes_of(file.data().size()));
    hash.add(file.header());
    add_sample(hash, file.data());
  }
  return hash.hex();
}

}  // namespace switchyard
