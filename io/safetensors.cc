#include "io/safetensors.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <system_error>
#include <tuple>
#include <unordered_set>
#include <utility>

#include "io/durable.h"
#include "io/strict_json.h"
#include "parallel/error.h"

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian and is not swapped here");

namespace switchyard {
namespace {

constexpr std::size_t kLengthBytes = 8;
constexpr std::uint64_t kMaxHeader = 100'000'000;
constexpr auto kMaxInt64 = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
constexpr const char* kCopyAgain = "the file is damaged or incomplete: copy it again";

struct Dtype {
  std::string_view name;
  std::uint64_t bytes;  // of one element; 0: elements share a byte
};
constexpr std::array<Dtype, 22> kDtypes = {{
    {"BOOL", 1},        {"U8", 1},          {"I8", 1},      {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"F8_E8M0", 1},
    {"F8_E4M3FNUZ", 1}, {"F8_E5M2FNUZ", 1}, {"I16", 2},     {"U16", 2},     {"F16", 2},     {"BF16", 2},
    {"I32", 4},         {"U32", 4},         {"F32", 4},     {"C64", 8},     {"F64", 8},     {"I64", 8},
    {"U64", 8},         {"F4", 0},          {"F6_E2M3", 0}, {"F6_E3M2", 0},
}};

struct Entry {
  std::string name, dtype;
  std::vector<std::int64_t> shape;
  std::vector<std::uint64_t> offsets;  // [begin, end) in the data
};

std::string to_string(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (const std::int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

/// Takes the header's JSON as it is parsed. Each callback accepts what the format allows at its place or refuses, which
/// ends the parse, so that a hostile header costs no more than reading it.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::vector<Entry> take_entries() { return std::move(entries_); }
  const std::string& fault() const { return fault_; }

  bool start_object(std::size_t /*size*/) override {
    if (place_ == Place::outside) {
      place_ = Place::header;
    } else if (place_ == Place::header) {
      place_ = key_ == kMetadata ? Place::metadata : Place::tensor;
      if (place_ == Place::tensor) entries_.emplace_back().name = key_;
      fields_.clear();
    } else {
      return unexpected();
    }
    return true;
  }

  bool key(std::string& key) override {
    if (place_ == Place::header) {
      key_ = key;
      return names_.insert(key).second || refuse("the name " + quote_name(key) + " is given twice");
    }
    if (place_ == Place::tensor && key != "dtype" && key != "shape" && key != "data_offsets") {
      return refuse("tensor " + quote_name(key_) + " has an unknown field " + quote_name(key));
    }
    field_ = key;
    const std::string owner = place_ == Place::tensor ? "tensor " + quote_name(key_) : key_;
    return fields_.insert(key).second || refuse(owner + ": the key " + quote_name(key) + " is given twice");
  }

  bool end_object() override {
    if (place_ == Place::tensor && fields_.size() != 3) {
      return refuse("tensor " + quote_name(key_) + " lacks one of dtype, shape, data_offsets");
    }
    place_ = place_ == Place::header ? Place::outside : Place::header;
    return true;
  }

  bool start_array(std::size_t /*size*/) override {
    if (place_ != Place::tensor || field_ == "dtype") return unexpected();
    place_ = field_ == "shape" ? Place::shape : Place::offsets;
    return true;
  }

  bool end_array() override {
    if (place_ == Place::offsets && entries_.back().offsets.size() != 2) return unexpected();
    place_ = Place::tensor;
    return true;
  }

  bool string(std::string& text) override {
    if (place_ == Place::metadata) return true;
    if (place_ != Place::tensor || field_ != "dtype") return unexpected();
    entries_.back().dtype = text;
    return true;
  }

  bool number_unsigned(std::uint64_t number) override {
    if (place_ == Place::shape && number <= kMaxInt64) {
      entries_.back().shape.push_back(static_cast<std::int64_t>(number));
    } else if (place_ == Place::offsets) {
      entries_.back().offsets.push_back(number);
    } else {
      return unexpected();
    }
    return true;
  }

  bool null() override { return unexpected(); }
  bool boolean(bool /*value*/) override { return unexpected(); }
  bool number_integer(std::int64_t /*value*/) override { return unexpected(); }
  bool number_float(double /*value*/, const std::string& /*text*/) override { return unexpected(); }
  bool binary(binary_t& /*value*/) override { return unexpected(); }
  bool parse_error(std::size_t byte, const std::string& /*token*/,
                   const nlohmann::json::exception& /*error*/) override {
    return refuse("the header is not valid JSON at its byte " + std::to_string(byte));
  }

 private:
  enum class Place { outside, header, metadata, tensor, shape, offsets };
  static constexpr std::string_view kMetadata = "__metadata__";

  bool refuse(std::string fault) {
    fault_ = std::move(fault);
    return false;
  }

  bool unexpected() {
    const std::string tensor = "tensor " + quote_name(key_);
    if (place_ == Place::tensor && field_ == "dtype") return refuse(tensor + ": dtype must be a string");
    if (place_ == Place::shape || (place_ == Place::tensor && field_ == "shape")) {
      return refuse(tensor + ": shape must be a list of integers from 0 to 2^63 - 1");
    }
    if (place_ == Place::offsets || place_ == Place::tensor) {
      return refuse(tensor + ": data_offsets must be two integers from 0");
    }
    if (place_ == Place::metadata || key_ == kMetadata) return refuse("__metadata__ must map strings to strings");
    return refuse(tensor + " is not described by an object");
  }

  Place place_ = Place::outside;
  std::string key_, field_;  // of the header and of the object in it
  std::unordered_set<std::string> names_, fields_;
  std::vector<Entry> entries_;
  std::string fault_;
};

/// The length field and the header, checked against the file's size.
std::span<const std::byte> header_part(std::span<const std::byte> file, const std::string& where) {
  if (file.size() < kLengthBytes) {
    throw Error("truncated header: " + std::to_string(file.size()) + " bytes, and the header's length takes 8", where,
                kCopyAgain);
  }
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), kLengthBytes);
  if (length > kMaxHeader) {
    throw Error("its header would take " + std::to_string(length) + " bytes, above the format's 100000000", where,
                "this is not a safetensors file");
  }
  if (length > file.size() - kLengthBytes) {
    throw Error("truncated header: " + std::to_string(length) + " bytes are announced, " +
                    std::to_string(file.size() - kLengthBytes) + " are there",
                where, kCopyAgain);
  }
  if (length == 0 || file[kLengthBytes] != std::byte{'{'}) {
    throw Error("the header does not begin with '{'", where, "this is not a safetensors file");
  }
  return file.first(kLengthBytes + length);
}

std::vector<Entry> read_header(std::span<const std::byte> header, const std::string& where) {
  const std::span<const std::byte> json = header.subspan(kLengthBytes);
  const auto* const text = reinterpret_cast<const char*>(json.data());
  // The parser takes a zero byte for the end of its input: anything could hide behind it.
  if (const void* const zero = std::memchr(text, 0, json.size())) {
    throw Error("a zero byte in the header at its byte " + std::to_string(static_cast<const char*>(zero) - text), where,
                kCopyAgain);
  }
  HeaderReader reader;
  if (!nlohmann::json::sax_parse(text, text + json.size(), &reader)) throw Error(reader.fault(), where, kCopyAgain);
  return reader.take_entries();
}

/// Bytes of an element. Throws Error naming tensor and dtype.
std::uint64_t element_bytes(const Entry& entry, const std::string& where) {
  const auto* const found =
      std::find_if(kDtypes.begin(), kDtypes.end(), [&](const Dtype& d) { return d.name == entry.dtype; });
  const std::string owner = "tensor " + quote_name(entry.name);
  if (found == kDtypes.end()) throw Error(owner + " has the unknown dtype " + quote_name(entry.dtype), where);
  if (found->bytes == 0) {
    throw Error(owner + " has the sub-byte dtype " + quote_name(entry.dtype) + ", which is not supported", where,
                "convert the checkpoint to BF16");
  }
  return found->bytes;
}

/// Elements x element size, or nothing when it does not fit 63 bits. Zeros count only at the end, so that the product
/// of any of the dimensions fits too.
std::optional<std::uint64_t> checked_bytes(const std::vector<std::int64_t>& shape, std::uint64_t bytes_per_element) {
  std::uint64_t bytes = bytes_per_element;
  for (const std::int64_t size : shape) {
    const auto factor = static_cast<std::uint64_t>(std::max<std::int64_t>(size, 1));
    if (bytes > kMaxInt64 / factor) return std::nullopt;
    bytes *= factor;
  }
  return std::find(shape.begin(), shape.end(), 0) == shape.end() ? bytes : 0;
}

void check_size(const Entry& entry, const std::string& where) {
  const auto bytes = checked_bytes(entry.shape, element_bytes(entry, where));
  const std::string owner = "tensor " + quote_name(entry.name);
  const std::string shape = entry.dtype + " " + to_string(entry.shape);
  if (!bytes) throw Error(owner + ": the size of " + shape + " overflows", where, kCopyAgain);
  const std::uint64_t begin = entry.offsets[0];
  const std::uint64_t end = entry.offsets[1];
  if (begin > end) {
    throw Error(owner + ": its data end at " + std::to_string(end) + ", before they begin at " + std::to_string(begin),
                where, kCopyAgain);
  }
  if (end - begin != *bytes) {
    throw Error(owner + ": " + shape + " takes " + std::to_string(*bytes) + " bytes, and data_offsets span " +
                    std::to_string(end - begin),
                where, kCopyAgain);
  }
}

/// Entries sorted by their data must tile `size` bytes.
void check_tiling(const std::vector<Entry>& entries, std::uint64_t size, const std::string& where) {
  std::uint64_t end = 0;
  for (const Entry& entry : entries) {
    const std::uint64_t begin = entry.offsets[0];
    const std::string owner = "tensor " + quote_name(entry.name);
    if (begin < end) {
      throw Error(owner + " overlaps the tensor before it by " + std::to_string(end - begin) + " bytes", where,
                  kCopyAgain);
    }
    if (begin > end) {
      throw Error("a hole of " + std::to_string(begin - end) + " bytes in the data before " + owner, where, kCopyAgain);
    }
    end = entry.offsets[1];
    if (end > size) {
      throw Error("truncated data: " + owner + " ends at byte " + std::to_string(end) + " of " + std::to_string(size),
                  where, kCopyAgain);
    }
  }
  if (end < size) {
    throw Error(std::to_string(size - end) + " trailing bytes after the last tensor's data", where, kCopyAgain);
  }
}

// from_half_bits without branches or a call, so that loops vectorise. Its one subtraction is of normal numbers, so that
// flush-to-zero modes do not matter.
float half_to_float(std::uint16_t half) {
  constexpr std::uint32_t kRebias = 112U << 23U;
  constexpr std::uint32_t kSmallestNormal = 113U << 23U;  // 2^-14
  const std::uint32_t magnitude = (half & 0x7fffU) << 13U;
  const std::uint32_t exponent = half & 0x7c00U;
  const auto subnormal = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude | kSmallestNormal) -
                                                      std::bit_cast<float>(kSmallestNormal));
  // Masks, because the compiler turns a choice back into a branch around the subtraction.
  const std::uint32_t is_subnormal = 0U - static_cast<std::uint32_t>(exponent == 0);
  const std::uint32_t is_special = 0U - static_cast<std::uint32_t>(exponent == 0x7c00U);
  const std::uint32_t bits =
      (subnormal & is_subnormal) | ((magnitude + kRebias + (kRebias & is_special)) & ~is_subnormal);
  return std::bit_cast<float>(bits | (half & 0x8000U) << 16U);
}

