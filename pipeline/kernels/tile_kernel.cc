#include "pipeline/kernels/tile_kernel.h"

#include <omp.h>

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "parallel/error.h"
#include "pipeline/kernels/amx.h"
#include "pipeline/kernels/strips.h"

namespace switchyard {

namespace {

using dnnl::memory;

const dnnl::engine& cpu() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

const dnnl::stream& thread_stream() {
  thread_local const dnnl::stream stream(cpu());
  return stream;
}

memory::data_type type_of(DType type) { return type == DType::f32 ? memory::data_type::f32 : memory::data_type::bf16; }

memory::desc right_desc(const TileShape& s) {
  const memory::dims dims = {s.k, s.n};
  switch (s.right) {
    case RightLayout::rows:
      return {dims, type_of(s.in), memory::dims{s.n, 1}};
    case RightLayout::transposed:
      return {dims, type_of(s.in), memory::dims{1, s.k}};
    case RightLayout::packed:
      break;
  }
  // The layout is the one that a plain f32 result prefers; kernels with a bf16 result take it as given, so that a
  // weight is packed once.
  if (s.out == DType::f32) return {dims, type_of(s.in), memory::format_tag::any};
  TileShape plain = s;
  plain.out = DType::f32;
  return TileKernel::get(plain).right_layout();
}

/// oneDNN splits work by the number of threads it sees when a primitive is made.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
};

Engine engine_of(const TileShape& s) {
  if (s.in == DType::f32) return Engine::strips;
  return has_amx() && fits_amx(s.m, s.n, s.k) ? Engine::amx : Engine::onednn;
}

std::int64_t packed_bytes(const TileShape& s, Engine engine) {
  return engine == Engine::amx ? amx_packed_bytes(s.n, s.k)
                               : strip_floats(s.n, s.k) * static_cast<std::int64_t>(sizeof(float));
}

/// Packs a right-hand matrix that lies as `layout` says, for one of our own engines.
void pack(const TileShape& s, Engine engine, RightLayout layout, const void* right, std::byte* packed) {
  const bool rows = layout == RightLayout::rows;
  if (engine == Engine::amx) {
    (rows ? amx_pack_rows : amx_pack_columns)(static_cast<const Bf16*>(right), s.n, s.k, packed);
  } else {
    (rows ? pack_strips_of_rows : pack_strips_of_columns)(static_cast<const float*>(right), s.n, s.k,
                                                          reinterpret_cast<float*>(packed));
  }
}

/// By one of our own engines.
void multiply(const TileShape& s, Engine engine, const void* left, const void* packed, void* out) {
  if (engine == Engine::amx) {
    amx_multiply(static_cast<const Bf16*>(left), static_cast<const std::byte*>(packed), amx_stride(s.k), s.m, s.n, s.k,
                 out, s.out);
  } else {
    multiply_strips(static_cast<const float*>(left), static_cast<const float*>(packed), s.m, s.n, s.k,
                    static_cast<float*>(out));
  }
}

struct AlignedBuffer {
  struct Free {
    void operator()(std::byte* p) const { ::operator delete[](p, std::align_val_t{64}); }
  };
  std::unique_ptr<std::byte[], Free> data;
  std::size_t size = 0;
};

}  // namespace

const TileKernel& TileKernel::get(const TileShape& shape) {
  static std::recursive_mutex mutex;  // a packed shape asks for the plain one's layout
  static std::map<TileShape, std::unique_ptr<const TileKernel>> kernels;
  const std::lock_guard lock(mutex);
  const auto found = kernels.find(shape);
  if (found != kernels.end()) return *found->second;
  std::unique_ptr<const TileKernel> made(new TileKernel(shape));
  return *kernels.emplace(shape, std::move(made)).first->second;
}

