#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/corpus/byte_stream.h"
#include "io/corpus/corpus_spec.h"

namespace switchyard {

/// The value of a named field of one document: a JSON key, a column, or the text of a text file.
struct FieldValue {
  enum class Kind {
    missing,  // or null
    text,
    scalar,    // a number, true or false in JSON; `text` as written
    composite  // an array or object in JSON
  };
  Kind kind = Kind::missing;
  std::string text;
};

/// What a format reader finds of one document.
struct RawDocument {
  std::vector<FieldValue> values;     // one per name asked for
  std::vector<std::uint32_t> tokens;  // ready ids (JSON)
  bool has_tokens = false;
  std::string tokens_fault;           // why the ready ids cannot be used; a fault only if they are needed
  bool truncated = false;             // the text was longer than the limit
  std::string fault;                  // what is wrong with it; empty when good
  std::uint64_t newlines_before = 0;  // ByteStream::newlines() where it begins
};

/// What is asked of each document.
struct FormatRequest {
  CorpusSpec spec;
  std::vector<std::string> names;  // the first one is the text; empty where no text is asked for
  std::uint64_t max_text_bytes = 0;
  std::uint64_t max_record_bytes = 0;  // of a JSON line or CSV record
};

/// Finds the documents of one file. Keeps nothing between documents but what begin_file read, so that it goes on at any
/// document.
class FormatReader {
 public:
  virtual ~FormatReader() = default;
  /// Reads what stands before the documents (a header line). The stream is at its beginning. Throws Error.
  virtual void begin_file(ByteStream& /*stream*/) {}
  /// The next document, good or bad; false at the end of the file.
  virtual bool next(ByteStream& stream, RawDocument& document) = 0;
};

std::unique_ptr<FormatReader> make_text_reader(const FormatRequest& request);
std::unique_ptr<FormatReader> make_jsonl_reader(const FormatRequest& request);
std::unique_ptr<FormatReader> make_csv_reader(const FormatRequest& request, char delimiter);

/// The format of a file of the corpus: as given, or by the file's name.
CorpusFormat format_of_file(const CorpusSpec& spec, const std::string& file_name);

/// One line of JSONL. Finds `names` and ready ids; any bytes are valid input, with document.fault set where they are no
/// JSON object.
void parse_json_line(std::string_view line, const std::vector<std::string>& names, const std::string& tokens_name,
                     RawDocument& document);

/// One CSV record (RFC 4180), reused from record to record.
class CsvRecord {
 public:
  /// Reads the next record; empty lines are none. False at the end. Sets fault() for a record against the rules, or one
  /// longer than `limit` bytes, which is then passed over.
  bool read(ByteStream& stream, char delimiter, std::uint64_t limit);
  std::size_t size() const { return ends_.size(); }
  std::string_view field(std::size_t index) const;
  const std::string& fault() const { return fault_; }
  /// ByteStream::newlines() where the record begins.
  std::uint64_t newlines_before() const { return newlines_before_; }

 private:
  enum class State { field_start, unquoted, quoted, quote_in_quoted, return_after_quoted };
  static std::string_view plain_run(std::string_view bytes, State state, char delimiter);
  State step(State state, char byte, char delimiter);
  void end_field();
  void end_record(State state);
  bool is_empty_line() const { return ends_.size() == 1 && bytes_.empty() && !quoted_ && fault_.empty(); }

  std::string bytes_;              // the fields, unquoted, back to back
  std::vector<std::size_t> ends_;  // of each field in bytes_
  std::string fault_;
  bool quoted_ = false;  // some field had quotes
  std::uint64_t newlines_before_ = 0;
};

}  // namespace switchyard
