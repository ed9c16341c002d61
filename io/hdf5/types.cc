#include "io/hdf5/types.h"

namespace switchyard::hdf5 {
namespace {

/// Little-endian quiet NaN of a binary16, binary32 or binary64.
std::vector<std::byte> quiet_nan(std::size_t bytes) {
  std::vector<std::byte> value(bytes);
  value[bytes - 1] = std::byte{0x7f};
  value[bytes - 2] = std::byte{bytes == 4 ? std::uint8_t{0xc0} : std::uint8_t{0xf8}};
  if (bytes == 2) value = {std::byte{0x00}, std::byte{0x7e}};
  return value;
}

}  // namespace

Type half_type() {
  Type type(check(H5Tcopy(H5T_IEEE_F32LE), "copy a type", "float16"));
  check(H5Tset_fields(type.id(), 15, 10, 5, 0, 10), "place the fields", "float16");
  check(H5Tset_size(type.id(), 2), "set the size", "float16");
  check(H5Tset_ebias(type.id(), 15), "set the exponent bias", "float16");
  return type;
}

Type string_type(std::size_t bytes) {
  Type type(check(H5Tcopy(H5T_C_S1), "copy a type", "string"));
  check(H5Tset_size(type.id(), bytes), "set the size", "string");
  check(H5Tset_cset(type.id(), H5T_CSET_UTF8), "set the character set", "string");
  if (bytes != H5T_VARIABLE) check(H5Tset_strpad(type.id(), H5T_STR_NULLPAD), "set the padding", "string");
  return type;
}

std::vector<std::byte> impossible_value(hid_t file_type) {
  const std::size_t bytes = H5Tget_size(file_type);
  switch (H5Tget_class(file_type)) {
    case H5T_INTEGER: {
      if (H5Tget_sign(file_type) == H5T_SGN_NONE) return std::vector<std::byte>(bytes, std::byte{0xff});
      std::vector<std::byte> least(bytes);
      least.back() = std::byte{0x80};
      return least;
    }
    case H5T_FLOAT:
      return quiet_nan(bytes);
    default:
      return std::vector<std::byte>(bytes);
  }
}

void set_impossible_fill(const Properties& creation, hid_t file_type) {
  const std::vector<std::byte> value = impossible_value(file_type);
  check(H5Pset_fill_value(creation.id(), file_type, value.data()), "set the fill value", "data set properties");
}

}  // namespace switchyard::hdf5
