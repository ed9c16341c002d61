#include "io/corpus/document_reader.h"

#define XXH_INLINE_ALL  // header only
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <queue>
#include <utility>

#include "io/corpus/byte_stream.h"
#include "io/corpus/format_reader.h"
#include "io/corpus/prompt_template.h"
#include "parallel/error.h"

namespace switchyard {
namespace {

constexpr std::size_t kPlacesKept = 100;
constexpr std::uint64_t kRecordBytesPerTextByte = 4;
constexpr std::uint64_t kLeastBufferBytes = 4096;
constexpr std::string_view kTextPlace = "text";  // {text} is the document's text, whatever its field is called

/// The folder that the names of a corpus' files are relative to.
std::filesystem::path base_folder(const std::string& corpus_path) {
  std::filesystem::path path(corpus_path);
  if (std::filesystem::is_directory(path)) return path;
  if (std::filesystem::exists(path)) return path.parent_path();
  std::filesystem::path base;
  for (const std::filesystem::path& part : path.parent_path()) {
    if (part.native().find_first_of("*?[") != std::string::npos) break;
    base /= part;
  }
  return base;
}

/// Room for the whole of a small file: corpora of millions of them would else spend their time on buffers.
std::size_t buffer_bytes(const CorpusFile& file) {
  const std::filesystem::path extension = std::filesystem::path(file.path).extension();
  if (extension == ".gz" || extension == ".zst") return ByteStream::kBufferBytes;
  return static_cast<std::size_t>(std::clamp<std::uint64_t>(file.bytes, kLeastBufferBytes, ByteStream::kBufferBytes));
}

std::string name_in_corpus(const std::filesystem::path& file, const std::filesystem::path& base) {
  const std::filesystem::path relative = base.empty() ? file : file.lexically_relative(base);
  const bool below = !relative.empty() && *relative.begin() != "..";
  return (below ? relative : file.filename()).generic_string();
}

}  // namespace

struct DocumentReader::State {
  State(CorpusSpec spec, CorpusFiles files, ReaderOptions options);

  std::optional<Document> next();
  bool open_file();
  void close_file();
  std::optional<std::string> assemble(RawDocument& raw, Document& document) const;
  std::optional<std::string> fill_template(const RawDocument& raw, Document& document) const;
  std::optional<std::string> text_or_tokens(RawDocument& raw, Document& document) const;
  void refuse(const RawDocument& raw, const std::string& fault);
  std::size_t slot(const std::string& name) const;
  const FieldValue& value_for_place(const RawDocument& raw, const std::string& name) const;

  FormatRequest request;
  CorpusFiles files;
  ReaderOptions options;
  PromptTemplate prompt;
  std::filesystem::path base;

  CorpusCursor cursor;
  std::unique_ptr<ByteStream> stream;  // the open file, or none
  std::unique_ptr<FormatReader> format;
  std::string file_name;  // of the open file, as documents are named by it

