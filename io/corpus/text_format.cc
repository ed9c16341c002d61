#include <utility>

#include "io/corpus/format_reader.h"
#include "io/utf8.h"

namespace switchyard {
namespace {

constexpr std::uint64_t kCharacterBytes = 4;  // read past a limit, to see where the character at it begins

bool is_blank(std::string_view line) { return line.find_first_not_of(" \t\r\f\v") == std::string_view::npos; }

void drop_carriage_return(ByteStream::Line& line) {
  if (line.bytes.size() == line.length && line.bytes.ends_with('\r')) {
    line.bytes.remove_suffix(1);
    --line.length;
  }
}

class TextReader : public FormatReader {
 public:
  explicit TextReader(const FormatRequest& request)
      : names_(request.names.size()), limit_(request.max_text_bytes), keep_(limit_ + kCharacterBytes) {}

 protected:
  /// `kept` is the beginning of a text of `length` bytes, at least keep() of them.
  void deliver(std::string kept, std::uint64_t length, RawDocument& document) const {
    document.values.assign(names_, {});
    document.truncated = length > limit_;
    if (document.truncated) kept.resize(utf8_floor(kept, static_cast<std::size_t>(limit_)));
    document.values.front() = {FieldValue::Kind::text, std::move(kept)};
  }
  std::uint64_t keep() const { return keep_; }

 private:
  std::size_t names_;
  std::uint64_t limit_;
  std::uint64_t keep_;
};

class WholeFileReader final : public TextReader {
 public:
  using TextReader::TextReader;

  bool next(ByteStream& stream, RawDocument& document) override {
    document.newlines_before = stream.newlines();
    std::string text;
    for (std::string_view bytes = stream.buffered(); !bytes.empty() && text.size() < keep();
         bytes = stream.buffered()) {
      const std::string_view part = bytes.substr(0, static_cast<std::size_t>(keep() - text.size()));
      text += part;
      stream.consume(part.size());
    }
    if (text.empty()) return false;
    stream.skip_to_end();
    const std::uint64_t length = text.size();
    deliver(std::move(text), length, document);
    return true;
  }
};

class LineReader final : public TextReader {
 public:
  using TextReader::TextReader;

  bool next(ByteStream& stream, RawDocument& document) override {
    ByteStream::Line line;
    do {
      document.newlines_before = stream.newlines();
      line = stream.read_line(keep());
      if (!line.found) return false;
      drop_carriage_return(line);
    } while (line.bytes.size() == line.length && is_blank(line.bytes));
    deliver(std::string(line.bytes), line.length, document);
    return true;
  }
};

class ParagraphReader final : public TextReader {
 public:
  using TextReader::TextReader;

  bool next(ByteStream& stream, RawDocument& document) override {
    std::string text;
    std::uint64_t length = 0;
    for (;;) {
      const std::uint64_t newlines = stream.newlines();
      ByteStream::Line line = stream.read_line(keep());
      if (!line.found) break;
      drop_carriage_return(line);
      if (line.bytes.size() == line.length && is_blank(line.bytes)) {
        if (length == 0) continue;
        break;
      }
      if (length == 0) document.newlines_before = newlines;
      if (length != 0) append("\n", 1, text, length);
      append(line.bytes, line.length, text, length);
    }
    if (length == 0) return false;
    deliver(std::move(text), length, document);
    return true;
  }

 private:
  void append(std::string_view bytes, std::uint64_t whole, std::string& text, std::uint64_t& length) const {
    text += bytes.substr(0, static_cast<std::size_t>(keep() - text.size()));
    length += whole;
  }
};

}  // namespace

std::unique_ptr<FormatReader> make_text_reader(const FormatRequest& request) {
  switch (request.spec.split) {
    case TextSplit::line:
      return std::make_unique<LineReader>(request);
    case TextSplit::blank_line:
      return std::make_unique<ParagraphReader>(request);
    case TextSplit::file:
      break;
  }
  return std::make_unique<WholeFileReader>(request);
}

}  // namespace switchyard
