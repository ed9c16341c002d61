#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/corpus/corpus_files.h"

namespace switchyard {

/// One document as read: its text (template applied), or ready token ids.
struct Document {
  std::string id;
  std::string category;  // empty: none
  std::string text;
  std::vector<std::uint32_t> tokens;
  bool has_tokens = false;
  bool truncated = false;  // the text was cut at ReaderOptions::max_document_bytes
  std::uint64_t ordinal =
      0;  // 0, 1, ... in the corpus; skipped ones, and those of other categories than `only`, not counted
};

/// A place in a corpus where a document begins.
struct CorpusCursor {
  std::uint64_t file = 0;     // index into list_files
  std::uint64_t offset = 0;   // bytes of the (decompressed) file before it
  std::uint64_t in_file = 0;  // ordinal of the document within its file, bad ones counted (it names the document)
  std::uint64_t ordinal = 0;  // Document::ordinal of the next good document
  std::uint64_t lines = 0;    // line feeds of the file before it (they name the place of a bad document)
  bool operator==(const CorpusCursor&) const = default;
};

enum class BadDocument { fail, skip };

struct ReaderOptions {
  /// Prompt template: "{text}" is the document's text, "{NAME}" another JSON field or column, "{{" and "}}" are braces.
  /// Empty: the text alone.
  std::string prompt_template;
  BadDocument on_bad_document = BadDocument::fail;
  std::uint64_t max_document_bytes = 64ULL << 20U;  // longer text documents are cut at a UTF-8 boundary; longer JSON
                                                    // lines or CSV records are bad documents past 4x this
  /// Asked before each read of at most 1 MiB, by the thread that reads: once true, there are no more documents.
  std::function<bool()> called_off;
};

/// Streams the documents of a corpus in order: files sorted by path, then file order. Holds one document (and a read
/// buffer) at a time. Plain, .gz and .zst files. Foreign bytes are guilty: every malformed line is an Error naming
/// file, line and fault, or skipped and counted under BadDocument::skip. NUL bytes and invalid UTF-8 in text are passed
/// on as they are (the tokenizer copes).
class DocumentReader {
 public:
  DocumentReader(CorpusSpec spec, CorpusFiles files, ReaderOptions options);
  ~DocumentReader();
  DocumentReader(DocumentReader&&) noexcept;

  /// The next document, or nothing at the end.
  std::optional<Document> next();
  /// Where the next document begins. Continuing there from a new reader gives the same documents.
  CorpusCursor cursor() const;
  /// Continues at a cursor taken from an equal reader. Plain files seek; compressed ones are decompressed up to it.
  void seek(const CorpusCursor& cursor);

  /// Documents skipped since construction, and up to 100 of their places with the fault ("file:line: fault").
  std::uint64_t skipped() const;
  const std::vector<std::string>& skipped_places() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Ordinals, ascending, of `count` documents chosen without replacement by hashing (seed, ordinal): the same for any
/// number of ranks. One pass over the corpus, memory of `count` ordinals. All ordinals when the corpus has no more than
/// `count` documents.
std::vector<std::uint64_t> sample_ordinals(DocumentReader reader, std::uint64_t count, std::uint64_t seed);

}  // namespace switchyard
