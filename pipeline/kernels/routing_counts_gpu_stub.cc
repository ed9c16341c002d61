#include "parallel/error.h"
#include "pipeline/kernels/cuda/routing_counts.h"

namespace switchyard::gpu {
namespace {

[[noreturn]] void no_cuda() { throw Error("this build of switchyard cannot use GPUs"); }

}  // namespace

RoutingCounts::RoutingCounts(const AccumulatorShape& /*shape*/, TokenTableChoice /*tables*/) { no_cuda(); }
void RoutingCounts::observe(const TokenView& /*tokens*/, std::span<const Routing> /*routing*/) { no_cuda(); }
void RoutingCounts::absorb(RoutingCounts& /*other*/) { no_cuda(); }
void RoutingCounts::clear() { no_cuda(); }
LayerCounts RoutingCounts::take() { no_cuda(); }
std::uint64_t RoutingCounts::bytes(const AccumulatorShape& /*shape*/, TokenTableChoice /*tables*/) { no_cuda(); }
std::uint64_t RoutingCounts::step_bytes(const AccumulatorShape& /*shape*/, std::int64_t /*n*/) { no_cuda(); }

}  // namespace switchyard::gpu