struct Half {
  std::uint16_t bits;
  explicit operator float() const { return half_to_float(bits); }
};

template <typename From, typename To>
void convert(const std::byte* from, To* to, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    std::array<std::byte, sizeof(From)> raw;  // the file's data need not be aligned
    std::memcpy(raw.data(), from + i * static_cast<std::int64_t>(sizeof(From)), sizeof(From));
    to[i] = To(static_cast<float>(std::bit_cast<From>(raw)));
  }
}

template <typename From, typename To>
void copy_elements(const std::byte* from, To* to, std::int64_t n) {
  constexpr std::int64_t kChunk = 1 << 16;
  const std::int64_t chunks = (n + kChunk - 1) / kChunk;
#pragma omp parallel for schedule(static) if (chunks > 1)
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    const std::int64_t first = chunk * kChunk;
    const std::int64_t count = std::min(kChunk, n - first);
    const std::byte* const source = from + first * static_cast<std::int64_t>(sizeof(From));
    if constexpr (std::is_same_v<From, To>) {
      std::memcpy(to + first, source, static_cast<std::size_t>(count) * sizeof(To));
    } else {
      convert<From>(source, to + first, count);
    }
  }
}

template <typename To>
void copy_as(const StoredTensor& stored, std::int64_t first, Tensor& to) {
  const std::int64_t n = to.rows() * to.cols();
  if (n == 0) return;
  const std::byte* const data = stored.data.data();
  if (stored.dtype == "F32") {
    copy_elements<float>(data + first * 4, to.data<To>(), n);
  } else if (stored.dtype == "BF16") {
    copy_elements<Bf16>(data + first * 2, to.data<To>(), n);
  } else {
    copy_elements<Half>(data + first * 2, to.data<To>(), n);
  }
}

