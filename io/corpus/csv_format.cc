#include <algorithm>
#include <charconv>
#include <limits>
#include <optional>
#include <utility>

#include "io/corpus/format_reader.h"
#include "io/utf8.h"
#include "parallel/error.h"

namespace switchyard {

// Bounds what a record full of delimiters costs.
constexpr std::size_t kMaxFields = 1U << 16U;

std::string_view CsvRecord::field(std::size_t index) const {
  const std::size_t begin = index == 0 ? 0 : ends_[index - 1];
  return std::string_view(bytes_).substr(begin, ends_[index] - begin);
}

bool CsvRecord::read(ByteStream& stream, char delimiter, std::uint64_t limit) {
  do {
    bytes_.clear();
    ends_.clear();
    fault_.clear();
    quoted_ = false;
    newlines_before_ = stream.newlines();
    const std::uint64_t begin = stream.offset();
    State state = State::field_start;
    bool ended = false;
    for (std::string_view at_hand = stream.buffered(); !ended && !at_hand.empty(); at_hand = stream.buffered()) {
      std::size_t used = 0;
      while (used < at_hand.size() && !ended) {
        const std::string_view plain = plain_run(at_hand.substr(used), state, delimiter);
        bytes_ += plain;
        used += plain.size();
        if (used == at_hand.size()) break;
        const char byte = at_hand[used++];
        ended = byte == '\n' && state != State::quoted;
        if (!ended) state = step(state, byte, delimiter);
      }
      stream.consume(used);
      if (stream.offset() - begin > limit) {
        fault_ = "a record of more than the " + std::to_string(limit) + " bytes allowed";
        bytes_.clear();
        ends_.clear();
      }
    }
    if (stream.offset() == begin) return false;
    if (!ended && state == State::quoted && fault_.empty()) fault_ = "a quoted field is not closed";
    end_record(state);
  } while (is_empty_line());
  return true;
}

/// The bytes at the beginning of `bytes` that belong to the field as they are.
std::string_view CsvRecord::plain_run(std::string_view bytes, State state, char delimiter) {
  if (state == State::quoted) return bytes.substr(0, bytes.find('"'));
  if (state != State::unquoted) return {};
  const auto special = [delimiter](char byte) { return byte == delimiter || byte == '\n' || byte == '"'; };
  const auto* const end = std::find_if(bytes.begin(), bytes.end(), special);
  return bytes.substr(0, static_cast<std::size_t>(end - bytes.begin()));
}

CsvRecord::State CsvRecord::step(State state, char byte, char delimiter) {
  switch (state) {
    case State::field_start:
      if (byte == '"') {
        quoted_ = true;
        return State::quoted;
      }
      [[fallthrough]];
    case State::unquoted:
      if (byte == delimiter) {
        end_field();
        return State::field_start;
      }
      if (byte == '"' && fault_.empty()) fault_ = "a quote inside a field that does not begin with one";
      bytes_ += byte;
      return State::unquoted;
    case State::quoted:
      if (byte == '"') return State::quote_in_quoted;
      bytes_ += byte;
      return State::quoted;
    case State::quote_in_quoted:
      if (byte == '"') {
        bytes_ += byte;
        return State::quoted;
      }
      if (byte == delimiter) {
        end_field();
        return State::field_start;
      }
      if (byte == '\r') return State::return_after_quoted;
      break;
    case State::return_after_quoted:
      break;
  }
  if (fault_.empty()) fault_ = "text after the closing quote of a field";
  return State::unquoted;
}

void CsvRecord::end_field() {
  if (ends_.size() < kMaxFields) {
    ends_.push_back(bytes_.size());
  } else if (fault_.empty()) {
    fault_ = "a record of more than " + std::to_string(kMaxFields) + " fields";
  }
}

void CsvRecord::end_record(State state) {
  const std::size_t begin = ends_.empty() ? 0 : ends_.back();
  if (state == State::unquoted && bytes_.size() > begin && bytes_.back() == '\r') bytes_.pop_back();
  end_field();
}

namespace {

constexpr std::size_t kNoColumn = std::numeric_limits<std::size_t>::max();

/// The beginnings of the first columns' names: enough to recognize a header, or that there is none.
std::string list_columns(const std::vector<std::string>& header) {
  constexpr std::size_t kColumns = 20;
  constexpr std::size_t kBytes = 40;
  std::string list;
  for (std::size_t i = 0; i < std::min(header.size(), kColumns); ++i) {
    std::string name = header[i].substr(0, utf8_floor(header[i], kBytes));
    std::replace_if(
        name.begin(), name.end(), [](char byte) { return byte == '\n' || byte == '\r'; }, ' ');
    list += (i == 0 ? "\"" : ", \"") + name + (name.size() < header[i].size() ? "...\"" : "\"");
  }
  return header.size() > kColumns ? list + ", ..." : list;
}

class CsvReader final : public FormatReader {
 public:
  CsvReader(FormatRequest request, char delimiter) : request_(std::move(request)), delimiter_(delimiter) {
    if (!request_.spec.header) find_columns({});
  }

