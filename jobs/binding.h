#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "jobs/device.h"
#include "parallel/communicator.h"
#include "parallel/node_map.h"

namespace switchyard {

/// What a rank runs on.
struct RankBinding {
  std::string cpus;  // that it may use, as ranges: "0-3,8"
  int n_cpus = 0;
  int threads = 0;
  std::optional<std::string> gpu;  // GpuChoice::name, or none at hand
};

/// What the ranks of a run run on.
struct Binding {
  NodeMap nodes;
  std::vector<RankBinding> ranks;
  bool uses_gpus = false;

  const std::string& host_of(int rank) const { return nodes.names[nodes.node_of_rank[static_cast<std::size_t>(rank)]]; }
};

/// Collective. threads, device: of this rank. Throws Error of variables about GPUs that make no sense.
Binding gather_binding(int threads, const ComputeDevice& device, const Communicator& comm);

/// A line for each of the first nodes: "node n1: ranks 0-1 x 2 threads on CPUs 0-1, 2-3; GPUs 0, 1", with
/// " unused" behind GPUs that nothing runs on.
std::string describe(const Binding& binding);

/// Ranks of a node that have more threads than the CPUs they share, and what to do about it: one line, or nothing.
std::optional<std::string> oversubscription(const Binding& binding);

}  // namespace switchyard
