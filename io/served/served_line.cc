#include "io/served/served_line.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "io/served/json_path.h"
#include "io/strict_json.h"
#include "parallel/error.h"

namespace switchyard {
namespace {

using nlohmann::json;

/// A field of ServedFields with the paths where engines put it, the usual one first.
using Alternatives = std::vector<std::pair<std::string ServedFields::*, std::vector<const char*>>>;

/// Layouts by the path of their routing. SGLang: PRs 12162 and 17434; vLLM: 0.21 and before.
const std::vector<std::pair<const char*, Alternatives>>& known_layouts() {
  using F = ServedFields;
  static const Alternatives generate = {
      {&F::prompt_tokens, {"meta_info.prompt_tokens"}},
      {&F::completion_tokens, {"meta_info.completion_tokens"}},
      {&F::prompt_ids, {"input_ids", "prompt_token_ids", "meta_info.input_token_logprobs"}},
      {&F::token_ids, {"output_ids", "meta_info.output_token_logprobs"}},
      {&F::id, {"meta_info.id", "id", "rid"}}};
  static const Alternatives openai = {{&F::prompt_routing, {"prompt_routed_experts"}},
                                      {&F::prompt_tokens, {"usage.prompt_tokens", "prompt_token_ids"}},
                                      {&F::completion_tokens, {"usage.completion_tokens"}},
                                      {&F::prompt_ids, {"prompt_token_ids", "choices.prompt_token_ids"}},
                                      {&F::token_ids, {"choices.token_ids"}},
                                      {&F::id, {"id", "request_id"}}};
  static const Alternatives outputs = {
      {&F::prompt_routing, {"prompt_routed_experts"}}, {&F::prompt_tokens, {"prompt_token_ids"}},
      {&F::completion_tokens, {"outputs.token_ids"}},  {&F::prompt_ids, {"prompt_token_ids"}},
      {&F::token_ids, {"outputs.token_ids"}},          {&F::id, {"request_id", "id"}}};
  static const Alternatives plain = {{&F::prompt_routing, {"prompt_routed_experts"}},
                                     {&F::prompt_tokens, {"prompt_tokens"}},
                                     {&F::completion_tokens, {"completion_tokens"}},
                                     {&F::token_ids, {"token_ids", "tokens"}},
                                     {&F::id, {"id", "request_id"}}};
  static const std::vector<std::pair<const char*, Alternatives>> layouts = {
      {"meta_info.routed_experts", generate},    {"choices.sgl_ext.routed_experts", openai},
      {"choices.sglext.routed_experts", openai}, {"choices.routed_experts", openai},
      {"outputs.routed_experts", outputs},       {"routed_experts", plain}};
  return layouts;
}

json parse_json(std::string_view line) {
  try {
    return parse_strict_json(line, "");
  } catch (const Error& error) {
    throw LineFault(error.what());
  }
}

[[noreturn]] void fail_number(const std::string& place) { throw LineFault(place + " is no whole number"); }

std::int64_t as_integer(const json& value, const std::string& place) {
  if (!value.is_number_integer()) fail_number(place);
  return value.get<std::int64_t>();
}

/// A number, or the length of a list.
std::uint64_t as_count(const json& value, const std::string& place) {
  if (value.is_array()) return value.size();
  const std::int64_t count = as_integer(value, place);
  if (count < 0) throw LineFault(place + " is negative");
  return static_cast<std::uint64_t>(count);
}

std::string as_text(const json& value, const std::string& place) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number()) return value.dump();
  throw LineFault(place + " is neither text nor a number");
}

/// Bytes of base64 text; throws LineFault at what is none.
std::vector<unsigned char> from_base64(std::string_view text, const std::string& place) {
  constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  static const std::array<std::int8_t, 256> values = [&] {
    std::array<std::int8_t, 256> table{};
    table.fill(-1);
    for (std::size_t i = 0; i < kAlphabet.size(); ++i)
      table[static_cast<unsigned char>(kAlphabet[i])] = static_cast<std::int8_t>(i);
    return table;
  }();
  while (text.ends_with('=')) text.remove_suffix(1);
  std::vector<unsigned char> bytes;
  bytes.reserve(text.size() * 3 / 4);
  std::uint32_t bits = 0;
  int n_bits = 0;
  for (const char c : text) {
    const std::int8_t value = values[static_cast<unsigned char>(c)];
    if (value < 0) throw LineFault(place + " is text, but not base64");
    bits = bits << 6U | static_cast<std::uint32_t>(value);
    n_bits += 6;
    if (n_bits < 8) continue;
    n_bits -= 8;
    bytes.push_back(static_cast<unsigned char>(bits >> static_cast<unsigned>(n_bits)));
  }
  return bytes;
}

