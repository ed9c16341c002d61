#include "io/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string_view>

#include "io/durable.h"
#include "io/fingerprint.h"
#include "parallel/error.h"

namespace switchyard {
namespace {

using nlohmann::json;

constexpr std::size_t kHashedFiles = 64;
constexpr std::size_t kHashedBytes = 64 << 10;

/// "model.hash: "a" there, "b" now" for every leaf that differs.
std::vector<std::string> differences(const json& there, const json& now) {
  const json old_leaves = there.flatten();
  const json new_leaves = now.flatten();
  const auto show = [](const json& leaves, const std::string& key) {
    return leaves.contains(key) ? leaves[key].dump() : std::string("nothing");
  };
  std::vector<std::string> found;
  const auto compare = [&](const std::string& key) {
    if (show(old_leaves, key) == show(new_leaves, key)) return;
    std::string name = key.substr(1);
    std::replace(name.begin(), name.end(), '/', '.');
    found.push_back(name + ": " + show(old_leaves, key) + " there, " + show(new_leaves, key) + " now");
  };
  for (const auto& [key, value] : old_leaves.items()) compare(key);
  for (const auto& [key, value] : new_leaves.items())
    if (!old_leaves.contains(key)) compare(key);
  return found;
}

std::string_view name_of_file(std::string_view path) { return path.substr(path.rfind('/') + 1); }

/// What a listing of the folder put behind its path.
std::string_view name_below(std::string_view folder, std::string_view path) {
  path.remove_prefix(folder.size());
  return path.substr(std::min(path.find_first_not_of('/'), path.size()));
}

}  // namespace

CorpusIdentity identify(const CorpusSpec& spec, const CorpusFiles& files) {
  CorpusIdentity identity;
  Fingerprint hash;
  const bool folder = std::filesystem::is_directory(spec.path);
  for (std::size_t i = 0; i < files->size(); ++i) {
    const auto& [path, bytes] = (*files)[i];
    identity.bytes += bytes;
    hash.add(std::string(folder ? name_below(spec.path, path) : name_of_file(path)) + '\0' + std::to_string(bytes) +
             '\0');
    if (i < kHashedFiles) {
      std::array<char, kHashedBytes> head{};
      std::ifstream in(path, std::ios::binary);
      in.read(head.data(), head.size());
      hash.add(std::string_view(head.data(), static_cast<std::size_t>(in.gcount())));
    }
  }
  identity.files = files->size();
  identity.hash = hash.hex();
  return identity;
}

std::string read_run_json(const std::filesystem::path& out) {
  const std::filesystem::path path = out / "run.json";
  std::ifstream in(path);
  if (!in) throw Error("cannot open run.json", out.string(), "name the OUT folder of a `switchyard route`");
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

RunLock::RunLock(const std::filesystem::path& out) {
  std::error_code error;
  std::filesystem::create_directories(out, error);
  if (error)
    throw Error("cannot create the folder: " + error.message(), out.string(), "choose an --out that can be written");
  const std::filesystem::path path = out / "run.lock";
  descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (descriptor_ < 0)
    throw Error(std::string("cannot create: ") + std::strerror(errno), path.string(),
                "choose an --out that can be written");
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    ::close(descriptor_);
    throw Error("another process is writing this run", out.string(), "wait for it, end it, or choose another --out");
  }
  // Any other failure means a file system without locks: then nothing can be kept out.
}

RunLock::~RunLock() { ::close(descriptor_); }

void claim_folder(const std::filesystem::path& out, const std::string& run_json) {
  if (std::filesystem::exists(out / "run.json")) {
    const json there = json::parse(read_run_json(out), nullptr, false);
    if (there.is_discarded() || !there.contains("identity"))
      throw Error("is not a run.json of switchyard", (out / "run.json").string(), "choose another --out");
    const std::vector<std::string> found = differences(there["identity"], json::parse(run_json)["identity"]);
    if (!found.empty()) {
      std::string list;
      for (const std::string& line : found) list += "\n  " + line;
      throw Error("holds a run with other options:" + list + "\n", out.string(),
                  "choose another --out, or repeat the command that began this run");
    }
  }
  write_whole(out / "run.json", run_json);
}

std::vector<SegmentEntry> open_run_folder(const std::filesystem::path& out, const std::string& run_json) {
  std::error_code error;
  std::filesystem::create_directories(out / "segments", error);
  if (!error) std::filesystem::create_directories(out / "log", error);
  if (error)
    throw Error("cannot create the folder: " + error.message(), out.string(), "choose an --out that can be written");
  claim_folder(out, run_json);
  repair_after_kill(out);
  return read_manifest(out);
}

}  // namespace switchyard