/// Elements [first, first + rows * cols) as [rows, cols].
Tensor copy_range(const StoredTensor& stored, DType type, std::int64_t first, std::int64_t rows, std::int64_t cols,
                  Device memory) {
  if (stored.dtype != "F32" && stored.dtype != "BF16" && stored.dtype != "F16") {
    throw Error(
        "tensor " + quote_name(stored.name) + " is " + stored.dtype + "; F32, BF16 and F16 can be read as numbers", {},
        "convert the checkpoint to BF16");
  }
  Tensor result(type, rows, cols, memory);
  if (type == DType::f32) {
    copy_as<float>(stored, first, result);
  } else {
    copy_as<Bf16>(stored, first, result);
  }
  return result;
}

std::int64_t product(std::span<const std::int64_t> sizes) {
  std::int64_t result = 1;
  for (const std::int64_t size : sizes) result *= size;
  return result;
}

[[noreturn]] void fail_writing(const std::string& action, const std::filesystem::path& path) {
  const int code = errno;
  throw Error(action + ": " + std::generic_category().message(code), path.string(),
              code == ENOSPC || code == EDQUOT ? "make room on the disk" : "");
}

std::uint64_t bytes_of(const TensorToWrite& tensor, DType type) {
  const auto bytes = checked_bytes(tensor.shape, static_cast<std::uint64_t>(size_of(type)));
  if (!bytes || std::any_of(tensor.shape.begin(), tensor.shape.end(), [](std::int64_t size) { return size < 0; })) {
    throw Error("tensor " + quote_name(tensor.name) + " cannot have the shape " + to_string(tensor.shape));
  }
  return *bytes;
}

