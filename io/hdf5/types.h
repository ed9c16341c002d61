#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "io/hdf5/handle.h"

namespace switchyard::hdf5 {

/// IEEE binary16, little-endian: what numpy calls float16.
Type half_type();
/// UTF-8 of `bytes` bytes, padded with NULs; H5T_VARIABLE for strings of any length.
Type string_type(std::size_t bytes);

/// The type of T in memory and, little-endian, in files.
template <typename T>
hid_t memory_type();
template <typename T>
hid_t file_type();

/// A value of a file type that no record holds: all bits set for unsigned, the least value for signed, NaN for floating
/// point, an empty string.
std::vector<std::byte> impossible_value(hid_t file_type);
/// Sets it as the fill value of data sets made with these properties.
void set_impossible_fill(const Properties& creation, hid_t file_type);

// clang-format off
template <> inline hid_t memory_type<std::uint8_t>() { return H5T_NATIVE_UINT8; }
template <> inline hid_t memory_type<std::uint16_t>() { return H5T_NATIVE_UINT16; }
template <> inline hid_t memory_type<std::uint32_t>() { return H5T_NATIVE_UINT32; }
template <> inline hid_t memory_type<std::uint64_t>() { return H5T_NATIVE_UINT64; }
template <> inline hid_t memory_type<std::int16_t>() { return H5T_NATIVE_INT16; }
template <> inline hid_t memory_type<std::int32_t>() { return H5T_NATIVE_INT32; }
template <> inline hid_t memory_type<std::int64_t>() { return H5T_NATIVE_INT64; }
template <> inline hid_t memory_type<float>() { return H5T_NATIVE_FLOAT; }
template <> inline hid_t memory_type<double>() { return H5T_NATIVE_DOUBLE; }
template <> inline hid_t file_type<std::uint8_t>() { return H5T_STD_U8LE; }
template <> inline hid_t file_type<std::uint16_t>() { return H5T_STD_U16LE; }
template <> inline hid_t file_type<std::uint32_t>() { return H5T_STD_U32LE; }
template <> inline hid_t file_type<std::uint64_t>() { return H5T_STD_U64LE; }
template <> inline hid_t file_type<std::int16_t>() { return H5T_STD_I16LE; }
template <> inline hid_t file_type<std::int32_t>() { return H5T_STD_I32LE; }
template <> inline hid_t file_type<std::int64_t>() { return H5T_STD_I64LE; }
template <> inline hid_t file_type<float>() { return H5T_IEEE_F32LE; }
template <> inline hid_t file_type<double>() { return H5T_IEEE_F64LE; }
// clang-format on

}  // namespace switchyard::hdf5
