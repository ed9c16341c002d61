#pragma once

#include <cstdint>
#include <string>

namespace switchyard {

/// A GPU, for people and records.
struct GpuReport {
  std::string name;
  std::string id;          // of this GPU, or part of one, among all: its UUID
  std::string pci_bus_id;  // of the whole GPU on this node, "0000:3b:00.0"
  int capability = 0;      // of its instructions: 90 is compute capability 9.0
  int multiprocessors = 0;
  std::uint64_t total_bytes = 0;
  std::uint64_t free_bytes = 0;  // now: other processes may take of it
};

/// GPUs that CUDA shows this process; 0 where there is no driver, and in a build without CUDA.
int count_gpus();

/// Makes a GPU that of this process, for all its threads' later calls of this folder, and reports on it. ordinal: as
/// GpuChoice::ordinal. Throws Error naming the remedy: a build without CUDA, no such GPU, one that another process
/// holds for itself.
GpuReport use_gpu(int ordinal);

/// One line: "NVIDIA H100 80GB HBM3, 132 multiprocessors (9.0), 79.1 of 79.6 GiB free".
std::string describe(const GpuReport& gpu);

}  // namespace switchyard
