#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "io/corpus/format_reader.h"
#include "io/utf8.h"

namespace switchyard {
namespace {

using Json = nlohmann::json;

/// Takes the wanted values of the outermost object as the parser meets them; builds no tree.
class WantedValues {
 public:
  WantedValues(const std::vector<std::string>& names, const std::string& tokens_name, RawDocument& document)
      : names_(names), tokens_name_(tokens_name), document_(document) {}

  bool null() { return value(FieldValue::Kind::missing, "null"); }
  bool boolean(bool flag) { return value(FieldValue::Kind::scalar, flag ? "true" : "false"); }
  bool number_integer(Json::number_integer_t number) {
    return value(FieldValue::Kind::scalar, wanted() ? std::to_string(number) : std::string());
  }
  bool number_unsigned(Json::number_unsigned_t number) {
    if (in_tokens_ && depth_ == 2) return token(number);
    return value(FieldValue::Kind::scalar, wanted() ? std::to_string(number) : std::string());
  }
  bool number_float(Json::number_float_t /*number*/, const std::string& written) {
    return value(FieldValue::Kind::scalar, written);
  }
  bool string(std::string& text) { return value(FieldValue::Kind::text, wanted() ? std::move(text) : std::string()); }
  bool binary(Json::binary_t& /*bytes*/) { return true; }

  bool key(std::string& name) {
    if (depth_ != 1) return true;
    const auto found = std::find(names_.begin(), names_.end(), name);
    const bool asked = found != names_.end() && !name.empty();
    slot_ = !asked ? nullptr : &document_.values[static_cast<std::size_t>(found - names_.begin())];
    tokens_key_ = name == tokens_name_;
    return true;
  }
  bool start_object(std::size_t /*elements*/) { return open(false); }
  bool end_object() { return close(); }
  bool start_array(std::size_t /*elements*/) { return open(true); }
  bool end_array() { return close(); }

  bool parse_error(std::size_t position, const std::string& /*token*/, const Json::exception& /*error*/) {
    document_.fault = "not valid JSON at byte " + std::to_string(position) + " of the line";
    return false;
  }

 private:
  bool wanted() const { return depth_ == 1 && slot_ != nullptr; }

  bool value(FieldValue::Kind kind, std::string text) {
    if (in_tokens_) {
      bad_tokens();
    } else if (depth_ == 1) {
      if (slot_ != nullptr) *slot_ = {kind, kind == FieldValue::Kind::missing ? std::string() : std::move(text)};
      if (tokens_key_ && kind != FieldValue::Kind::missing) bad_tokens();
    }
    return true;
  }

  bool open(bool array) {
    if (depth_ == 0 && array) return not_an_object();
    if (wanted()) *slot_ = {FieldValue::Kind::composite, {}};
    if (in_tokens_) bad_tokens();
    if (depth_ == 1 && tokens_key_) {
      document_.tokens.clear();
      document_.tokens_fault.clear();
      document_.has_tokens = array;
      in_tokens_ = array;
      if (!array) bad_tokens();
    }
    ++depth_;
    return true;
  }

  bool close() {
    --depth_;
    if (depth_ == 1) in_tokens_ = false;
    return true;
  }

  bool token(Json::number_unsigned_t number) {
    if (number > std::numeric_limits<std::uint32_t>::max()) {
      bad_tokens();
    } else {
      document_.tokens.push_back(static_cast<std::uint32_t>(number));
    }
    return true;
  }

  void bad_tokens() {
    document_.tokens_fault = '"' + tokens_name_ + "\" is not an array of non-negative integers below 2^32";
  }

  bool not_an_object() {
    document_.fault = "not a JSON object";
    return false;
  }

  const std::vector<std::string>& names_;
  const std::string& tokens_name_;
  RawDocument& document_;
  std::size_t depth_ = 0;
  FieldValue* slot_ = nullptr;  // for the value of the last key of the outermost object
  bool tokens_key_ = false;
  bool in_tokens_ = false;
};

class JsonlReader final : public FormatReader {
 public:
  explicit JsonlReader(FormatRequest request) : request_(std::move(request)) {}

  bool next(ByteStream& stream, RawDocument& document) override {
    ByteStream::Line line;
    std::uint64_t begin = 0;
    do {
      document.newlines_before = stream.newlines();
      begin = stream.offset();
      line = stream.read_line(request_.max_record_bytes);
      if (!line.found) return false;
    } while (line.bytes.size() == line.length && line.bytes.find_first_not_of(" \t\r") == std::string_view::npos);
    if (line.length > request_.max_record_bytes) {
      document.fault = "a line of " + std::to_string(line.length) + " bytes from byte " + std::to_string(begin) +
                       " on, more than the " + std::to_string(request_.max_record_bytes) + " allowed";
      return true;
    }
    parse_json_line(line.bytes, request_.names, request_.spec.tokens_field, document);
    if (document.fault.empty()) cut_text(document);
    return true;
  }

 private:
  void cut_text(RawDocument& document) const {
    std::string& text = document.values.front().text;
    if (text.size() <= request_.max_text_bytes) return;
    text.resize(utf8_floor(text, static_cast<std::size_t>(request_.max_text_bytes)));
    document.truncated = true;
  }

  FormatRequest request_;
};

}  // namespace

void parse_json_line(std::string_view line, const std::vector<std::string>& names, const std::string& tokens_name,
                     RawDocument& document) {
  document.values.assign(names.size(), {});
  const std::size_t first = line.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos || line[first] != '{') {
    document.fault = "not a JSON object";
    return;
  }
  WantedValues values(names, tokens_name, document);
  Json::sax_parse(line.begin(), line.end(), &values);
}

std::unique_ptr<FormatReader> make_jsonl_reader(const FormatRequest& request) {
  return std::make_unique<JsonlReader>(request);
}

}  // namespace switchyard