std::int32_t as_expert(std::int64_t number) {
  return static_cast<std::int32_t>(std::clamp<std::int64_t>(number, std::numeric_limits<std::int32_t>::min(),
                                                            std::numeric_limits<std::int32_t>::max()));
}

/// Experts as a line holds them: [tokens, layers, k].
struct ExpertArray {
  std::vector<std::int32_t> values;
  std::uint64_t tokens = 0;
};

/// One line, parsed.
class Line {
 public:
  Line(const json& root, const ServedFormat& format) : root_(root), format_(format) {}

  std::vector<ServedDocument> documents() {
    const ServedFields& fields = format_.fields;
    const std::vector<JsonPath::Found> completions = JsonPath(fields.routing).all(root_);
    if (completions.empty()) throw LineFault("no routing at " + fields.routing);
    std::vector<ServedDocument> documents;
    for (const JsonPath::Found& completion : completions) {
      const bool first = documents.empty();
      documents.push_back(document(completion, first, completions.size() == 1));
      if (!first && !documents.back().id.empty()) documents.back().id += '#' + std::to_string(documents.size() - 1);
    }
    return documents;
  }

  /// With the layers and choices that the line's lists told.
  const ServedFormat& format() const { return format_; }

 private:
  const json* find(const std::string& path, const JsonPath::Elements& elements) const {
    return path.empty() ? nullptr : JsonPath(path).beside(root_, elements);
  }
  const json& require(const std::string& path, const JsonPath::Elements& elements) const {
    const json* value = find(path, elements);
    if (value == nullptr) throw LineFault("nothing at " + path);
    return *value;
  }

  ServedDocument document(const JsonPath::Found& completion, bool first, bool only) {
    const ServedFields& fields = format_.fields;
    const JsonPath::Elements& elements = completion.elements;
    ServedDocument made;
    ExpertArray experts;
    if (!fields.prompt_routing.empty() && first)
      experts = read_experts(require(fields.prompt_routing, elements), fields.prompt_routing);
    const std::uint64_t n_prompt_rows = experts.tokens;
    const ExpertArray rest = read_experts(*completion.value, fields.routing);
    experts.values.insert(experts.values.end(), rest.values.begin(), rest.values.end());
    experts.tokens += rest.tokens;
    made.n_tokens = experts.tokens;
    made.experts = checked(experts);

    std::uint64_t begin = 0;  // token of the request whose routing comes first
    made.n_prefill = made.n_tokens;
    if (!fields.prompt_routing.empty()) {
      made.n_prefill = n_prompt_rows;
    } else if (!fields.prompt_tokens.empty()) {
      const std::uint64_t prompt = as_count(require(fields.prompt_tokens, elements), fields.prompt_tokens);
      if (only && !fields.completion_tokens.empty()) {
        const std::uint64_t all =
            prompt + as_count(require(fields.completion_tokens, elements), fields.completion_tokens);
        if (made.n_tokens > all)
          throw LineFault("routing of " + std::to_string(made.n_tokens) + " tokens, but prompt and completion have " +
                          std::to_string(all));
        begin = made.n_tokens + 1 < all ? all - 1 - made.n_tokens : 0;
      }
      made.n_prefill = std::min(made.n_tokens, prompt - std::min(prompt, begin));
    }
    if (format_.has_ids()) made.ids = read_ids(elements, first, begin, made.n_tokens, n_prompt_rows);
    if (!fields.id.empty()) made.id = as_text(require(fields.id, elements), fields.id);
    if (const json* category = find(fields.category, elements)) made.category = as_text(*category, fields.category);
    return made;
  }

