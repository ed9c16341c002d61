#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard {

/// Where a line says what, as dotted paths (json_path.h); "" where it does not. One completion of a line, an element of
/// the list that `routing` goes through, becomes a document.
struct ServedFields {
  std::string routing;            // experts of prompt and completion, or of the completion beside prompt_routing
  std::string prompt_routing;     // experts of the prompt, shared by the line's completions: the first one's
  std::string prompt_ids;         // token ids of the prompt
  std::string token_ids;          // token ids of the completion, or of all where prompt_ids is ""
  std::string prompt_tokens;      // their number, or a list of that length
  std::string completion_tokens;  // likewise; used where the line has one completion
  std::string id, category;
};

/// What an import needs to know of its lines, some of it found in the first one.
struct ServedFormat {
  ServedFields fields;
  int experts = 0;               // E
  int layers = 0;                // in a line; 0: as its lists are nested
  int top_k = 0;                 // k; 0: as its lists are nested
  std::vector<int> drop_layers;  // numbers, in a line, of layers that are not routed
  std::uint32_t vocabulary = 0;  // token ids are below

  bool has_ids() const { return !fields.token_ids.empty(); }
  bool has_phases() const { return !fields.prompt_routing.empty() || !fields.prompt_tokens.empty(); }
  int kept_layers() const { return layers - static_cast<int>(drop_layers.size()); }
};

/// One completion and, where the line tells, its prompt.
struct ServedDocument {
  std::string id, category;            // id: "" where the line has none
  std::uint64_t n_tokens = 0;          // n, with routing
  std::uint64_t n_prefill = 0;         // the first so many are of the prompt
  std::vector<std::uint32_t> ids;      // [n] or empty
  std::vector<std::uint16_t> experts;  // [n, kept layers, k]
};

/// What is wrong with a line, and perhaps what to do.
class LineFault : public std::runtime_error {
 public:
  explicit LineFault(const std::string& what, std::string what_to_do = {})
      : std::runtime_error(what), remedy(std::move(what_to_do)) {}
  std::string remedy;
};

/// The documents of a line. Throws LineFault.
std::vector<ServedDocument> parse_served_line(std::string_view line, const ServedFormat& format);

/// Fills in what `format` leaves open and the line tells: where no routing field is given, all fields, by the layouts
/// of SGLang and vLLM; layers and top_k of nested lists; drops fields of token ids that do not reach over all its
/// tokens, unless they are given. Throws LineFault.
ServedFormat detect_format(std::string_view line, ServedFormat format);

}  // namespace switchyard
