#include <sentencepiece_processor.h>
#define XXH_INLINE_ALL  // header only
#include <xxhash.h>

#include <fstream>
#include <iterator>
#include <optional>
#include <unordered_set>
#include <utility>

#include "io/tokenizer/protobuf_fields.h"
#include "io/tokenizer/tokenizer.h"
#include "io/utf8.h"
#include "parallel/error.h"

namespace switchyard {
namespace {

// SentencePiece needs some hundred bytes of memory per byte of text, so a longer text is encoded in sections.
constexpr std::size_t kSectionBytes = std::size_t{16} << 10U;       // where a cut is proven to change nothing
constexpr std::size_t kWideSectionBytes = std::size_t{512} << 10U;  // where it is not
constexpr std::size_t kLongestSectionBytes = std::size_t{1} << 20U;

constexpr char32_t kWordBegin = 0x2581;  // stands for a space in pieces

// Settings in a serialized model (sentencepiece_model.proto), by field number.
constexpr std::uint32_t kTrainerSpec = 2;
constexpr std::uint32_t kNormalizerSpec = 3;
constexpr std::uint32_t kTrainerModelType = 3;
constexpr std::uint32_t kTrainerWhitespaceAsSuffix = 24;
constexpr std::uint32_t kTrainerByteFallback = 35;
constexpr std::uint32_t kNormalizerCharacterMap = 2;
constexpr std::uint32_t kNormalizerRemoveExtraWhitespaces = 4;
constexpr std::uint32_t kNormalizerEscapeWhitespaces = 5;
constexpr std::uint64_t kModelTypeBpe = 2;

// A field that comes again overrides: this turns off normalizer_spec.add_dummy_prefix at the end of a serialized model.
constexpr std::string_view kNoDummyPrefix("\x1a\x02\x18\x00", 4);

struct ModelSettings {
  std::uint64_t model_type = 1;
  bool whitespace_as_suffix = false;
  bool byte_fallback = false;
  bool maps_characters = false;
  bool removes_extra_whitespaces = true;
  bool escapes_whitespaces = true;
};

ModelSettings read_settings(std::string_view model) {
  ModelSettings settings;
  ProtobufFields fields(model);
  while (const auto message = fields.next()) {
    if (message->number != kTrainerSpec && message->number != kNormalizerSpec) continue;
    const bool trainer = message->number == kTrainerSpec;
    ProtobufFields inner(message->bytes);
    while (const auto field = inner.next()) {
      if (trainer && field->number == kTrainerModelType) settings.model_type = field->varint;
      if (trainer && field->number == kTrainerWhitespaceAsSuffix) settings.whitespace_as_suffix = field->varint != 0;
      if (trainer && field->number == kTrainerByteFallback) settings.byte_fallback = field->varint != 0;
      if (trainer) continue;
      if (field->number == kNormalizerCharacterMap) settings.maps_characters = !field->bytes.empty();
      if (field->number == kNormalizerRemoveExtraWhitespaces) settings.removes_extra_whitespaces = field->varint != 0;
      if (field->number == kNormalizerEscapeWhitespaces) settings.escapes_whitespaces = field->varint != 0;
    }
  }
  return settings;
}

struct Character {
  char32_t code = 0;
  std::size_t bytes = 0;
};

/// The character at the beginning of `text`, if there is a well-formed one.
std::optional<Character> first_character(std::string_view text) {
  if (text.empty()) return std::nullopt;
  const auto lead = static_cast<unsigned char>(text.front());
  const std::size_t bytes = lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
  if (bytes == 0 || bytes > text.size()) return std::nullopt;
  if (bytes == 1) return Character{lead, 1};
  char32_t code = lead & (0x7FU >> bytes);
  for (std::size_t i = 1; i < bytes; ++i) {
    if (!is_utf8_continuation(text[i])) return std::nullopt;
    code = (code << 6U) | (static_cast<unsigned char>(text[i]) & 0x3FU);
  }
  const bool overlong = code < (bytes == 3 ? 0x800U : bytes == 4 ? 0x10000U : 0x80U);
  const bool surrogate = code >= 0xD800 && code < 0xE000;
  if (overlong || surrogate || code > 0x10FFFF) return std::nullopt;
  return Character{code, bytes};
}

/// The places where a text can be cut so that its sections, encoded one by one (all but the first without dummy
/// prefix), give the ids of the whole.
///
/// Encoding by BPE merges neighbouring symbols into pieces of the vocabulary. A merge across a cut between the
/// characters a and b would make a piece that holds "ab". Where no piece does, none can happen, and since merges on
/// either side do not depend on each other, the ids are the same. That holds if characters are not normalized beyond '
/// ' -> U+2581, and without unused pieces, whose splitting depends on the whole text. Runs of unknown characters become
/// one id, unless bytes stand for them: then b must be known.
class CutPlaces {
 public:
  CutPlaces(const sentencepiece::SentencePieceProcessor& processor, const ModelSettings& settings)
      : settings_(settings) {
    proven_ = settings.model_type == kModelTypeBpe && !settings.whitespace_as_suffix && !settings.maps_characters &&
              !settings.removes_extra_whitespaces;
    for (int id = 0; id < processor.GetPieceSize(); ++id) {
      if (processor.IsUnused(id)) proven_ = false;
      add_piece(processor.IdToPiece(id));
    }
  }