  /// [n] ids of the tokens from `begin` on.
  std::vector<std::uint32_t> read_ids(const JsonPath::Elements& elements, bool first, std::uint64_t begin,
                                      std::uint64_t n, std::uint64_t n_prompt_rows) const {
    const ServedFields& fields = format_.fields;
    std::vector<std::uint32_t> ids;
    if (!fields.prompt_ids.empty() && (fields.prompt_routing.empty() || first)) {
      append_ids(require(fields.prompt_ids, elements), fields.prompt_ids, ids);
      std::uint64_t prompt = ids.size();
      if (!fields.prompt_routing.empty())
        prompt = n_prompt_rows;
      else if (!fields.prompt_tokens.empty())
        prompt = as_count(require(fields.prompt_tokens, elements), fields.prompt_tokens);
      if (ids.size() != prompt)
        throw LineFault(std::to_string(ids.size()) + " token ids at " + fields.prompt_ids + " for a prompt of " +
                        std::to_string(prompt));
    }
    append_ids(require(fields.token_ids, elements), fields.token_ids, ids);
    if (ids.size() < begin + n)
      throw LineFault(std::to_string(ids.size()) + " token ids for routing up to token " + std::to_string(begin + n));
    return {ids.begin() + static_cast<std::ptrdiff_t>(begin), ids.begin() + static_cast<std::ptrdiff_t>(begin + n)};
  }

  /// A list of ids, or of SGLang's [logprob, id, text].
  void append_ids(const json& list, const std::string& place, std::vector<std::uint32_t>& ids) const {
    if (!list.is_array()) throw LineFault(place + " is no list of token ids");
    for (const json& entry : list) {
      const json& number = entry.is_array() && entry.size() > 1 ? entry[1] : entry;
      const std::int64_t id = as_integer(number, "an entry of " + place);
      const auto most = format_.vocabulary > 0 ? std::int64_t{format_.vocabulary} - 1
                                               : std::int64_t{std::numeric_limits<std::int32_t>::max()};
      if (id < 0 || id > most)
        throw LineFault("token id " + std::to_string(id) + " at " + place + " is not below " +
                        std::to_string(most + 1));
      ids.push_back(static_cast<std::uint32_t>(id));
    }
  }

  ExpertArray read_experts(const json& value, const std::string& place) {
    ExpertArray array;
    if (value.is_array() && !value.empty() && value[0].is_array()) {
      read_nested(value, place, array);
      return array;
    }
    if (value.is_string()) {
      const std::vector<unsigned char> bytes = from_base64(value.get_ref<const std::string&>(), place);
      if (bytes.size() % 4 != 0)
        throw LineFault(place + " holds " + std::to_string(bytes.size()) + " bytes, which are no 32-bit numbers");
      for (std::size_t i = 0; i < bytes.size(); i += 4)
        array.values.push_back(static_cast<std::int32_t>(bytes[i] | static_cast<std::uint32_t>(bytes[i + 1]) << 8U |
                                                         static_cast<std::uint32_t>(bytes[i + 2]) << 16U |
                                                         static_cast<std::uint32_t>(bytes[i + 3]) << 24U));
    } else if (value.is_array()) {
      for (const json& number : value) array.values.push_back(as_expert(as_integer(number, "an entry of " + place)));
    } else {
      throw LineFault(place + " is neither a list nor base64 text");
    }
    if (array.values.empty()) return array;
    if (format_.layers == 0 || format_.top_k == 0)
      throw LineFault(place + " is flat", "give --layers and --top-k, which a flat list does not tell");
    const std::uint64_t row = static_cast<std::uint64_t>(format_.layers) * static_cast<std::uint64_t>(format_.top_k);
    if (array.values.size() % row != 0)
      throw LineFault(place + " holds " + std::to_string(array.values.size()) + " experts, which is no multiple of " +
                          std::to_string(format_.layers) + " layers x " + std::to_string(format_.top_k),
                      "check --layers and --top-k");
    array.tokens = array.values.size() / row;
    return array;
  }