/// Length field and header, padded so that the data begin on a cache line.
std::string compose_header(DType type, const std::vector<TensorToWrite>& tensors, const std::string& where) {
  nlohmann::json header;
  header["__metadata__"] = {{"format", "pt"}};
  std::uint64_t offset = 0;
  for (const TensorToWrite& tensor : tensors) {
    if (header.contains(tensor.name))
      throw Error("tensor " + quote_name(tensor.name) + " is to be written twice", where);
    const std::uint64_t end = offset + bytes_of(tensor, type);
    header[tensor.name] = {
        {"dtype", type == DType::f32 ? "F32" : "BF16"}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  constexpr std::size_t kAlignment = 64;
  text.append((kAlignment - (kLengthBytes + text.size()) % kAlignment) % kAlignment, ' ');
  const std::uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), kLengthBytes) + text;
}

}  // namespace

std::vector<StoredTensor> parse_safetensors(std::span<const std::byte> bytes, const std::string& where) {
  const std::span<const std::byte> header = header_part(bytes, where);
  const std::span<const std::byte> data = bytes.subspan(header.size());
  std::vector<Entry> entries = read_header(header, where);
  for (const Entry& entry : entries) check_size(entry, where);
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return std::tie(a.offsets, a.name) < std::tie(b.offsets, b.name); });
  check_tiling(entries, data.size(), where);

  std::vector<StoredTensor> tensors;
  tensors.reserve(entries.size());
  for (Entry& entry : entries) {
    const std::span<const std::byte> part = data.subspan(entry.offsets[0], entry.offsets[1] - entry.offsets[0]);
    tensors.push_back({std::move(entry.name), std::move(entry.dtype), std::move(entry.shape), part});
  }
  return tensors;
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : file_(path), tensors_(parse_safetensors(file_.bytes(), path.string())) {
  header_size_ = header_part(file_.bytes(), path.string()).size();
  index_.reserve(tensors_.size());
  for (std::size_t i = 0; i < tensors_.size(); ++i) index_.emplace(tensors_[i].name, i);
}

