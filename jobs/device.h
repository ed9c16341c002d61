#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "jobs/options.h"
#include "parallel/communicator.h"
#include "parallel/device/energy_meter.h"
#include "parallel/device/gpu.h"
#include "parallel/tensor.h"
#include "pipeline/model/model.h"

namespace switchyard {

/// --device, --precision, --attention, --grouped-matmul, --transport and --overlap, for the subcommands that run a
/// model.
void add_device_options(OptionParser& parser);

/// What a rank computes on, and how.
struct ComputeDevice {
  Device device = Device::cpu;   // or gpu
  std::optional<GpuReport> gpu;  // of this rank
  std::string gpu_name;          // as GpuChoice::name
  int sharers = 1;               // ranks that have this GPU, with this one
  Precision precision = Precision::bf16;
  std::string transport;
  AttentionKernel attention = AttentionKernel::own;                // of GPUs
  std::string attention_text = "own kernel";                       // and why, where cuDNN would have been taken
  GroupedMatmulKind grouped_matmul = GroupedMatmulKind::cublaslt;  // of GPUs in bf16

  bool overlap = false;  // of one half's rows with the other's experts

  bool on_gpu() const { return device == Device::gpu; }
  /// context: tokens of the longest windows.
  ModelOptions model_options(std::int64_t context) const {
    return {precision, device, attention, context, grouped_matmul, overlap};
  }
  /// "gpu: NVIDIA H100 80GB HBM3" or "cpu: ...", for records.
  std::string description() const;
};

/// Collective. Makes a GPU that of this process where the options, or without one what all ranks have, say so. Throws
/// UsageError and Error naming the remedy: a GPU that is not there, that this build cannot use, that NCCL would have to
/// share, bf16 on a CPU without it.
ComputeDevice choose_device(const OptionParser& parser, const Communicator& comm);

/// Collective. Completes what choose_device chose, for a model with such heads and windows of `context` tokens: where
/// the options say nothing, cuDNN attends on GPUs in bf16 if it can on every rank. Throws UsageError and Error naming
/// the remedy when it is asked for and cannot.
void choose_attention(ComputeDevice& device, const OptionParser& parser, const AttentionShape& heads,
                      std::int64_t context, const Communicator& comm);

/// Collective. Completes it with what multiplies experts, for a model with as many experts of that shape on a rank.
/// Throws UsageError and Error naming the remedy when some rank cannot do what is asked for.
void choose_grouped_matmul(ComputeDevice& device, const OptionParser& parser, const ExpertShape& experts,
                           const Communicator& comm);

/// Collective, before a model is loaded on GPUs. Says on rank 0, unless quiet, what goes where in the first ranks'
/// GPUs, and what attends. cache, record: bytes of keys and values, and of what is counted, besides. Throws Error with
/// the shortfall where it does not fit.
void plan_gpu_memory(const ComputeDevice& device, const ModelMemory& memory, std::uint64_t cache, std::uint64_t record,
                     bool quiet, const Communicator& comm);

/// Collective. What counts the energy of this rank's GPU; nullptr on CPUs. Says on rank 0, unless quiet, why a GPU's
/// energy is not counted.
std::unique_ptr<EnergyMeter> make_energy_meter(const ComputeDevice& device, bool quiet, const Communicator& comm);

}  // namespace switchyard
