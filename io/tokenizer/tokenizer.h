#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard {

/// Text -> token ids. Thread-safe once open. Any bytes are valid input: NULs, broken UTF-8, lines of 100 MB.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  /// `enough`: where the text has more ids than that, only its first ones, more than `enough`, need be made.
  virtual std::vector<std::uint32_t> encode(std::string_view text,
                                            std::size_t enough = std::numeric_limits<std::size_t>::max()) const = 0;
  virtual std::uint32_t vocabulary_size() const = 0;
  /// -1 when the tokenizer has none.
  virtual std::int64_t bos_id() const = 0;
  virtual std::int64_t eos_id() const = 0;
  /// Text of token ids. Special ones, and those outside the vocabulary (a model's may be larger), are left out.
  virtual std::string decode(std::span<const std::uint32_t> ids) const = 0;
  /// A token's text for people (a leading U+2581 stands for a space), e.g. "▁the".
  virtual std::string piece(std::uint32_t id) const = 0;
  /// Control and unknown tokens (BOS, EOS, ...).
  virtual bool is_special(std::uint32_t id) const = 0;
  /// Hash (hex) of the tokenizer's file.
  virtual std::string fingerprint() const = 0;
};

/// A model folder's tokenizer (tokenizer.model, SentencePiece), or nullptr when it has none.
/// Throws Error when the file is there but cannot be used.
std::unique_ptr<Tokenizer> open_tokenizer(const std::filesystem::path& model_folder);

/// A SentencePiece model file. Throws Error when it cannot be used. Texts past 16 KiB are encoded in sections, cut
/// where no vocabulary piece can reach across, so that the ids are those of the whole. Only where there is no such
/// place for 1 MiB (a run of one letter), or beyond 512 KiB with models of another kind than Mixtral's and Llama's (BPE
/// without normalization), may ids differ around a cut.
std::unique_ptr<Tokenizer> open_tokenizer_file(const std::filesystem::path& file);

}  // namespace switchyard