const StoredTensor* SafetensorsFile::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

Tensor to_tensor(const StoredTensor& stored, DType type, Device memory) {
  const std::span<const std::int64_t> shape = stored.shape;
  if (shape.size() < 2) return copy_range(stored, type, 0, 1, product(shape), memory);
  return copy_range(stored, type, 0, shape[0], product(shape.subspan(1)), memory);
}

Tensor to_tensor(const StoredTensor& stored, DType type, std::int64_t begin, std::int64_t end, Device memory) {
  const std::span<const std::int64_t> shape = stored.shape;
  const std::int64_t rows = shape.empty() ? 1 : product(shape.first(shape.size() - 1));
  const std::int64_t cols = shape.empty() ? 1 : shape.back();
  if (begin < 0 || begin > end || end > rows) {
    throw Error("rows " + std::to_string(begin) + " to " + std::to_string(end) + " of tensor " +
                quote_name(stored.name) + " were asked for; its shape " + to_string(stored.shape) + " has " +
                std::to_string(rows));
  }
  return copy_range(stored, type, begin * cols, end - begin, cols, memory);
}

namespace detail {

SafetensorsWriter::SafetensorsWriter(std::filesystem::path path, DType type, const std::vector<TensorToWrite>& tensors)
    : path_(std::move(path)), part_(path_), type_(type) {
  part_ += ".part";
  const std::string header = compose_header(type, tensors, path_.string());
  for (const TensorToWrite& tensor : tensors) missing_ += bytes_of(tensor, type);
  descriptor_ = ::open(part_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail_writing("cannot create", part_);
  try {
    write(std::as_bytes(std::span(header)));
  } catch (...) {
    discard();
    throw;
  }
}

SafetensorsWriter::~SafetensorsWriter() { discard(); }

void SafetensorsWriter::append(const TensorToWrite& declared, const Tensor& values) {
  const auto bytes = static_cast<std::uint64_t>(values.rows() * values.row_bytes());
  if (values.dtype() != type_ || bytes != bytes_of(declared, type_) || bytes > missing_) {
    throw Error("the values of tensor " + quote_name(declared.name) + " are not of the declared type and shape " +
                    to_string(declared.shape),
                path_.string());
  }
  write({values.bytes(), bytes});
  missing_ -= bytes;
}

void SafetensorsWriter::finish() {
  if (missing_ != 0) {
    throw Error(std::to_string(missing_) + " bytes of data were declared and not written", path_.string());
  }
  if (::fsync(descriptor_) != 0) fail_writing("cannot write", part_);
  rename_durably(part_, path_);
  ::close(std::exchange(descriptor_, -1));
}

void SafetensorsWriter::write(std::span<const std::byte> bytes) {
  constexpr std::size_t kMostAtOnce = std::size_t{1} << 30U;
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), std::min(bytes.size(), kMostAtOnce));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail_writing("cannot write", part_);
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

void SafetensorsWriter::discard() noexcept {
  if (descriptor_ < 0) return;
  ::close(std::exchange(descriptor_, -1));
  ::unlink(part_.c_str());
}

}  // namespace detail
}  // namespace switchyard