  void read_nested(const json& tokens, const std::string& place, ExpertArray& array) {
    array.tokens = tokens.size();
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      const std::string at_token = place + ", token " + std::to_string(t);
      require_length(tokens[t], format_.layers, at_token, " layers");
      for (const json& layer : tokens[t]) {
        require_length(layer, format_.top_k, at_token, " experts in a layer");
        for (const json& expert : layer)
          array.values.push_back(as_expert(as_integer(expert, at_token + ": an expert")));
      }
    }
  }

  /// expected: 0 learns it.
  static void require_length(const json& list, int& expected, const std::string& place, const char* of_what) {
    const std::size_t size = list.is_array() ? list.size() : 0;
    if (expected == 0) expected = static_cast<int>(size);
    if (size != static_cast<std::size_t>(expected) || size == 0)
      throw LineFault(place + ": " + std::to_string(size) + of_what + ", expected " + std::to_string(expected));
  }

  /// The kept layers' experts, every one possible.
  std::vector<std::uint16_t> checked(const ExpertArray& array) const {
    const auto layers = static_cast<std::size_t>(format_.layers);
    const auto k = static_cast<std::size_t>(format_.top_k);
    std::vector<std::uint16_t> experts;
    experts.reserve(array.values.size());
    for (std::size_t row = 0; row * k < array.values.size(); ++row) {
      const auto layer = static_cast<int>(row % layers);
      if (std::find(format_.drop_layers.begin(), format_.drop_layers.end(), layer) != format_.drop_layers.end())
        continue;
      const std::int32_t* chosen = array.values.data() + row * k;
      for (std::size_t j = 0; j < k; ++j) {
        const auto where = [&] {
          return "token " + std::to_string(row / layers) + ", layer " + std::to_string(layer) + ": expert " +
                 std::to_string(chosen[j]);
        };
        if (chosen[j] < 0 || chosen[j] >= format_.experts)
          throw LineFault(where() + " of " + std::to_string(format_.experts), "check --experts, --layers and --top-k");
        if (std::find(chosen, chosen + j, chosen[j]) != chosen + j)
          throw LineFault(where() + " is chosen twice, which no router does",
                          "if the engine fills up layers that are not routed, leave this one out: --drop-layers " +
                              std::to_string(layer));
        experts.push_back(static_cast<std::uint16_t>(chosen[j]));
      }
    }
    return experts;
  }

  const json& root_;
  ServedFormat format_;
};

/// All fields, by the layout whose routing the line has; ones that are given stay.
ServedFields known_fields(const json& root, ServedFields given) {
  std::string looked_at;
  for (const auto& [routing, alternatives] : known_layouts()) {
    const std::vector<JsonPath::Found> found = JsonPath(routing).all(root);
    looked_at += std::string(looked_at.empty() ? "" : ", ") + routing;
    if (found.empty()) continue;
    given.routing = routing;
    bool lacks_prompt_ids = false;
    for (const auto& [field, paths] : alternatives) {
      for (const char* path : paths)
        if ((given.*field).empty() && JsonPath(path).beside(root, found.front().elements) != nullptr)
          given.*field = path;
      lacks_prompt_ids = lacks_prompt_ids || (field == &ServedFields::prompt_ids && given.prompt_ids.empty());
    }
    if (lacks_prompt_ids) given.token_ids.clear();  // of the completion alone: they do not reach over its prompt
    return given;
  }
  throw LineFault("no routing at " + looked_at, "name its place with --routing-field");
}

}  // namespace

std::vector<ServedDocument> parse_served_line(std::string_view line, const ServedFormat& format) {
  const json root = parse_json(line);
  return Line(root, format).documents();
}

ServedFormat detect_format(std::string_view line, ServedFormat format) {
  const json root = parse_json(line);
  const ServedFields given = format.fields;
  if (given.routing.empty()) format.fields = known_fields(root, given);
  const bool may_drop_ids = given.token_ids.empty();
  try {
    Line first(root, format);
    first.documents();
    return first.format();
  } catch (const LineFault&) {
    if (!may_drop_ids || !format.has_ids()) throw;
  }
  format.fields.prompt_ids.clear();
  format.fields.token_ids.clear();
  Line first(root, format);
  first.documents();
  return first.format();
}

}  // namespace switchyard
