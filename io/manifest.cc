#include "io/manifest.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <system_error>

#include "io/durable.h"
#include "parallel/error.h"

namespace switchyard {
namespace {

// Keeps the order of the caller's details.
using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

fs::path manifest_path(const fs::path& out) { return out / "manifest.jsonl"; }

std::string read_text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) throw Error("cannot read it", path.string(), "check its permissions");
  return std::move(text).str();
}

/// The part of the manifest that counts: up to its last newline.
std::string_view whole_lines(std::string_view text) { return text.substr(0, text.rfind('\n') + 1); }

void require_segment_name(const std::string& file, const std::string& where) {
  const fs::path path(file);
  if (path.parent_path() != "segments" || path.extension() != ".h5" || !path.stem().string().starts_with("segment-"))
    throw Error("\"" + file + "\" is no segments/segment-NNNNNN.h5", where);
}

bool is_leftover(const fs::path& file, const std::set<std::string>& committed) {
  if (file.extension() == ".part") return true;
  return file.parent_path().filename() == "segments" && file.filename().string().starts_with("segment-") &&
         file.extension() == ".h5" && !committed.contains("segments/" + file.filename().string());
}

void remove_leftovers(const fs::path& folder, const std::set<std::string>& committed) {
  if (!fs::is_directory(folder)) return;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (!entry.is_regular_file() || !is_leftover(entry.path(), committed)) continue;
    std::error_code error;
    if (!fs::remove(entry.path(), error))
      throw Error("cannot remove what a killed run left: " + error.message(), entry.path().string());
  }
}

}  // namespace

std::string segment_file(std::uint64_t number) {
  std::array<char, 64> name{};
  std::snprintf(name.data(), name.size(), "segments/segment-%06llu.h5", static_cast<unsigned long long>(number));
  return name.data();
}

std::string to_line(const SegmentEntry& entry) {
  const Json details = Json::parse(entry.details.empty() ? "{}" : entry.details, nullptr, false);
  if (!details.is_object()) throw Error("a segment's details are no JSON object: " + entry.details, entry.file);
  return Json{{"file", entry.file},
              {"bytes", entry.bytes},
              {"checksum", entry.checksum},
              {"tokens", entry.tokens},
              {"details", details}}
             .dump() +
         "\n";
}

SegmentEntry parse_line(std::string_view line, const std::string& where) {
  const Json json = Json::parse(line, nullptr, false);
  const auto has = [&](const char* key, bool (Json::*is)() const noexcept) {
    return json.contains(key) && (json[key].*is)();
  };
  if (!json.is_object() || !has("file", &Json::is_string) || !has("bytes", &Json::is_number_unsigned) ||
      !has("checksum", &Json::is_string) || !has("tokens", &Json::is_number_unsigned) ||
      !has("details", &Json::is_object)) {
    throw Error("malformed line: it needs file, bytes, checksum, tokens and details", where,
                "restore the manifest from a copy; segments that it does not name are removed when the run goes on");
  }
  SegmentEntry entry{json["file"].get<std::string>(), json["bytes"].get<std::uint64_t>(),
                     json["checksum"].get<std::string>(), json["tokens"].get<std::uint64_t>(), json["details"].dump()};
  require_segment_name(entry.file, where);
  return entry;
}

void append_entry(const fs::path& out, const SegmentEntry& entry) {
  append_durably(manifest_path(out), to_line(entry));
}

std::vector<SegmentEntry> read_manifest(const fs::path& out) {
  const fs::path path = manifest_path(out);
  std::vector<SegmentEntry> entries;
  if (!fs::exists(path)) return entries;
  const std::string text = read_text(path);
  std::set<std::string> seen;
  for (std::string_view rest = whole_lines(text); !rest.empty();) {
    const std::size_t end = rest.find('\n');
    const std::string where = path.string() + ", line " + std::to_string(entries.size() + 1);
    entries.push_back(parse_line(rest.substr(0, end), where));
    if (!seen.insert(entries.back().file).second) throw Error(entries.back().file + " is named twice", where);
    rest.remove_prefix(end + 1);
  }
  return entries;
}

void repair_after_kill(const fs::path& out) {
  std::set<std::string> committed;
  for (const SegmentEntry& entry : read_manifest(out)) committed.insert(entry.file);
  const fs::path path = manifest_path(out);
  if (fs::exists(path)) {
    const std::string text = read_text(path);
    if (const std::size_t whole = whole_lines(text).size(); whole < text.size()) {
      std::error_code error;
      fs::resize_file(path, whole, error);
      if (error) throw Error("cannot cut its torn last line off: " + error.message(), path.string());
      sync_to_disk(path);
    }
  }
  remove_leftovers(out, committed);
  remove_leftovers(out / "segments", committed);
}

std::string checksum_of(const fs::path& file) {
  constexpr std::size_t kBuffer = std::size_t{4} << 20U;
  std::ifstream stream(file, std::ios::binary);
  if (!stream) throw Error("cannot read it", file.string());
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(), XXH3_freeState);
  XXH3_64bits_reset(state.get());
  std::vector<char> buffer(kBuffer);
  while (stream) {
    stream.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
    XXH3_64bits_update(state.get(), buffer.data(), static_cast<std::size_t>(stream.gcount()));
  }
  if (stream.bad()) throw Error("cannot read it", file.string());
  std::array<char, 17> hex{};
  std::snprintf(hex.data(), hex.size(), "%016llx", static_cast<unsigned long long>(XXH3_64bits_digest(state.get())));
  return hex.data();
}

std::optional<std::string> segment_fault(const fs::path& out, const SegmentEntry& entry) {
  const fs::path file = out / entry.file;
  std::error_code error;
  const std::uint64_t bytes = fs::file_size(file, error);
  if (error) return "it cannot be read: " + error.message();
  if (bytes != entry.bytes)
    return "it has " + std::to_string(bytes) + " bytes, the manifest says " + std::to_string(entry.bytes);
  if (const std::string checksum = checksum_of(file); checksum != entry.checksum)
    return "its checksum is " + checksum + ", the manifest says " + entry.checksum;
  return std::nullopt;
}

}  // namespace switchyard
