#include "jobs/device.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <numeric>
#include <vector>

#include "jobs/format.h"
#include "jobs/machine.h"
#include "parallel/error.h"
#include "parallel/expert_transport.h"
#include "parallel/gpu_choice.h"

namespace switchyard {
namespace {

constexpr std::size_t kRanksShown = 8;

std::string value_of(const OptionParser& parser, const char* name) {
  return parser.has(name) ? parser.get<std::string>(name) : std::string();
}

Device parse_device(const OptionParser& parser, const Communicator& comm) {
  const std::string text = value_of(parser, "device");
  if (!text.empty() && text != "cpu" && text != "gpu")
    throw UsageError("unknown device '" + text + "'", "--device", "give cpu or gpu");
  if (!text.empty()) return text == "gpu" ? Device::gpu : Device::cpu;
  return comm.min(std::int64_t{count_gpus()}) > 0 ? Device::gpu : Device::cpu;
}

/// Takes this rank's GPU.
void take_gpu(ComputeDevice& chosen, const Communicator& comm) {
  const int rank_on_node = comm.same_node().rank();
  std::optional<GpuChoice> choice = choose_gpu([](const char* name) { return std::getenv(name); }, rank_on_node);
  if (!choice) {
    const int gpu = rank_on_node % std::max(1, count_gpus());
    choice = {.ordinal = gpu, .name = std::to_string(gpu)};
  }
  chosen.gpu = use_gpu(choice->ordinal);
  chosen.gpu_name = choice->name;
  const std::vector<std::string> of_node = comm.same_node().all_gather(chosen.gpu->id);
  chosen.sharers = static_cast<int>(std::ranges::count(of_node, chosen.gpu->id));
}

Precision parse_precision(const OptionParser& parser, Device device) {
  const Precision best = device == Device::gpu ? Precision::bf16 : best_precision();
  const std::string text = value_of(parser, "precision");
  if (text.empty()) return best;
  if (text == "f32") return Precision::f32;
  if (text != "bf16") throw UsageError("unknown precision '" + text + "'", "--precision", "give bf16 or f32");
  if (best != Precision::bf16)
    throw UsageError("this CPU has neither AMX nor AVX512-BF16", "--precision bf16", "use --precision f32");
  return Precision::bf16;
}

std::string parse_transport(const OptionParser& parser, const ComputeDevice& device, const Communicator& comm) {
  const bool own_gpus = device.on_gpu() && comm.max(std::int64_t{device.sharers}) == 1;
  std::string text = value_of(parser, "transport");
  if (text.empty()) return comm.size() == 1 ? "local" : own_gpus && has_nccl() ? "nccl" : "mpi";
  if (text == "nccl" && !device.on_gpu())
    throw UsageError("moves rows between GPUs, and this run is on CPUs", "--transport nccl",
                     "use --transport mpi, or --device gpu");
  if (text == "nccl" && !own_gpus && std::getenv("NCCL_MULTI_RANK_GPU_ENABLE") == nullptr)
    throw UsageError("wants a GPU for each rank, and ranks share one here", "--transport nccl",
                     "use --transport mpi, or as many ranks on a node as it has GPUs");
  return text;
}

bool parse_overlap(const OptionParser& parser, const ComputeDevice& device, const Communicator& comm) {
  const std::string text = value_of(parser, "overlap");
  if (text.empty()) return device.on_gpu() && comm.size() > 1;
  if (text != "on" && text != "off") throw UsageError("is '" + text + "'", "--overlap", "give on or off");
  return text == "on";
}

/// Why something cannot be, and on which rank.
struct Reason {
  std::ptrdiff_t rank;
  std::string text;
};

/// Collective. The first rank's reason; an empty one is none.
std::optional<Reason> first_reason(const std::string& mine, const Communicator& comm) {
  const std::vector<std::string> reasons = comm.all_gather(mine);
  const auto found = std::ranges::find_if(reasons, [](const std::string& of_rank) { return !of_rank.empty(); });
  if (found == reasons.end()) return std::nullopt;
  return Reason{found - reasons.begin(), *found};
}

std::string grouped_matmul_kinds() {
  std::string names;
  for (const GroupedMatmulKind kind : kGroupedMatmulKinds)
    names += (names.empty() ? "" : ", ") + std::string(name_of(kind));
  return names;
}

/// What a rank's GPU is to hold, bytes.
struct GpuNeed {
  std::uint64_t replicated, experts, activations, transport, cache, record, free;  // transport: a part of activations
  std::int64_t sharers;