  /// Whether a cut changes nothing, or at least nothing is known that it changes.
  bool proven() const { return proven_; }

  /// Whether `text` can be cut before its byte `at` (0 < at < size).
  bool contains(std::string_view text, std::size_t at) const {
    const std::optional<Character> after = first_character(text.substr(at));
    const std::size_t begin = utf8_floor(text, at - 1);
    const std::optional<Character> before = first_character(text.substr(begin, at - begin));
    if (!before || !after || begin + before->bytes != at) return false;
    const char32_t a = symbol(before->code);
    const char32_t b = symbol(after->code);
    return !neighbours_.contains(pair(a, b)) && (settings_.byte_fallback || known_.contains(b));
  }

 private:
  static std::uint64_t pair(char32_t a, char32_t b) { return (std::uint64_t{a} << 32U) | b; }
  char32_t symbol(char32_t code) const { return code == ' ' && settings_.escapes_whitespaces ? kWordBegin : code; }

  void add_piece(std::string_view piece) {
    std::optional<Character> last;
    while (const std::optional<Character> character = first_character(piece)) {
      if (last) neighbours_.insert(pair(last->code, character->code));
      piece.remove_prefix(character->bytes);
      if (!last && piece.empty()) known_.insert(character->code);
      last = character;
    }
    if (!piece.empty()) proven_ = false;  // a piece that is no UTF-8
  }

  ModelSettings settings_;
  bool proven_ = false;
  std::unordered_set<std::uint64_t> neighbours_;  // characters next to each other in some piece
  std::unordered_set<char32_t> known_;            // pieces of one character
};

class SentencePieceTokenizer final : public Tokenizer {
 public:
  SentencePieceTokenizer(const std::string& model, const std::string& where)
      : first_(load(model, where)),
        following_(load(model + std::string(kNoDummyPrefix), where)),
        settings_(read_settings(model)),
        cuts_(*first_, settings_) {
    const XXH128_hash_t hash = XXH3_128bits(model.data(), model.size());
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, hash);
    constexpr std::string_view digits = "0123456789abcdef";
    for (const unsigned char byte : canonical.digest) {
      fingerprint_ += digits[byte >> 4U];
      fingerprint_ += digits[byte & 15U];
    }
  }

