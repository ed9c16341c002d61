#include "io/corpus/prompt_template.h"

#include <algorithm>

#include "parallel/error.h"

namespace switchyard {
namespace {

[[noreturn]] void fail(const std::string& what, std::size_t at) {
  throw UsageError(what + " at byte " + std::to_string(at + 1), "--prompt-template",
                   "names stand in braces, as in {text}; a brace itself is written twice, {{ or }}");
}

}  // namespace

PromptTemplate::PromptTemplate(std::string_view text) {
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char byte = text[i];
    const bool doubled = i + 1 < text.size() && text[i + 1] == byte;
    if (byte != '{' && byte != '}') {
      add_literal(byte);
    } else if (doubled) {
      add_literal(byte);
      ++i;
    } else if (byte == '}') {
      fail("a closing brace without an opening one", i);
    } else {
      const std::size_t close = text.find('}', i);
      if (close == std::string_view::npos) fail("a brace is not closed", i);
      const std::string_view name = text.substr(i + 1, close - i - 1);
      if (name.empty() || name.find('{') != std::string_view::npos) fail("no name between braces", i);
      parts_.push_back({true, std::string(name)});
      i = close;
    }
  }
}

void PromptTemplate::add_literal(char byte) {
  if (parts_.empty() || parts_.back().is_name) parts_.push_back({});
  parts_.back().text += byte;
}

std::vector<std::string> PromptTemplate::names() const {
  std::vector<std::string> names;
  for (const Part& part : parts_) {
    if (part.is_name && std::find(names.begin(), names.end(), part.text) == names.end()) names.push_back(part.text);
  }
  return names;
}

std::string PromptTemplate::fill(const std::function<std::string_view(const std::string&)>& value) const {
  std::string filled;
  for (const Part& part : parts_) filled += part.is_name ? value(part.text) : std::string_view(part.text);
  return filled;
}

}  // namespace switchyard
