#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard {

/// A prompt template: text with "{NAME}" places; "{{" and "}}" are braces.
class PromptTemplate {
 public:
  PromptTemplate() = default;
  /// Throws UsageError at an unbalanced brace or an empty name.
  explicit PromptTemplate(std::string_view text);

  bool empty() const { return parts_.empty(); }
  /// The names in it, each once, in order of appearance.
  std::vector<std::string> names() const;
  /// The text with every place filled by `value(name)`.
  std::string fill(const std::function<std::string_view(const std::string&)>& value) const;

 private:
  struct Part {
    bool is_name = false;
    std::string text;
  };
  void add_literal(char byte);

  std::vector<Part> parts_;
};

}  // namespace switchyard
