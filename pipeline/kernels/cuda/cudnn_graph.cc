#include "pipeline/kernels/cuda/cudnn_graph.h"

#include <cudnn_frontend.h>
#include <dlfcn.h>

#include <cassert>
#include <cmath>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "parallel/device/cuda/cuda_check.h"
#include "parallel/device/device_array.h"
#include "parallel/device/stream.h"
#include "parallel/error.h"

namespace cudnn_frontend {
/// The library that cudnn_frontend looks its calls up in.
void* cudnn_dlhandle = nullptr;
}  // namespace cudnn_frontend

namespace switchyard::gpu {
namespace {

namespace fe = cudnn_frontend;
using Value = std::shared_ptr<fe::graph::Tensor_attributes>;

constexpr const char* kLibrary = "libcudnn.so.9";
constexpr std::size_t kOldestVersion = 90800;  // the first that plans by a description of the GPU

std::string version_text(std::size_t version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

void open_library() {
  if (fe::cudnn_dlhandle != nullptr) return;
  const char* remedy = "install cuDNN 9 where the dynamic linker finds it, e.g. by LD_LIBRARY_PATH";
  fe::cudnn_dlhandle = dlopen(kLibrary, RTLD_NOW);
  if (fe::cudnn_dlhandle == nullptr) {
    const char* reason = dlerror();
    throw Error("cannot open cuDNN: " + std::string(reason != nullptr ? reason : kLibrary), {}, remedy);
  }
  if (fe::detail::get_backend_version() < kOldestVersion)
    throw Error(
        "cuDNN " + version_text(fe::detail::get_backend_version()) + " is older than " + version_text(kOldestVersion),
        {}, remedy);
}

/// One line of cudnn_frontend's many.
std::string reason_of(fe::error_object status) {
  std::string text = status.get_message();
  for (char& c : text)
    if (c == '\n') c = ' ';
  return text;
}

void check(const fe::error_object& status, const std::string& what) {
  if (!status.is_good()) throw Error("cuDNN cannot " + what + ": " + reason_of(status));
}

std::vector<std::int64_t> dense_strides(const std::vector<std::int64_t>& dims) {
  std::vector<std::int64_t> strides(dims.size(), 1);
  for (std::size_t i = dims.size(); i-- > 1;) strides[i - 1] = strides[i] * dims[i];
  return strides;
}

/// cuDNN's name of an operand: no number may be 0.
std::int64_t uid_of(std::size_t operand) { return static_cast<std::int64_t>(operand) + 1; }

fe::graph::Tensor_attributes operand_of(std::size_t number, const char* name, const std::vector<std::int64_t>& dims,
                                        const std::vector<std::int64_t>& strides, fe::DataType_t type) {
  return fe::graph::Tensor_attributes()
      .set_uid(uid_of(number))
      .set_name(name)
      .set_dim(dims)
      .set_stride(strides)
      .set_data_type(type);
}

fe::graph::Tensor_attributes operand_of(std::size_t number, const char* name, const std::vector<std::int64_t>& dims,
                                        fe::DataType_t type) {
  return operand_of(number, name, dims, dense_strides(dims), type);
}

}  // namespace

struct CudnnDevice::State {
  int capability = 0;
  cudnnHandle_t handle = nullptr;                    // of a GPU that is there, ...
  std::shared_ptr<fe::DeviceProperties> properties;  // ... or what one would be like
};

struct CudnnGraph::State {
  std::shared_ptr<fe::graph::Graph> graph;
  cudnnHandle_t handle;
  std::int64_t index;  // of the plan among those that the graph has
  std::string plan;
  std::int64_t workspace_bytes;
};

namespace {

std::unique_ptr<CudnnDevice::State> open_gpu() {
  open_library();
  auto state = std::make_unique<CudnnDevice::State>();
  if (const cudnnStatus_t status = fe::detail::create_handle(&state->handle); status != CUDNN_STATUS_SUCCESS)
    throw Error("cuDNN cannot use the GPU: " + std::string(fe::detail::get_error_string(status)));
  if (fe::detail::set_stream(state->handle, compute_stream().handle()) != CUDNN_STATUS_SUCCESS)
    throw Error("cuDNN cannot work in a stream of the GPU");
  int ordinal = 0;
  SWITCHYARD_CUDA(cudaGetDevice(&ordinal));
  cudaDeviceProp properties = {};
  SWITCHYARD_CUDA(cudaGetDeviceProperties(&properties, ordinal));
  state->capability = properties.major * 10 + properties.minor;
  return state;
}

std::shared_ptr<fe::graph::Graph> new_graph(const CudnnDevice::State& device) {
  auto graph = std::make_shared<fe::graph::Graph>();
  // Before the first node: nodes copy what is known of the device.
  graph->set_sm_version(device.capability);
  if (device.properties) graph->set_device_properties(device.properties);
  graph->set_io_data_type(fe::DataType_t::BFLOAT16)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
  return graph;
}

/// The first plan of that name, or of any, that can be made; cuDNN's order is its preference.
std::optional<std::int64_t> build_first_plan(fe::graph::Graph& graph, const std::string& plan) {
  for (std::int64_t i = 0; i < graph.get_execution_plan_count(); ++i) {
    std::string name;
    if (!graph.get_plan_name_at_index(i, name).is_good() || (!plan.empty() && name != plan)) continue;
    if (graph.build_plan_at_index(i).is_good()) return i;
  }
  return std::nullopt;
}

CudnnGraph plan_graph(std::shared_ptr<fe::graph::Graph> graph, const CudnnDevice::State& device,
                      const std::string& plan, const std::string& what) {
  check(graph->validate(), what);
  check(graph->build_operation_graph(device.handle), what);
  check(graph->create_execution_plans({fe::HeurMode_t::A}), what);
  const std::optional<std::int64_t> index = build_first_plan(*graph, plan);
  if (!index) throw Error("cuDNN has no plan " + (plan.empty() ? std::string() : plan + " ") + "to " + what);
  auto state = std::make_unique<CudnnGraph::State>(CudnnGraph::State{
      .graph = std::move(graph), .handle = device.handle, .index = *index, .plan = {}, .workspace_bytes = 0});
  check(state->graph->get_plan_name_at_index(*index, state->plan), what);
  check(state->graph->get_workspace_size_plan_at_index(*index, state->workspace_bytes), what);
  return CudnnGraph(std::move(state));
}

float scale_of(const AttentionShape& heads) {
  return heads.scale > 0 ? heads.scale : 1.0F / std::sqrt(static_cast<float>(heads.head_dim));
}

/// Which keys a query sees; cuDNN counts those of a sliding window as we do, the query's own included. A changed score
/// turns its own masks off, so that a soft cap is followed by them here.
void set_rule(fe::graph::SDPA_attributes& rule, const AttentionGraphShape& shape, const Value& n_queries,
              const Value& n_keys) {
  const AttentionShape& heads = shape.heads;
  rule.set_attn_scale(scale_of(heads)).set_seq_len_q(n_queries).set_seq_len_kv(n_keys);
  if (heads.softcap == 0) {
    rule.set_padding_mask(true)
        .set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT)
        .set_diagonal_band_right_bound(0);
    if (heads.sliding_window > 0) rule.set_diagonal_band_left_bound(heads.sliding_window);
    return;
  }
  const auto cap = std::make_shared<fe::graph::Tensor_attributes>(heads.softcap);
  std::optional<std::int64_t> bound;
  if (heads.sliding_window > 0) bound = heads.sliding_window;
  rule.set_score_mod([=, longest = shape.longest](const std::shared_ptr<fe::graph::Graph>& graph, const Value& score) {
    namespace modifiers = fe::graph::attn::score_modifiers;
    Value value = modifiers::Softcap().forward(graph, score, cap);
    value = modifiers::padding_mask(graph, value, n_keys, n_queries);
    return modifiers::sliding_window_mask(graph, value, fe::DiagonalAlignment_t::TOP_LEFT, bound, 0, longest, longest,
                                          n_queries, n_keys);
  });
}

}  // namespace

std::string cudnn_version() {
  open_library();
  return version_text(fe::detail::get_backend_version());
}

CudnnDevice::CudnnDevice(std::unique_ptr<State> state) : state_(std::move(state)) {}
CudnnDevice::~CudnnDevice() = default;
CudnnDevice::CudnnDevice(CudnnDevice&&) noexcept = default;

CudnnDevice::CudnnDevice(int capability, const std::string& description) : state_(std::make_unique<State>()) {
  open_library();
  state_->capability = capability;
  state_->properties = std::make_shared<fe::DeviceProperties>();
  check(state_->properties->deserialize({description.begin(), description.end()}), "read the description of a GPU");
}

const CudnnDevice& CudnnDevice::current() {
  static const CudnnDevice& instance = *new CudnnDevice(open_gpu());  // as long as the process
  return instance;
}

CudnnGraph::CudnnGraph(std::unique_ptr<State> state) : state_(std::move(state)) {}
CudnnGraph::~CudnnGraph() = default;
CudnnGraph::CudnnGraph(CudnnGraph&&) noexcept = default;

const std::string& CudnnGraph::plan() const { return state_->plan; }

void CudnnGraph::run(std::span<const void* const> operands) const {
  assert(state_->handle != nullptr);
  std::unordered_map<std::int64_t, void*> pointers;
  for (std::size_t i = 0; i < operands.size(); ++i)
    pointers.emplace(uid_of(i), const_cast<void*>(operands[i]));  // NOLINT: cuDNN takes what it reads so, too
  DeviceArray<std::byte> workspace(static_cast<std::size_t>(state_->workspace_bytes));
  check(state_->graph->execute_plan_at_index(state_->handle, pointers, workspace.data(), state_->index), "run a graph");
}

CudnnGraph plan_attention(const CudnnDevice& device, const AttentionGraphShape& shape, const std::string& plan) {
  using Operand = AttentionGraphShape::Operand;
  const AttentionShape& heads = shape.heads;
  const auto graph = new_graph(device.state());
  const auto offsets = [&](Operand number, const char* name) {
    return graph->tensor(operand_of(number, name, {shape.n_windows + 1, 1, 1, 1}, fe::DataType_t::INT64));
  };
  // [window][head][token][column] of rows [token][head][column].
  const auto rows = [&](Operand number, const char* name, std::int64_t n_heads, const Value& begins) {
    const std::int64_t d = heads.head_dim;
    return operand_of(number, name, {shape.n_windows, n_heads, shape.longest, d},
                      {shape.longest * n_heads * d, d, n_heads * d, 1}, fe::DataType_t::BFLOAT16)
        .set_ragged_offset(begins);
  };
  const Value query_offsets = offsets(Operand::query_offsets, "query_offsets");
  const Value key_offsets = offsets(Operand::key_offsets, "key_offsets");
  const Value lengths =
      graph->tensor(operand_of(Operand::lengths, "lengths", {shape.n_windows, 1, 1, 1}, fe::DataType_t::INT32));
  const Value queries = graph->tensor(rows(Operand::queries, "queries", heads.n_heads, query_offsets));
  const Value keys = graph->tensor(rows(Operand::keys, "keys", heads.n_kv_heads, key_offsets));
  const Value values = graph->tensor(rows(Operand::values, "values", heads.n_kv_heads, key_offsets));

  fe::graph::SDPA_attributes rule;
  rule.set_name("attention").set_generate_stats(false);
  set_rule(rule, shape, lengths, lengths);
  const Value out = graph->sdpa(queries, keys, values, rule)[0];
  *out = rows(Operand::out, "out", heads.n_heads, query_offsets);
  out->set_output(true);
  return plan_graph(
      graph, device.state(), plan,
      "attend with " + std::to_string(heads.n_heads) + " heads of " + std::to_string(heads.head_dim) + " columns");
}

CudnnGraph plan_grouped_matmul(const CudnnDevice& device, const GroupedGraphShape& shape, const std::string& plan) {
  using Operand = GroupedGraphShape::Operand;
  const auto graph = new_graph(device.state());
  const Value rows =
      graph->tensor(operand_of(Operand::rows, "rows", {1, shape.n_rows, shape.n_in}, fe::DataType_t::BFLOAT16));
  // [expert][in][out] of rows [expert][out][in].
  const Value weights =
      graph->tensor(operand_of(Operand::weights, "weights", {shape.n_experts, shape.n_in, shape.n_out},
                               {shape.n_in * shape.n_out, 1, shape.n_in}, fe::DataType_t::BFLOAT16));
  const Value first_rows =
      graph->tensor(operand_of(Operand::first_rows, "first_rows", {shape.n_experts, 1, 1}, fe::DataType_t::INT32));
  const Value products = graph->moe_grouped_matmul(
      rows, weights, first_rows, nullptr, nullptr,
      fe::graph::Moe_grouped_matmul_attributes().set_name("grouped_matmul").set_mode(fe::MoeGroupedMatmulMode_t::NONE));
  products->set_output(true)
      .set_uid(uid_of(Operand::products))
      .set_data_type(shape.out == DType::bf16 ? fe::DataType_t::BFLOAT16 : fe::DataType_t::FLOAT);
  return plan_graph(graph, device.state(), plan,
                    "multiply rows of " + std::to_string(shape.n_experts) + " experts by weights of [" +
                        std::to_string(shape.n_out) + ", " + std::to_string(shape.n_in) + "]");
}

}  // namespace switchyard::gpu