  std::vector<std::uint32_t> encode(std::string_view text, std::size_t enough) const override {
    std::vector<std::uint32_t> ids;
    bool first = true;
    while (!text.empty() && ids.size() <= enough) {
      const std::string_view section = text.substr(0, section_length(text));
      // Where spaces at a section's beginning are removed, its dummy prefix stands for them.
      const bool prefixed = first || (settings_.removes_extra_whitespaces && section.front() == ' ');
      encode_section(prefixed ? *first_ : *following_, section, ids);
      text.remove_prefix(section.size());
      first = false;
    }
    return ids;
  }

  std::uint32_t vocabulary_size() const override { return static_cast<std::uint32_t>(first_->GetPieceSize()); }
  std::int64_t bos_id() const override { return first_->bos_id(); }
  std::int64_t eos_id() const override { return first_->eos_id(); }
  std::string decode(std::span<const std::uint32_t> ids) const override {
    std::vector<int> checked_ids;
    for (const std::uint32_t id : ids)
      if (id < vocabulary_size() && !is_special(id)) checked_ids.push_back(checked(id));
    std::string text;
    const auto status = first_->Decode(checked_ids, &text);
    if (!status.ok()) throw Error("SentencePiece cannot decode token ids: " + status.ToString());
    return text;
  }
  std::string piece(std::uint32_t id) const override { return first_->IdToPiece(checked(id)); }
  bool is_special(std::uint32_t id) const override {
    const int checked_id = checked(id);
    return first_->IsControl(checked_id) || first_->IsUnknown(checked_id);
  }
  std::string fingerprint() const override { return fingerprint_; }

 private:
  using Processor = sentencepiece::SentencePieceProcessor;

  static std::unique_ptr<Processor> load(const std::string& model, const std::string& where) {
    auto processor = std::make_unique<Processor>();
    const auto status = processor->LoadFromSerializedProto(model);
    if (!status.ok() || processor->GetPieceSize() == 0) {
      throw Error("not a SentencePiece model (" + status.ToString() + ')', where,
                  "copy the tokenizer of the model again");
    }
    return processor;
  }

  /// Bytes of the first section of `text`: up to the first good cut past a section's usual size, or to any character's
  /// end.
  std::size_t section_length(std::string_view text) const {
    const std::size_t usual = cuts_.proven() ? kSectionBytes : kWideSectionBytes;
    for (std::size_t at = usual; at < text.size() && at < kLongestSectionBytes; ++at) {
      if (cuts_.contains(text, at)) return at;
    }
    return utf8_floor(text, kLongestSectionBytes);
  }

  static void encode_section(const Processor& processor, std::string_view section, std::vector<std::uint32_t>& ids) {
    std::vector<int> section_ids;
    const auto status = processor.Encode(section, &section_ids);
    if (!status.ok()) throw Error("SentencePiece cannot encode a text: " + status.ToString());
    ids.insert(ids.end(), section_ids.begin(), section_ids.end());
  }

  int checked(std::uint32_t id) const {
    if (id >= vocabulary_size()) {
      throw Error("token id " + std::to_string(id) + " in a vocabulary of " + std::to_string(vocabulary_size()));
    }
    return static_cast<int>(id);
  }

  std::unique_ptr<Processor> first_;      // for the beginning of a text
  std::unique_ptr<Processor> following_;  // for what follows a cut: no dummy prefix
  ModelSettings settings_;
  CutPlaces cuts_;
  std::string fingerprint_;
};

}  // namespace

std::unique_ptr<Tokenizer> open_tokenizer(const std::filesystem::path& model_folder) {
  const std::filesystem::path file = model_folder / "tokenizer.model";
  if (!std::filesystem::exists(file)) return nullptr;
  return open_tokenizer_file(file);
}

std::unique_ptr<Tokenizer> open_tokenizer_file(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  const std::string model{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  if (!stream.is_open() || stream.bad()) throw Error("cannot be read", file.string());
  if (model.empty()) throw Error("is empty", file.string(), "copy the tokenizer of the model again");
  return std::make_unique<SentencePieceTokenizer>(model, file.string());
}

}  // namespace switchyard
