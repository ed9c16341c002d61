/// libFuzzer target of the safetensors parser: any bytes either open or throw Error. Build, from the root:
///   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -I. tests/fuzz/safetensors_fuzz.cc io/safetensors.cc
///     io/{strict_json,mapped_file,durable}.cc parallel/{error,tensor,bf16}.cc
/// tests/io/safetensors_test.cc includes it and feeds it mutations of a valid file.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "io/safetensors.h"
#include "parallel/error.h"

namespace switchyard::fuzz {

/// Reads all of it, so that a sanitizer sees a range beyond the file.
inline unsigned touch(const StoredTensor& tensor) {
  unsigned sum = 0;
  for (const std::byte byte : tensor.data) sum += static_cast<unsigned>(byte);
  if (tensor.dtype == "F32" || tensor.dtype == "BF16" || tensor.dtype == "F16") {
    const Tensor all = to_tensor(tensor, DType::f32);
    const Tensor rounded = to_tensor(tensor, DType::bf16, 0, 0);
    if (all.rows() * all.cols() > 0) sum += static_cast<unsigned>(all.data<float>()[0] > 0);
    sum += static_cast<unsigned>(rounded.rows());
  }
  return sum;
}

/// True when the bytes are a safetensors file. Anything but Error escapes.
inline bool opens(const std::uint8_t* data, std::size_t size) {
  const auto* const first = reinterpret_cast<const std::byte*>(data);
  const std::vector<std::byte> exact(first, first + size);  // of the heap, so that a sanitizer knows its end
  try {
    std::size_t total = 0;
    for (const StoredTensor& tensor : parse_safetensors(exact, "fuzz")) {
      total += tensor.data.size();
      static_cast<void>(touch(tensor));
    }
    if (total > size) std::abort();  // tensors overlap
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace switchyard::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  switchyard::fuzz::opens(data, size);
  return 0;
}
