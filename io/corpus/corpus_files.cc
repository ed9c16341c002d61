#include "io/corpus/corpus_files.h"

#include <glob.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "parallel/error.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

std::optional<struct stat> status_of(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) return std::nullopt;
  return status;
}

/// All regular files below a folder but hidden ones; links to files are followed, links to folders are not.
void list_below(const std::string& folder, std::vector<CorpusFile>& files) {
  std::error_code error;
  fs::recursive_directory_iterator entry(folder, error);
  for (; !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    const bool hidden = entry->path().filename().native().starts_with('.');
    std::error_code ignored;  // what is gone is no folder
    const bool is_folder = entry->symlink_status(ignored).type() == fs::file_type::directory;
    if (hidden && is_folder) entry.disable_recursion_pending();
    if (hidden || is_folder) continue;
    const std::optional<struct stat> status = status_of(entry->path().native());  // none of a dangling link
    if (status && S_ISREG(status->st_mode))
      files.push_back({entry->path().native(), static_cast<std::uint64_t>(status->st_size)});
  }
  if (error) throw Error("the folder cannot be listed: " + error.message(), folder);
}

/// A file, or all files below a folder.
void list_path(const std::string& path, std::vector<CorpusFile>& files) {
  const std::optional<struct stat> status = status_of(path);
  if (!status) throw Error(std::string("cannot be read: ") + std::strerror(errno), path);
  if (S_ISDIR(status->st_mode)) return list_below(path, files);
  if (!S_ISREG(status->st_mode))
    throw Error("not a regular file", path, "a corpus is read more than once; write pipes to a file first");
  files.push_back({path, static_cast<std::uint64_t>(status->st_size)});
}

std::vector<std::string> match_glob(const std::string& pattern) {
  glob_t matches{};
  const int status = ::glob(pattern.c_str(), GLOB_NOSORT, nullptr, &matches);
  std::vector<std::string> paths;
  if (status == 0) paths.assign(matches.gl_pathv, matches.gl_pathv + matches.gl_pathc);
  ::globfree(&matches);
  return paths;
}

}  // namespace

CorpusFiles list_files(const CorpusSpec& spec) {
  std::vector<CorpusFile> files;
  const bool exists = status_of(spec.path).has_value();
  if (exists) {
    list_path(spec.path, files);
  } else {
    for (const std::string& path : match_glob(spec.path)) list_path(path, files);
  }
  if (files.empty()) {
    const bool stray_key = spec.path.find(',') != std::string::npos;
    throw Error(
        exists ? "the folder has no files" : "no such file, folder or glob", "--corpus " + spec.name + '=' + spec.path,
        stray_key ? "what follows a comma is taken for the path unless it is a known key: format, field, tokens, id, "
                    "category, only, split, header"
                  : "give a file, a folder or a pattern such as 'data/*.jsonl.zst'");
  }
  std::sort(files.begin(), files.end(), [](const CorpusFile& a, const CorpusFile& b) { return a.path < b.path; });
  for (const CorpusFile& file : files) {
    if (::access(file.path.c_str(), R_OK) != 0)
      throw Error(std::string("cannot be read: ") + std::strerror(errno), file.path);
  }
  files.shrink_to_fit();
  return std::make_shared<const std::vector<CorpusFile>>(std::move(files));
}

}  // namespace switchyard
