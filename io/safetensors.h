#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/mapped_file.h"
#include "parallel/tensor.h"

namespace switchyard {

/// One tensor of a safetensors file, still in its file's mapping.
struct StoredTensor {
  std::string name;
  std::string dtype;  // as the format spells it: "F32", "BF16", "F16", "I64", ...
  std::vector<std::int64_t> shape;
  std::span<const std::byte> data;
};

/// The tensors of a safetensors file in memory, in the order of their data; they borrow `bytes`. Only the header is
/// read. It is checked against the format's specification: length within the file and at most 100 MB, one JSON object,
/// no duplicate keys, __metadata__ from strings to strings, known dtypes, begin <= end, sizes that follow from shape
/// and dtype without overflow, no overlap, no holes, and the last byte of data at the file's end. Data need not be
/// aligned. Throws Error naming `where`, the tensor and the fault.
std::vector<StoredTensor> parse_safetensors(std::span<const std::byte> bytes, const std::string& where);

/// A safetensors file, checked by parse_safetensors.
class SafetensorsFile {
 public:
  /// Throws Error naming the file, the tensor and the fault.
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return file_.path(); }
  std::span<const StoredTensor> tensors() const { return tensors_; }
  /// The file's first bytes: the header's length and the header.
  std::span<const std::byte> header() const { return file_.bytes().first(header_size_); }
  /// What follows it: the tensors' data, end to end.
  std::span<const std::byte> data() const { return file_.bytes().subspan(header_size_); }
  /// nullptr when there is none of that name.
  const StoredTensor* find(std::string_view name) const;

 private:
  MappedFile file_;
  std::size_t header_size_ = 0;        // bytes, its length field included
  std::vector<StoredTensor> tensors_;  // in the order of their data
  std::unordered_map<std::string_view, std::size_t> index_;
};

/// Copies a stored F32, BF16 or F16 tensor, converted to `type`, as [shape[0], product of the rest] ([1, n] for a
/// vector, [1, 1] for a scalar), into host memory, pinned or not. Throws Error naming the tensor and its dtype when it
/// is another.
Tensor to_tensor(const StoredTensor& stored, DType type, Device memory = Device::cpu);
/// The same for rows [begin, end) of the stored tensor seen as [product of all but the last dimension, last dimension]
/// ([1, n] for a vector). Throws Error when the rows are not all there.
Tensor to_tensor(const StoredTensor& stored, DType type, std::int64_t begin, std::int64_t end,
                 Device memory = Device::cpu);

/// What write_safetensors takes: filled on demand, one tensor at a time, so that a large file needs little memory.
struct TensorToWrite {
  std::string name;
  std::vector<std::int64_t> shape;
};
/// Writes F32 or BF16 tensors in the order given. `fill` returns the tensor's elements, `type`, any 2-d shape of the
/// right size. The file appears under its name only when it is whole. Throws Error naming the path, and the tensor when
/// `fill` returns another type or size than was declared.
template <typename Fill>
void write_safetensors(const std::filesystem::path& path, DType type, const std::vector<TensorToWrite>& tensors,
                       Fill fill);

namespace detail {
class SafetensorsWriter {
 public:
  SafetensorsWriter(std::filesystem::path path, DType type, const std::vector<TensorToWrite>& tensors);
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;
  void append(const TensorToWrite& declared, const Tensor& values);
  void finish();

 private:
  void write(std::span<const std::byte> bytes);
  void discard() noexcept;

  std::filesystem::path path_, part_;  // the file and its name until it is whole
  DType type_;
  int descriptor_ = -1;
  std::uint64_t missing_ = 0;  // bytes of data yet to come
};
}  // namespace detail

template <typename Fill>
void write_safetensors(const std::filesystem::path& path, DType type, const std::vector<TensorToWrite>& tensors,
                       Fill fill) {
  detail::SafetensorsWriter writer(path, type, tensors);
  for (const TensorToWrite& tensor : tensors) writer.append(tensor, fill(tensor));
  writer.finish();
}

}  // namespace switchyard
