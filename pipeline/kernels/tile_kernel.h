#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <dnnl.hpp>

#include "parallel/tensor.h"

/// The wrapper of oneDNN: nothing but pipeline/kernels' sources includes it.
namespace switchyard {

/// How the right-hand matrix of a product [m, k] x [k, n] lies in memory.
enum class RightLayout : std::uint8_t { packed, rows, transposed };  // the kernel's own | [k, n] | [n, k]

/// One product of fixed size, all operands dense. f32 products run on our own kernel (strips.h), and so do bf16 ones
/// that divide into AMX tiles, where the CPU has them (amx.h); other bf16 products run on oneDNN.
struct TileShape {
  std::int64_t m = 0, n = 0, k = 0;
  DType in = DType::f32;
  DType out = DType::f32;
  RightLayout right = RightLayout::packed;

  auto operator<=>(const TileShape&) const = default;
};

/// What multiplies.
enum class Engine : std::uint8_t { strips, amx, onednn };

/// A compiled product. Kept for the life of the process, because compiling costs far more than running. Compiled for
/// one thread: callers run tiles in parallel, and a tile's bits cannot depend on the number of threads.
class TileKernel {
 public:
  /// Compiles at the first call for a shape. Thread-safe.
  static const TileKernel& get(const TileShape& shape);

  const TileShape& shape() const { return shape_; }
  Engine engine() const { return engine_; }
  /// Layout of a packed right-hand matrix.
  dnnl::memory::desc right_layout() const { return right_; }

  /// out = left * right; left: [m, k], out: [m, n]. Any number of threads at once.
  void run(const void* left, const dnnl::memory& right, void* out) const;
  /// The same, for a right-hand matrix that is not packed.
  void run(const void* left, const void* right, void* out) const;

 private:
  struct Arguments;
  explicit TileKernel(const TileShape& shape);
  Arguments& thread_arguments() const;
  void execute(Arguments& arguments, const void* left, dnnl_memory_t right, void* out) const;

  TileShape shape_;
  Engine engine_;
  dnnl::memory::desc left_, right_, out_, scratch_;
  dnnl::matmul matmul_;
};

/// A right-hand matrix in `kernel`'s layout, of right_layout().get_size() bytes at `room`, which outlives it.
dnnl::memory packed_memory(const TileKernel& kernel, std::byte* room);
/// Packs a plain [n, k] matrix for `kernel` into such room.
void pack_right(const TileKernel& kernel, TensorView weights, dnnl::memory& packed);

/// Uninitialised memory of the calling thread, 64-byte aligned; each slot is one buffer, valid until the thread asks
/// for that slot again.
enum class Scratch : std::uint8_t { library, left, out, scores, probabilities };
std::byte* thread_scratch(Scratch slot, std::size_t bytes);

}  // namespace switchyard
