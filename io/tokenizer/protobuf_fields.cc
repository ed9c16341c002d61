#include "io/tokenizer/protobuf_fields.h"

namespace switchyard {
namespace {

enum class WireType : std::uint32_t { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };

}  // namespace

std::optional<std::uint64_t> ProtobufFields::read_varint() {
  std::uint64_t value = 0;
  for (unsigned shift = 0; shift < 64; shift += 7) {
    if (rest_.empty()) return std::nullopt;
    const auto byte = static_cast<unsigned char>(rest_.front());
    rest_.remove_prefix(1);
    value |= static_cast<std::uint64_t>(byte & 0x7FU) << shift;
    if ((byte & 0x80U) == 0) return value;
  }
  return std::nullopt;
}

std::optional<std::string_view> ProtobufFields::take(std::uint64_t count) {
  if (count > rest_.size()) return std::nullopt;
  const std::string_view bytes = rest_.substr(0, static_cast<std::size_t>(count));
  rest_.remove_prefix(bytes.size());
  return bytes;
}

std::optional<ProtobufFields::Field> ProtobufFields::next() {
  const std::optional<std::uint64_t> tag = read_varint();
  if (!tag) return std::nullopt;
  Field field;
  field.number = static_cast<std::uint32_t>(*tag >> 3U);
  std::optional<std::uint64_t> length;
  switch (static_cast<WireType>(*tag & 7U)) {
    case WireType::varint: {
      const std::optional<std::uint64_t> value = read_varint();
      if (!value) return std::nullopt;
      field.varint = *value;
      return field;
    }
    case WireType::fixed64:
      length = 8;
      break;
    case WireType::fixed32:
      length = 4;
      break;
    case WireType::bytes:
      length = read_varint();
      break;
  }
  if (!length) return std::nullopt;
  const std::optional<std::string_view> bytes = take(*length);
  if (!bytes) return std::nullopt;
  field.bytes = *bytes;
  return field;
}

}  // namespace switchyard
