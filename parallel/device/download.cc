#include "parallel/device/download.h"

#include <cstddef>
#include <utility>

#include "parallel/device/device_memory.h"

namespace switchyard {
namespace {

Event start_copy(Tensor& to, TensorView from) {
  download_stream().wait_for(compute_stream().record());
  copy_in(download_stream(), to.bytes(), from.bytes(), static_cast<std::size_t>(from.rows() * from.row_bytes()));
  return download_stream().record();
}

}  // namespace

const Stream& download_stream() {
  static const Stream& stream = *new Stream;  // as long as the process
  return stream;
}

Download::Download(TensorView from)
    : to_(from.dtype(), from.rows(), from.cols(), Device::pinned), done_(start_copy(to_, from)) {}

Download::Download(Tensor from) : Download(from.view()) { from_ = std::move(from); }

Download::Download(const DeviceArray<std::int32_t>& from)
    : Download(TensorView{from.data(), DType::f32, 1, static_cast<std::int64_t>(from.size()), Device::gpu}) {}

Tensor Download::finish() && {
  done_.wait();
  from_ = {};
  return std::move(to_);
}

}  // namespace switchyard