  std::uint64_t skipped = 0;
  std::vector<std::string> skipped_places;
};

DocumentReader::State::State(CorpusSpec spec, CorpusFiles the_files, ReaderOptions the_options)
    : files(std::move(the_files)), options(std::move(the_options)), prompt(options.prompt_template) {
  if (options.max_document_bytes == 0)
    throw UsageError("documents of at most 0 bytes", "--max-document-bytes", "give 1 or more");
  base = base_folder(spec.path);
  const std::vector<std::string> places = prompt.names();
  const bool text_wanted = prompt.empty() || std::find(places.begin(), places.end(), kTextPlace) != places.end();
  request.names.push_back(text_wanted ? spec.field : std::string());
  const auto also = [&](const std::string& name) {
    if (!name.empty() && slot(name) == request.names.size()) request.names.push_back(name);
  };
  for (const std::string& name : places) {
    if (name != kTextPlace) also(name);
  }
  also(spec.id_field);
  also(spec.category_field);
  request.max_text_bytes = options.max_document_bytes;
  request.max_record_bytes = kRecordBytesPerTextByte * options.max_document_bytes;
  request.spec = std::move(spec);
}

std::size_t DocumentReader::State::slot(const std::string& name) const {
  return static_cast<std::size_t>(std::find(request.names.begin(), request.names.end(), name) - request.names.begin());
}

const FieldValue& DocumentReader::State::value_for_place(const RawDocument& raw, const std::string& name) const {
  return name == kTextPlace ? raw.values.front() : raw.values[slot(name)];
}

/// Opens the cursor's file at the cursor; false after the last file.
bool DocumentReader::State::open_file() {
  if (cursor.file >= files->size()) return false;
  const CorpusFile& file = (*files)[static_cast<std::size_t>(cursor.file)];
  file_name = name_in_corpus(file.path, base);
  stream = std::make_unique<ByteStream>(open_source(file.path), file.path, buffer_bytes(file), options.called_off);
  switch (format_of_file(request.spec, file.path)) {
    case CorpusFormat::text:
      format = make_text_reader(request);
      break;
    case CorpusFormat::jsonl:
      format = make_jsonl_reader(request);
      break;
    case CorpusFormat::csv:
      format = make_csv_reader(request, ',');
      break;
    case CorpusFormat::tsv:
      format = make_csv_reader(request, '\t');
      break;
  }
  format->begin_file(*stream);
  stream->skip_to(cursor.offset, cursor.lines);
  return true;
}

void DocumentReader::State::close_file() {
  stream.reset();
  format.reset();
  cursor = {cursor.file + 1, 0, 0, cursor.ordinal, 0};
}

/// Makes the document; says what is wrong where it cannot be made.
std::optional<std::string> DocumentReader::State::assemble(RawDocument& raw, Document& document) const {
  if (!raw.fault.empty()) return raw.fault;
  const CorpusSpec& spec = request.spec;
  document.id = file_name + ':' + std::to_string(cursor.in_file);
  const auto scalar = [](const FieldValue& value) {
    return value.kind == FieldValue::Kind::text || value.kind == FieldValue::Kind::scalar;
  };
  const bool has_fields = format_of_file(spec, stream->name()) != CorpusFormat::text;
  if (has_fields && !spec.id_field.empty()) {
    const FieldValue& value = raw.values[slot(spec.id_field)];
    if (!scalar(value)) return "no id under \"" + spec.id_field + '"';
    document.id = value.text;
  }
  if (has_fields && !spec.category_field.empty()) {
    const FieldValue& value = raw.values[slot(spec.category_field)];
    if (value.kind == FieldValue::Kind::composite)
      return "the category under \"" + spec.category_field + "\" is no text";
    document.category = value.text;
  }
  document.truncated = raw.truncated;
  return prompt.empty() ? text_or_tokens(raw, document) : fill_template(raw, document);
}

std::optional<std::string> DocumentReader::State::fill_template(const RawDocument& raw, Document& document) const {
  for (const std::string& name : prompt.names()) {
    const FieldValue::Kind kind = value_for_place(raw, name).kind;
    if (kind == FieldValue::Kind::missing) return "no value for {" + name + "} of the prompt template";
    if (kind == FieldValue::Kind::composite) return "the value for {" + name + "} of the prompt template is no text";
  }
  document.text =
      prompt.fill([&](const std::string& name) -> std::string_view { return value_for_place(raw, name).text; });
  return std::nullopt;
}

std::optional<std::string> DocumentReader::State::text_or_tokens(RawDocument& raw, Document& document) const {
  FieldValue& text = raw.values.front();
  const std::string name = '"' + request.names.front() + '"';
  if (text.kind == FieldValue::Kind::text) {
    document.text = std::move(text.text);
  } else if (text.kind != FieldValue::Kind::missing) {
    return "the text under " + name + " is no string";
  } else if (!raw.tokens_fault.empty()) {
    return raw.tokens_fault;
  } else if (raw.has_tokens) {
    document.tokens = std::move(raw.tokens);
    document.has_tokens = true;
  } else {
    return "no text under " + name;
  }
  return std::nullopt;
}

/// Throws or counts, as the policy says.
void DocumentReader::State::refuse(const RawDocument& raw, const std::string& fault) {
  ++skipped;
  const bool fails = options.on_bad_document == BadDocument::fail;
  if (!fails && skipped_places.size() >= kPlacesKept) return;
  const std::string where = stream->name() + ':' + std::to_string(raw.newlines_before + 1);
  if (fails) throw Error(fault, where, "fix the line or pass --on-bad-document=skip");
  skipped_places.push_back(where + ": " + fault);
}

DocumentReader::DocumentReader(CorpusSpec spec, CorpusFiles files, ReaderOptions options)
    : state_(std::make_unique<State>(std::move(spec), std::move(files), std::move(options))) {}

DocumentReader::~DocumentReader() = default;
DocumentReader::DocumentReader(DocumentReader&&) noexcept = default;

std::optional<Document> DocumentReader::State::next() {
  for (;;) {
    if (!stream && !open_file()) return std::nullopt;
    RawDocument raw;
    if (!format->next(*stream, raw)) {
      close_file();
      continue;
    }
    Document document;
    const std::optional<std::string> fault = assemble(raw, document);
    cursor.offset = stream->offset();
    cursor.lines = stream->newlines();
    ++cursor.in_file;
    if (fault) {
      refuse(raw, *fault);
      continue;
    }
    if (!request.spec.only.empty() && document.category != request.spec.only) continue;
    document.ordinal = cursor.ordinal++;
    return document;
  }
}

std::optional<Document> DocumentReader::next() {
  try {
    return state_->next();
  } catch (const ReadingCalledOff&) {
    state_->stream.reset();  // it stands inside a document
    return std::nullopt;
  }
}

CorpusCursor DocumentReader::cursor() const { return state_->cursor; }

void DocumentReader::seek(const CorpusCursor& cursor) {
  if (cursor.file > state_->files->size()) {
    throw Error("a place in file " + std::to_string(cursor.file + 1) + " of " + std::to_string(state_->files->size()),
                "corpus " + state_->request.spec.name, "the corpus has changed");
  }
  state_->stream.reset();
  state_->format.reset();
  state_->cursor = cursor;
  try {
    static_cast<void>(state_->open_file());  // now, so that a changed corpus is an error here
  } catch (const ReadingCalledOff&) {
    state_->stream.reset();
  }
}

std::uint64_t DocumentReader::skipped() const { return state_->skipped; }
const std::vector<std::string>& DocumentReader::skipped_places() const { return state_->skipped_places; }

std::vector<std::uint64_t> sample_ordinals(DocumentReader reader, std::uint64_t count, std::uint64_t seed) {
  using Draw = std::pair<std::uint64_t, std::uint64_t>;  // hash, ordinal
  std::priority_queue<Draw> smallest;                    // the largest of them on top
  while (const std::optional<Document> document = reader.next()) {
    const std::array<std::uint64_t, 2> drawn{seed, document->ordinal};
    smallest.emplace(XXH3_64bits(drawn.data(), sizeof(drawn)), document->ordinal);
    if (smallest.size() > count) smallest.pop();
  }
  std::vector<std::uint64_t> ordinals;
  for (; !smallest.empty(); smallest.pop()) ordinals.push_back(smallest.top().second);
  std::sort(ordinals.begin(), ordinals.end());
  return ordinals;
}

}  // namespace switchyard
