#pragma once

#include <functional>
#include <optional>
#include <string>

namespace switchyard {

/// The GPU of one rank.
struct GpuChoice {
  int ordinal = 0;  // among the devices that CUDA shows the process, what cudaSetDevice takes
  /// For records: the device's number on its node (SLURM_STEP_GPUS) where that is known, else its number or UUID in
  /// CUDA_VISIBLE_DEVICES, which where Slurm confines tasks to their devices counts those of the task alone.
  std::string name;
  bool operator==(const GpuChoice&) const = default;
};

/// A variable's value, or nullptr, as std::getenv.
using Environment = std::function<const char*(const char* name)>;

/// The GPU of the rank that is number `rank_on_node` of its node, or none where the environment shows no devices. Ranks
/// take the devices that they see in turn, so that both a list of the task's own devices (srun --gpus-per-task,
/// --gpu-bind) and one of all the node's devices share the load evenly.
///   CUDA_VISIBLE_DEVICES  the devices, as numbers, GPU-... or MIG-...; empty, -1 first or NoDevFiles (Slurm, of a step
///                         without GPUs): none; -1 ends the list, as in CUDA
///   SLURM_GPUS_ON_NODE    where that is not set: how many devices the step has on this node
///   SLURM_STEP_GPUS       their numbers on the node, whatever a process sees
/// SLURM_LOCALID is not asked: under mpirun it is that of the daemon which started the ranks, 0 for all of them.
/// Throws Error naming the variable, the wrong part and the remedy.
std::optional<GpuChoice> choose_gpu(const Environment& environment, int rank_on_node);

}  // namespace switchyard
