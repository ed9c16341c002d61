#pragma once

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "io/corpus/format_reader.h"

/// What the parsers of foreign bytes must hold for every input. Called by the fuzzers and, with mutated inputs, by the
/// tests. A broken property aborts.
namespace switchyard::fuzzing {

inline void require(bool holds) {
  if (!holds) std::abort();
}

/// A line is a good document exactly if the library parses it as an object, and then the text is the same.
inline void check_json_line(std::string_view line) {
  RawDocument document;
  parse_json_line(line, {"text", "id"}, "tokens", document);
  const auto tree = nlohmann::json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
  require(document.fault.empty() == tree.is_object());
  if (!tree.is_object()) return;
  const auto text = tree.find("text");
  const bool is_text = text != tree.end() && text->is_string();
  require((document.values[0].kind == FieldValue::Kind::text) == is_text);
  if (is_text) require(document.values[0].text == text->get<std::string>());
  const auto tokens = tree.find("tokens");
  if (tokens != tree.end() && document.has_tokens && document.tokens_fault.empty()) {
    require(document.tokens == tokens->get<std::vector<std::uint32_t>>());
  }
}

inline std::vector<std::vector<std::string>> good_csv_records(std::string bytes, std::size_t buffer_bytes,
                                                              std::size_t* bad = nullptr) {
  const std::uint64_t size = bytes.size();
  ByteStream stream(memory_source(std::move(bytes)), "memory", buffer_bytes);
  std::vector<std::vector<std::string>> records;
  CsvRecord record;
  while (record.read(stream, ',', std::uint64_t{1} << 20U)) {
    if (!record.fault().empty()) {
      if (bad != nullptr) ++*bad;
      continue;
    }
    records.emplace_back();
    for (std::size_t i = 0; i < record.size(); ++i) records.back().emplace_back(record.field(i));
  }
  require(stream.offset() == size);
  return records;
}

/// Good records, written with every field in quotes, read back as they were; the size of the read buffer does not
/// matter.
inline void check_csv(std::string_view bytes) {
  const auto records = good_csv_records(std::string(bytes), 1024);
  require(good_csv_records(std::string(bytes), 3) == records);
  std::string written;
  for (const auto& record : records) {
    for (std::size_t i = 0; i < record.size(); ++i) {
      written += i == 0 ? "\"" : ",\"";
      for (const char byte : record[i]) written.append(byte == '"' ? 2 : 1, byte);
      written += '"';
    }
    written += "\r\n";
  }
  std::size_t bad = 0;
  require(good_csv_records(written, 1024, &bad) == records);
  require(bad == 0);
}

}  // namespace switchyard::fuzzing