TileKernel::TileKernel(const TileShape& shape) : shape_(shape), engine_(engine_of(shape)) {
  if (engine_ != Engine::onednn) {
    right_ = memory::desc({packed_bytes(shape, engine_)}, memory::data_type::u8, memory::dims{1});
    return;
  }
  const OneThread one_thread;
  try {
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    left_ = memory::desc({shape.m, shape.k}, type_of(shape.in), memory::dims{shape.k, 1});
    out_ = memory::desc({shape.m, shape.n}, type_of(shape.out), memory::dims{shape.n, 1});
    const dnnl::matmul::primitive_desc description({left_, right_desc(shape), out_}, attributes, cpu());
    right_ = description.weights_desc();
    scratch_ = description.scratchpad_desc();
    matmul_ = dnnl::matmul(description);
  } catch (const dnnl::error& error) {
    throw Error(std::string("oneDNN has no matmul for ") + (shape.in == DType::bf16 ? "bf16" : "f32") + " [" +
                    std::to_string(shape.m) + ", " + std::to_string(shape.k) + "] x [" + std::to_string(shape.k) +
                    ", " + std::to_string(shape.n) + "]: " + error.what(),
                "", "use --precision f32");
  }
}

/// oneDNN's handles on one call's operands; making them costs as much as a small product.
struct TileKernel::Arguments {
  memory left, right, out, scratch;
};

TileKernel::Arguments& TileKernel::thread_arguments() const {
  thread_local std::unordered_map<const TileKernel*, Arguments> known;  // kernels are never freed
  const auto [place, fresh] = known.try_emplace(this);
  if (fresh) {
    place->second = {.left = memory(left_, cpu(), nullptr),
                     .right = {},
                     .out = memory(out_, cpu(), nullptr),
                     .scratch = memory(scratch_, cpu(), nullptr)};
    if (shape_.right != RightLayout::packed) place->second.right = memory(right_, cpu(), nullptr);
  }
  return place->second;
}

void TileKernel::run(const void* left, const memory& right, void* out) const {
  if (engine_ != Engine::onednn) return multiply(shape_, engine_, left, right.get_data_handle(), out);
  execute(thread_arguments(), left, right.get(), out);
}

void TileKernel::run(const void* left, const void* right, void* out) const {
  if (engine_ != Engine::onednn) {
    std::byte* packed = thread_scratch(Scratch::library, static_cast<std::size_t>(packed_bytes(shape_, engine_)));
    pack(shape_, engine_, shape_.right, right, packed);
    return multiply(shape_, engine_, left, packed, out);
  }
  Arguments& arguments = thread_arguments();
  arguments.right.set_data_handle(const_cast<void*>(right));
  execute(arguments, left, arguments.right.get(), out);
}

void TileKernel::execute(Arguments& arguments, const void* left, dnnl_memory_t right, void* out) const {
  arguments.left.set_data_handle(const_cast<void*>(left));
  arguments.out.set_data_handle(out);
  arguments.scratch.set_data_handle(thread_scratch(Scratch::library, scratch_.get_size()));
  const std::array<dnnl_exec_arg_t, 4> list = {{{DNNL_ARG_SRC, arguments.left.get()},
                                                {DNNL_ARG_WEIGHTS, right},
                                                {DNNL_ARG_DST, arguments.out.get()},
                                                {DNNL_ARG_SCRATCHPAD, arguments.scratch.get()}}};
  dnnl::error::wrap_c_api(dnnl_primitive_execute(matmul_.get(), thread_stream().get(), list.size(), list.data()),
                          "a matmul failed");
}

memory packed_memory(const TileKernel& kernel, std::byte* room) { return {kernel.right_layout(), cpu(), room}; }

void pack_right(const TileKernel& kernel, TensorView weights, memory& packed) {
  const TileShape& s = kernel.shape();
  if (kernel.engine() != Engine::onednn) {
    pack(s, kernel.engine(), RightLayout::transposed, weights.bytes(),
         static_cast<std::byte*>(packed.get_data_handle()));
    return;
  }
  const OneThread one_thread;
  memory plain(memory::desc({s.k, s.n}, type_of(s.in), memory::dims{1, s.k}), cpu(),
               const_cast<std::byte*>(weights.bytes()));
  dnnl::stream stream = thread_stream();
  dnnl::reorder(plain, packed).execute(stream, plain, packed);
  stream.wait();
}

std::byte* thread_scratch(Scratch slot, std::size_t bytes) {
  thread_local std::array<AlignedBuffer, 5> buffers;
  AlignedBuffer& buffer = buffers[static_cast<std::size_t>(slot)];
  if (buffer.size < bytes || buffer.data == nullptr) {
    buffer.size = std::max<std::size_t>(bytes, 4096);
    buffer.data.reset(static_cast<std::byte*>(::operator new[](buffer.size, std::align_val_t{64})));
  }
  return buffer.data.get();
}

}  // namespace switchyard