  void begin_file(ByteStream& stream) override {
    if (!request_.spec.header) return;
    if (!record_.read(stream, delimiter_, request_.max_record_bytes)) return;
    if (!record_.fault().empty()) throw Error("the header: " + record_.fault(), stream.name() + ":1");
    std::vector<std::string> header;
    for (std::size_t i = 0; i < record_.size(); ++i) header.emplace_back(record_.field(i));
    where_ = stream.name();
    find_columns(header);
    header_size_ = header.size();
  }

  bool next(ByteStream& stream, RawDocument& document) override {
    if (!record_.read(stream, delimiter_, request_.max_record_bytes)) return false;
    document.newlines_before = record_.newlines_before();
    document.fault = record_.fault();
    if (document.fault.empty() && header_size_ && record_.size() != *header_size_) {
      document.fault = std::to_string(record_.size()) + " fields where the header has " + std::to_string(*header_size_);
    }
    document.values.assign(request_.names.size(), {});
    if (document.fault.empty()) take_fields(document);
    return true;
  }

 private:
  void take_fields(RawDocument& document) const {
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      if (columns_[i] >= record_.size()) continue;
      std::string_view value = record_.field(columns_[i]);
      if (i == 0 && value.size() > request_.max_text_bytes) {
        value = value.substr(0, utf8_floor(value, static_cast<std::size_t>(request_.max_text_bytes)));
        document.truncated = true;
      }
      document.values[i] = {FieldValue::Kind::text, std::string(value)};
    }
  }

  void find_columns(const std::vector<std::string>& header) {
    columns_.clear();
    for (const std::string& name : request_.names)
      columns_.push_back(name.empty() ? kNoColumn : find_column(name, header));
  }

  std::size_t find_column(const std::string& name, const std::vector<std::string>& header) const {
    const auto found = std::find(header.begin(), header.end(), name);
    if (found != header.end()) {
      if (std::find(found + 1, header.end(), name) != header.end()) {
        throw Error("column \"" + name + "\" is there twice", where_, "give its number");
      }
      return static_cast<std::size_t>(found - header.begin());
    }
    std::size_t number = 0;
    const auto [end, status] = std::from_chars(name.data(), name.data() + name.size(), number);
    const bool is_number = status == std::errc() && end == name.data() + name.size() && number > 0;
    if (is_number && (header.empty() || number <= header.size())) return number - 1;
    if (header.empty()) {
      throw UsageError("with header=no a column is given by number, not as \"" + name + '"',
                       "--corpus " + request_.spec.name, "for example field=2");
    }
    throw Error("no column \"" + name + "\" in the header", where_,
                "its columns are " + list_columns(header) + "; a file without a header takes header=no");
  }

  FormatRequest request_;
  char delimiter_;
  std::string where_;
  std::vector<std::size_t> columns_;  // of each name asked for
  std::optional<std::size_t> header_size_;
  CsvRecord record_;
};

}  // namespace

std::unique_ptr<FormatReader> make_csv_reader(const FormatRequest& request, char delimiter) {
  return std::make_unique<CsvReader>(request, delimiter);
}

}  // namespace switchyard
