#include "io/corpus/corpus_spec.h"

#include <array>
#include <filesystem>
#include <set>
#include <utility>

#include "io/corpus/format_reader.h"
#include "parallel/error.h"

namespace switchyard {
namespace {

constexpr std::array<std::string_view, 8> kKeys{"format",   "field", "tokens", "id",
                                                "category", "only",  "split",  "header"};
constexpr std::string_view kExample = "write NAME=PATH[,key=value ...], for example wiki=data/wiki.jsonl,field=text";

[[noreturn]] void fail(std::string_view text, const std::string& what,
                       const std::string& remedy = std::string(kExample)) {
  throw UsageError(what, "--corpus " + std::string(text), remedy);
}

/// Where the first ",key=" of a known key begins at or after `from`.
std::size_t find_key(std::string_view text, std::size_t from) {
  for (std::size_t comma = text.find(',', from); comma != std::string_view::npos; comma = text.find(',', comma + 1)) {
    const std::string_view rest = text.substr(comma + 1);
    for (const std::string_view key : kKeys) {
      if (rest.starts_with(key) && rest.substr(key.size()).starts_with('=')) return comma;
    }
  }
  return std::string_view::npos;
}

bool is_number(std::string_view text) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos && text.front() != '0';
}

void check_name(std::string_view text, std::string_view name) {
  constexpr std::string_view allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.";
  if (name.empty()) fail(text, "no name before the equals sign");
  if (name.find_first_not_of(allowed) != std::string_view::npos || name.front() == '.' || name.front() == '-') {
    fail(text, "the name \"" + std::string(name) + "\" cannot be used",
         "a corpus is named by letters, digits, '_', '-' and '.', and begins with none of the last two");
  }
}

template <typename Value, std::size_t kCount>
Value choose(std::string_view text, std::string_view key, std::string_view value,
             const std::array<std::pair<std::string_view, Value>, kCount>& choices) {
  std::string names;
  for (const auto& [name, choice] : choices) {
    if (name == value) return choice;
    names += (names.empty() ? "" : ", ") + std::string(name);
  }
  fail(text, std::string(key) + '=' + std::string(value) + " is none of the choices",
       std::string(key) + "= takes " + names);
}

constexpr std::array<std::pair<std::string_view, CorpusFormat>, 4> kFormats{{{"text", CorpusFormat::text},
                                                                             {"jsonl", CorpusFormat::jsonl},
                                                                             {"csv", CorpusFormat::csv},
                                                                             {"tsv", CorpusFormat::tsv}}};
constexpr std::array<std::pair<std::string_view, TextSplit>, 3> kSplits{
    {{"file", TextSplit::file}, {"line", TextSplit::line}, {"blank", TextSplit::blank_line}}};
constexpr std::array<std::pair<std::string_view, bool>, 2> kYesNo{{{"yes", true}, {"no", false}}};

void set(CorpusSpec& spec, std::string_view text, std::string_view key, std::string_view value) {
  if (value.empty()) fail(text, std::string(key) + "= has no value");
  if (key == "format") {
    spec.format = choose(text, key, value, kFormats);
    spec.format_given = true;
  } else if (key == "split") {
    spec.split = choose(text, key, value, kSplits);
  } else if (key == "header") {
    spec.header = choose(text, key, value, kYesNo);
  } else {
    std::string& field = key == "field"    ? spec.field
                         : key == "tokens" ? spec.tokens_field
                         : key == "id"     ? spec.id_field
                         : key == "only"   ? spec.only
                                           : spec.category_field;
    field = value;
  }
}

/// Keys that say nothing about the format given are mistakes.
void check_keys_fit(const CorpusSpec& spec, std::string_view text, const std::set<std::string, std::less<>>& given) {
  const bool table = spec.format == CorpusFormat::csv || spec.format == CorpusFormat::tsv;
  const auto refuse = [&](std::string_view key, const std::string& what) {
    if (given.contains(key)) fail(text, std::string(key) + "= has no meaning for this format", what);
  };
  if (spec.format != CorpusFormat::text) refuse("split", "split= is for format=text");
  if (!table) refuse("header", "header= is for format=csv and format=tsv");
  if (spec.format != CorpusFormat::jsonl) refuse("tokens", "tokens= is for format=jsonl");
  if (spec.format == CorpusFormat::text) {
    for (const std::string_view key : {"field", "id", "category", "only"}) refuse(key, "a text file has no fields");
  }
  if (!spec.only.empty() && spec.category_field.empty())
    fail(text, "only= names a category, but nothing says where categories are", "add category=");
  if (!table || spec.header) return;
  for (const std::string& column : {spec.field, spec.id_field, spec.category_field}) {
    if (!column.empty() && !is_number(column)) {
      fail(text, "with header=no a column is given by number, not as \"" + column + '"', "for example field=2");
    }
  }
}

}  // namespace

CorpusFormat format_of_file(const CorpusSpec& spec, const std::string& file_name) {
  if (spec.format_given) return spec.format;
  std::filesystem::path path(file_name);
  if (path.extension() == ".gz" || path.extension() == ".zst") path.replace_extension();
  const std::string extension = path.extension().string();
  if (extension == ".jsonl" || extension == ".ndjson" || extension == ".json") return CorpusFormat::jsonl;
  if (extension == ".csv") return CorpusFormat::csv;
  if (extension == ".tsv") return CorpusFormat::tsv;
  return CorpusFormat::text;
}

CorpusSpec CorpusSpec::parse(std::string_view text) {
  const std::size_t equals = text.find('=');
  if (equals == std::string_view::npos) fail(text, "no NAME=PATH");
  CorpusSpec spec;
  spec.name = text.substr(0, equals);
  check_name(text, spec.name);

  std::size_t comma = find_key(text, equals + 1);
  spec.path = text.substr(equals + 1, comma == std::string_view::npos ? comma : comma - equals - 1);
  if (spec.path.empty()) fail(text, "no path after the equals sign");

  std::set<std::string, std::less<>> given;
  while (comma != std::string_view::npos) {
    const std::size_t next = find_key(text, comma + 1);
    const std::string_view option = text.substr(comma + 1, next == std::string_view::npos ? next : next - comma - 1);
    const std::size_t sign = option.find('=');
    const std::string_view key = option.substr(0, sign);
    if (!given.emplace(key).second) fail(text, std::string(key) + "= is given twice");
    set(spec, text, key, option.substr(sign + 1));
    comma = next;
  }
  spec.format = format_of_file(spec, spec.path);
  if (spec.format_given || spec.format != CorpusFormat::text) check_keys_fit(spec, text, given);
  return spec;
}

}  // namespace switchyard
