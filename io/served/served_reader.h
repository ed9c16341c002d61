#pragma once

#include <cstdint>
#include <deque>
#include <exception>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/corpus/byte_stream.h"
#include "io/corpus/document_reader.h"
#include "io/served/served_line.h"

namespace switchyard {

/// Finds what `format` leaves open in the first line that tells it. Throws Error: a line before it is bad and bad ones
/// fail, or there is none.
ServedFormat detect_format(const std::vector<std::filesystem::path>& files, const ServedFormat& format,
                           BadDocument on_bad_line);

/// Streams lines of a serving engine's responses, JSON each, out of plain, .gz and .zst files in order. Reads a few at
/// once and parses them on all threads; holds no more than those. A bad line throws Error naming file, line, fault and
/// remedy, or is skipped and counted.
class ServedReader {
 public:
  ServedReader(std::vector<std::filesystem::path> files, ServedFormat format, BadDocument on_bad_line);

  /// The documents of the next good line, or nothing at the end. A document without an id is named FILE:LINE.
  std::optional<std::vector<ServedDocument>> next();
  /// Where the next line begins: `in_file` counts the file's lines before it, `ordinal` is not used.
  const CorpusCursor& cursor() const { return cursor_; }
  /// Goes on at a cursor taken from an equal reader.
  void seek(const CorpusCursor& cursor);

  /// Lines skipped since the last call, and up to 100 of their places with the fault.
  std::uint64_t take_skipped();
  std::vector<std::string> take_skipped_places();

 private:
  /// A line that was read, and what it says.
  struct Line {
    std::string content;
    std::string where;    // "FILE:LINE"
    CorpusCursor behind;  // where the next one begins
    std::vector<ServedDocument> documents;
    std::exception_ptr fault;
  };
  void read_ahead();
  bool open_file();
  void parse(Line& line) const;

  std::vector<std::filesystem::path> files_;
  ServedFormat format_;
  BadDocument on_bad_line_;
  CorpusCursor cursor_;                 // behind the lines given out
  CorpusCursor read_;                   // behind those read
  std::unique_ptr<ByteStream> stream_;  // of the file of read_, once it is open
  std::deque<Line> ahead_;
  std::uint64_t skipped_ = 0;
  std::vector<std::string> skipped_places_;
};

}  // namespace switchyard
