#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace switchyard {

/// Walks the fields of one serialized protocol buffer message: enough to look up settings without its schema.
class ProtobufFields {
 public:
  explicit ProtobufFields(std::string_view message) : rest_(message) {}

  struct Field {
    std::uint32_t number = 0;
    std::uint64_t varint = 0;  // of varint fields
    std::string_view bytes;    // of length-delimited fields
  };
  /// The next field; nothing at the end, or where the message is malformed.
  std::optional<Field> next();

 private:
  std::optional<std::uint64_t> read_varint();
  std::optional<std::string_view> take(std::uint64_t count);

  std::string_view rest_;
};

}  // namespace switchyard
