#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard {

/// Bytes in order, decompressed.
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  /// Fills `into` as far as there are bytes; 0 only at the end. Throws Error on a failed read or corrupt compressed
  /// data.
  virtual std::size_t read(std::span<char> into) = 0;
  /// Goes on at an offset and says true; false when only reading can get there. Throws Error past the end.
  virtual bool seek(std::uint64_t /*offset*/) { return false; }
  /// Bytes in all; nothing when only reading can tell.
  virtual std::optional<std::uint64_t> size() const { return std::nullopt; }
};

/// Thrown in the middle of reading when it has been called off.
class ReadingCalledOff : public std::exception {};

/// A plain file, or a .gz or .zst one by its name. Throws Error when it cannot be opened.
std::unique_ptr<ByteSource> open_source(const std::filesystem::path& file);
/// Bytes in memory.
std::unique_ptr<ByteSource> memory_source(std::string bytes);

/// A buffered source that knows its place. A byte-order mark at the very beginning is passed over.
class ByteStream {
 public:
  static constexpr std::size_t kBufferBytes = std::size_t{1} << 20U;

  /// `name` stands for the file in errors. `buffer_bytes` are read at a time, 3 or more. called_off: asked before each
  /// read, by whatever thread reads.
  ByteStream(std::unique_ptr<ByteSource> source, std::string name, std::size_t buffer_bytes = kBufferBytes,
             std::function<bool()> called_off = {});

  /// Some bytes from here on, at least one unless the end is reached. Valid until the next call of this object. Throws
  /// ReadingCalledOff.
  std::string_view buffered();
  /// Passes over `count` bytes of buffered().
  void consume(std::size_t count);

  struct Line {
    std::string_view bytes;    // without the line feed; at most `limit` of them. Valid until the next call
    std::uint64_t length = 0;  // of the whole line without the line feed
    bool found = false;        // false at the end of the stream
  };
  /// The next line; what is longer than `limit` is passed over without being kept.
  Line read_line(std::uint64_t limit);

  /// Goes forward to an offset that this many line feeds stand before. A plain file is not read up to there, compressed
  /// data is. Throws Error when the stream ends before it.
  void skip_to(std::uint64_t offset, std::uint64_t newlines);
  /// Goes to the end; compressed data is still checked.
  void skip_to_end();

  /// Bytes before this place.
  std::uint64_t offset() const { return offset_; }
  /// Line feeds before this place, until skip_to_end.
  std::uint64_t newlines() const { return newlines_; }
  const std::string& name() const { return name_; }

 private:
  void pass_byte_order_mark();

  std::unique_ptr<ByteSource> source_;
  std::string name_;
  std::vector<char> buffer_;
  std::size_t begin_ = 0;  // of the unread part of buffer_
  std::size_t end_ = 0;
  std::uint64_t offset_ = 0;
  std::uint64_t newlines_ = 0;
  std::string line_;  // a line that did not fit into the buffer
  std::function<bool()> called_off_;
};

}  // namespace switchyard
