#pragma once

#include <cstddef>
#include <string_view>

namespace switchyard {

/// Whether a byte continues a UTF-8 character.
constexpr bool is_utf8_continuation(char byte) { return (static_cast<unsigned char>(byte) & 0xC0U) == 0x80U; }

/// The last place not behind `at` where no UTF-8 character is cut; `at` itself when the bytes around it are no UTF-8.
constexpr std::size_t utf8_floor(std::string_view text, std::size_t at) {
  if (at >= text.size()) return text.size();
  for (std::size_t back = 0; back <= 3 && back <= at; ++back) {
    if (!is_utf8_continuation(text[at - back])) return at - back;
  }
  return at;
}

}  // namespace switchyard
