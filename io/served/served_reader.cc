#include "io/served/served_reader.h"

#include <utility>

#include "parallel/error.h"

namespace switchyard {
namespace {

constexpr std::uint64_t kMostLineBytes = 1ULL << 30U;
constexpr std::size_t kPlacesKept = 100;
constexpr std::size_t kLinesAhead = 64;
constexpr std::uint64_t kBytesAhead = 32ULL << 20U;

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
  read_ = cursor;
  stream_.reset();
  ahead_.clear();
}

bool ServedReader::open_file() {
  if (read_.file >= files_.size()) return false;
  const std::filesystem::path& file = files_[static_cast<std::size_t>(read_.file)];
  stream_ = std::make_unique<ByteStream>(open_source(file), file.string());
  stream_->skip_to(read_.offset, read_.in_file);
  return true;
}

void ServedReader::read_ahead() {
  std::uint64_t bytes = 0;
  while (ahead_.size() < kLinesAhead && bytes < kBytesAhead && (stream_ || open_file())) {
    const ByteStream::Line line = stream_->read_line(kMostLineBytes);
    if (!line.found) {
      read_ = {read_.file + 1, 0, 0, 0, 0};
      stream_.reset();
      continue;
    }
    ++read_.in_file;
    read_.offset = stream_->offset();
    Line read;
    read.where = place_of(*stream_, read_.in_file);
    read.behind = read_;
    try {
      const auto content = content_of(line);
      if (!content) continue;
      read.content = *content;
    } catch (const LineFault&) {
      read.fault = std::current_exception();
    }
    bytes += read.content.size();
    ahead_.push_back(std::move(read));
  }
#pragma omp parallel for schedule(dynamic, 1)
  for (std::size_t i = 0; i < ahead_.size(); ++i) parse(ahead_[i]);
}

/// Nothing may be thrown out of a thread's work: the fault waits in the line.
void ServedReader::parse(Line& line) const {
  if (line.fault) return;
  try {
    line.documents = parse_served_line(line.content, format_);
    const std::string name = std::filesystem::path(line.where).filename().string();
    for (std::size_t i = 0; i < line.documents.size(); ++i) {
      std::string& id = line.documents[i].id;
      if (id.empty()) id = i == 0 ? name : name + '#' + std::to_string(i);
    }
  } catch (...) {
    line.fault = std::current_exception();
  }
  line.content = {};
}

std::optional<std::vector<ServedDocument>> ServedReader::next() {
  while (true) {
    if (ahead_.empty()) read_ahead();
    if (ahead_.empty()) {
      cursor_ = read_;
      return std::nullopt;
    }
    Line line = std::move(ahead_.front());
    ahead_.pop_front();
    cursor_ = line.behind;
    if (!line.fault) return std::move(line.documents);
    try {
      std::rethrow_exception(line.fault);
    } catch (const LineFault& fault) {
      if (on_bad_line_ == BadDocument::fail) fail(fault, line.where);
      ++skipped_;
      if (skipped_places_.size() < kPlacesKept) skipped_places_.push_back(line.where + ": " + fault.what());
    }
  }
}

std::uint64_t ServedReader::take_skipped() { return std::exchange(skipped_, 0); }

std::vector<std::string> ServedReader::take_skipped_places() { return std::exchange(skipped_places_, {}); }

}  // namespace switchyard
