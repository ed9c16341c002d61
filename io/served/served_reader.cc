#include "io/served/served_reader.h"

#include <utility>

#include "parallel/error.h"

namespace switchyard {
namespace {

constexpr std::uint64_t kMostLineBytes = 1ULL << 30U;
constexpr std::size_t kPlacesKept = 100;

[[noreturn]] void fail(const LineFault& fault, const std::string& where) {
  throw Error(fault.what(), where, fault.remedy.empty() ? "fix the line or pass --on-bad-line skip" : fault.remedy);
}

std::string place_of(const ByteStream& stream, std::uint64_t line) {
  return stream.name() + ':' + std::to_string(line);
}

/// The line's bytes; nothing when it is blank. Throws LineFault when it is too long.
std::optional<std::string_view> content_of(const ByteStream::Line& line) {
  if (line.length > kMostLineBytes)
    throw LineFault("a line of " + std::to_string(line.length) + " bytes, more than the " +
                    std::to_string(kMostLineBytes) + " allowed");
  if (line.bytes.find_first_not_of(" \t\r") == std::string_view::npos) return std::nullopt;
  return line.bytes;
}

}  // namespace

ServedFormat detect_format(const std::vector<std::filesystem::path>& files, const ServedFormat& format,
                           BadDocument on_bad_line) {
  for (const std::filesystem::path& file : files) {
    ByteStream stream(open_source(file), file.string());
    for (std::uint64_t number = 1;; ++number) {
      const ByteStream::Line line = stream.read_line(kMostLineBytes);
      if (!line.found) break;
      try {
        const auto content = content_of(line);
        if (!content) continue;
        ServedFormat found = detect_format(*content, format);
        if (found.layers > 0 && found.top_k > 0) return found;  // else a request without a routed token
      } catch (const LineFault& fault) {
        if (on_bad_line == BadDocument::fail) fail(fault, place_of(stream, number));
      }
    }
  }
  throw Error("no line holds the routing of a token", files.front().string(),
              "let the engine return routed experts, and name their place with --routing-field");
}

ServedReader::ServedReader(std::vector<std::filesystem::path> files, ServedFormat format, BadDocument on_bad_line)
    : files_(std::move(files)), format_(std::move(format)), on_bad_line_(on_bad_line) {}

void ServedReader::seek(const CorpusCursor& cursor) {
  cursor_ = cursor;
  stream_.reset();
}

std::optional<std::vector<ServedDocument>> ServedReader::next() {
  while (cursor_.file < files_.size()) {
    const std::filesystem::path& file = files_[static_cast<std::size_t>(cursor_.file)];
    if (!stream_) {
      stream_ = std::make_unique<ByteStream>(open_source(file), file.string());
      stream_->skip_to(cursor_.offset);
    }
    const ByteStream::Line line = stream_->read_line(kMostLineBytes);
    if (!line.found) {
      cursor_ = {cursor_.file + 1, 0, 0, 0};
      stream_.reset();
      continue;
    }
    const std::uint64_t number = ++cursor_.in_file;
    cursor_.offset = stream_->offset();
    try {
      const auto content = content_of(line);
      if (!content) continue;
      std::vector<ServedDocument> documents = parse_served_line(*content, format_);
      for (std::size_t i = 0; i < documents.size(); ++i) {
        if (!documents[i].id.empty()) continue;
        documents[i].id = file.filename().string() + ':' + std::to_string(number);
        if (i > 0) documents[i].id += '#' + std::to_string(i);
      }
      return documents;
    } catch (const LineFault& fault) {
      const std::string where = place_of(*stream_, number);
      if (on_bad_line_ == BadDocument::fail) fail(fault, where);
      ++skipped_;
      if (skipped_places_.size() < kPlacesKept) skipped_places_.push_back(where + ": " + fault.what());
    }
  }
  return std::nullopt;
}

std::uint64_t ServedReader::take_skipped() { return std::exchange(skipped_, 0); }

std::vector<std::string> ServedReader::take_skipped_places() { return std::exchange(skipped_places_, {}); }

}  // namespace switchyard
