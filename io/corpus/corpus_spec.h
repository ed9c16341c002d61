#pragma once

#include <string>
#include <string_view>

namespace switchyard {

enum class CorpusFormat { text, jsonl, csv, tsv };
/// Where a text file is cut into documents.
enum class TextSplit { file, line, blank_line };

/// One `--corpus NAME=PATH[,key=value ...]`. Keys: format=text|jsonl|csv|tsv (default by the file's name, without
/// .gz/.zst; else text), field= (text; JSON key or column name or 1-based number; default "text"), tokens= (JSON key
/// with ready ids; default "tokens", used where a line has it and no text), id=, category=, only= (documents of this
/// category alone), split=file|line|blank (text), header=yes|no (CSV/TSV, default yes).
struct CorpusSpec {
  std::string name;
  std::string path;  // file, folder (all files below it, sorted) or glob (sorted)
  CorpusFormat format = CorpusFormat::text;
  bool format_given = false;
  std::string field = "text";
  std::string tokens_field = "tokens";
  std::string id_field;        // empty: documents are named FILE:ORDINAL
  std::string category_field;  // empty: no categories
  std::string only;            // empty: documents of every category
  TextSplit split = TextSplit::file;
  bool header = true;

  /// Throws UsageError naming the option, the wrong part and the choices. A comma in a path needs no escape: only
  /// ",key=" of a known key ends it.
  static CorpusSpec parse(std::string_view text);
};

}  // namespace switchyard