  std::uint64_t total() const { return replicated + experts + activations + cache + record; }
};

std::string in_gib(std::uint64_t bytes) {
  constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
  char text[32];
  std::snprintf(text, sizeof text, "%14.2f", static_cast<double>(bytes) / kGiB);
  return text;
}

void print_table(const std::vector<GpuNeed>& ranks, const std::string& gpu) {
  std::cerr << "GPU memory in GiB, first GPU: " << gpu << "\n"
            << "          replicated       experts   activations  of them rows   keys, values        counts         "
               "total          free\n";
  for (std::size_t r = 0; r < std::min(ranks.size(), kRanksShown); ++r) {
    const GpuNeed& need = ranks[r];
    std::string name = "rank " + std::to_string(r);
    name.resize(6, ' ');
    std::cerr << name;
    for (const std::uint64_t bytes : {need.replicated, need.experts, need.activations, need.transport, need.cache,
                                      need.record, need.total(), need.free / static_cast<std::uint64_t>(need.sharers)})
      std::cerr << in_gib(bytes);
    std::cerr << (need.sharers > 1 ? "  (its share of a GPU of " + std::to_string(need.sharers) + " ranks)\n" : "\n");
  }
  if (ranks.size() > kRanksShown) std::cerr << "and " << ranks.size() - kRanksShown << " more ranks\n";
}

}  // namespace

void add_device_options(OptionParser& parser) {
  auto add = parser.options().add_options();
  add("device", po::value<std::string>()->value_name("cpu|gpu"),
      "what computes (default: gpu where this build can use GPUs and every rank has one, else cpu)");
  add("precision", po::value<std::string>()->value_name("bf16|f32"),
      "of matrix products (default: bf16 on GPUs and where the CPU has it, else f32)");
  add("attention", po::value<std::string>()->value_name("cudnn|own"),
      "what attends to windows on GPUs in bf16 (default: cudnn where it can be used, else our own kernel)");
  add("grouped-matmul", po::value<std::string>()->value_name("cublaslt|cudnn|cutlass"),
      "what multiplies with experts on GPUs in bf16; bench measures each (default: cutlass where it can be used, else "
      "cublaslt)");
  add("transport", po::value<std::string>()->value_name("local|mpi|nccl"),
      "how ranks exchange tokens (default: local for one rank; nccl where each has a GPU of its own; else mpi)");
  add("overlap", po::value<std::string>()->value_name("on|off"),
      "exchange one half of a batch's tokens while experts run on the other half; bench measures both (default: on for "
      "several ranks with GPUs, else off)");
}

std::string ComputeDevice::description() const { return gpu ? "gpu: " + gpu->name : "cpu: " + cpu_name(); }

ComputeDevice choose_device(const OptionParser& parser, const Communicator& comm) {
  ComputeDevice chosen;
  chosen.device = parse_device(parser, comm);
  if (chosen.on_gpu()) take_gpu(chosen, comm);
  chosen.precision = parse_precision(parser, chosen.device);
  chosen.transport = parse_transport(parser, chosen, comm);
  chosen.overlap = parse_overlap(parser, chosen, comm);
  return chosen;
}

void choose_attention(ComputeDevice& device, const OptionParser& parser, const AttentionShape& heads,
                      std::int64_t context, const Communicator& comm) {
  const std::string text = value_of(parser, "attention");
  if (!text.empty() && text != "cudnn" && text != "own")
    throw UsageError("unknown attention '" + text + "'", "--attention", "give cudnn or own");
  if (!text.empty() && !device.on_gpu())
    throw UsageError("chooses between kernels of GPUs, and this run is on CPUs", "--attention", "leave it out");
  if (text == "cudnn" && device.precision == Precision::f32)
    throw UsageError("attends in bf16 alone", "--attention cudnn", "use --precision bf16, or --attention own");
  if (text == "own" || !device.on_gpu() || device.precision == Precision::f32) return;
  const std::optional<Reason> reason = first_reason(why_not_cudnn(heads, context).value_or(""), comm);
  if (!reason) {
    device.attention = AttentionKernel::cudnn;
    device.attention_text = describe(device.attention);
  } else if (text == "cudnn") {
    throw Error(reason->text, "--attention cudnn", "or use --attention own");
  } else {
    device.attention_text = "own kernel (" + reason->text + ")";
  }
}

void choose_grouped_matmul(ComputeDevice& device, const OptionParser& parser, const ExpertShape& experts,
                           const Communicator& comm) {
  const std::string text = value_of(parser, "grouped-matmul");
  if (text.empty()) {
    if (!device.on_gpu() || device.precision == Precision::f32 || experts.n_experts == 0) return;
    if (!first_reason(why_not(GroupedMatmulKind::cutlass, experts).value_or(""), comm))
      device.grouped_matmul = GroupedMatmulKind::cutlass;
    return;
  }
  const auto* const kind =
      std::ranges::find_if(kGroupedMatmulKinds, [&](GroupedMatmulKind one) { return name_of(one) == text; });
  if (kind == kGroupedMatmulKinds.end())
    throw UsageError("unknown grouped product '" + text + "'", "--grouped-matmul",
                     "give one of " + grouped_matmul_kinds());
  if (!device.on_gpu())
    throw UsageError("chooses between kernels of GPUs, and this run is on CPUs", "--grouped-matmul", "leave it out");
  if (*kind != GroupedMatmulKind::cublaslt && device.precision == Precision::f32)
    throw UsageError("multiplies bf16 alone", "--grouped-matmul " + text,
                     "use --precision bf16, or --grouped-matmul cublaslt");
  const std::optional<Reason> reason = first_reason(why_not(*kind, experts).value_or(""), comm);
  if (reason) throw Error(reason->text, "--grouped-matmul " + text, "or use --grouped-matmul cublaslt");
  device.grouped_matmul = *kind;
}

void plan_gpu_memory(const ComputeDevice& device, const ModelMemory& memory, std::uint64_t cache, std::uint64_t record,
                     bool quiet, const Communicator& comm) {
  const GpuNeed mine = {.replicated = memory.replicated_bytes,
                        .experts = memory.expert_bytes,
                        .activations = memory.activation_bytes,
                        .transport = memory.transport_bytes,
                        .cache = cache,
                        .record = record,
                        .free = device.gpu->free_bytes,
                        .sharers = device.sharers};
  const std::vector<GpuNeed> ranks = comm.all_gather(mine);
  if (comm.rank() == 0 && !quiet) {
    print_table(ranks, describe(*device.gpu));
    const bool both = device.attention == AttentionKernel::cudnn && cache > 0;
    std::cerr << "attention: " << device.attention_text << (both ? "; own kernel over kept keys and values\n" : "\n");
  }
  const Communicator node = comm.same_node();
  const std::vector<std::string> gpus = node.all_gather(device.gpu->id);
  const std::vector<GpuNeed> needs = node.all_gather(mine);
  std::uint64_t wanted = 0;
  std::uint64_t free = mine.free;
  for (std::size_t r = 0; r < gpus.size(); ++r) {
    if (gpus[r] != device.gpu->id) continue;
    wanted += needs[r].total();
    free = std::min(free, needs[r].free);  // another rank's context may have come between
  }
  if (wanted <= free) return;
  throw Error("the model needs " + as_bytes_text(static_cast<double>(wanted)) + " of GPU " + device.gpu_name +
                  ", of which " + as_bytes_text(static_cast<double>(free)) +
                  " are free: " + as_bytes_text(static_cast<double>(wanted - free)) + " are missing",
              "rank " + std::to_string(comm.rank()) +
                  (device.sharers > 1 ? ", on a GPU of " + std::to_string(device.sharers) + " ranks" : ""),
              "use more GPUs with a rank each, smaller --batch-tokens (activations take " +
                  as_bytes_text(static_cast<double>(mine.activations)) +
                  "), fewer of route's --token-tables (counts take " + as_bytes_text(static_cast<double>(mine.record)) +
                  "), or --precision bf16");
}

std::unique_ptr<EnergyMeter> make_energy_meter(const ComputeDevice& device, bool quiet, const Communicator& comm) {
  if (!device.on_gpu()) return nullptr;
  auto meter = std::make_unique<EnergyMeter>(*device.gpu, comm);
  const std::optional<Reason> unknown = first_reason(meter->reason_unknown(), comm);
  if (unknown && comm.rank() == 0 && !quiet)
    std::cerr << "energy is not recorded, rank " << unknown->rank << ": " << unknown->text << "\n";
  return meter;
}

}  // namespace switchyard
