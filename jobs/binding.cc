#include "jobs/binding.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>

#include "jobs/format.h"
#include "jobs/machine.h"
#include "parallel/gpu_choice.h"

namespace switchyard {
namespace {

using nlohmann::json;

constexpr std::size_t kNodesShown = 8;
constexpr std::size_t kRanksShown = 8;  // of a node, one by one

std::vector<std::vector<int>> ranks_of_nodes(const NodeMap& nodes) {
  std::vector<std::vector<int>> ranks(nodes.names.size());
  for (std::size_t r = 0; r < nodes.node_of_rank.size(); ++r)
    ranks[nodes.node_of_rank[r]].push_back(static_cast<int>(r));
  return ranks;
}

std::string numbered(const char* what, const std::vector<int>& numbers) {
  return what + std::string(numbers.size() == 1 ? " " : "s ") + as_ranges(numbers);
}

/// "a, b, c", those beyond the first few left out; one of all when they are equal.
std::string listed(const std::vector<std::string>& words) {
  if (std::adjacent_find(words.begin(), words.end(), std::not_equal_to<>()) == words.end()) return words.front();
  std::string list;
  for (std::size_t i = 0; i < std::min(words.size(), kRanksShown); ++i) list += (i == 0 ? "" : ", ") + words[i];
  if (words.size() > kRanksShown) list += ", ... " + words.back();
  return list;
}

std::string describe_node(const Binding& binding, const std::vector<int>& ranks) {
  std::vector<std::string> cpus;
  std::vector<std::string> gpus;
  int fewest = binding.ranks[static_cast<std::size_t>(ranks.front())].threads;
  int most = fewest;
  for (const int r : ranks) {
    const RankBinding& rank = binding.ranks[static_cast<std::size_t>(r)];
    cpus.push_back(rank.cpus);
    if (rank.gpu) gpus.push_back(*rank.gpu);
    fewest = std::min(fewest, rank.threads);
    most = std::max(most, rank.threads);
  }
  std::string line = "node " + binding.host_of(ranks.front()) + ": " + numbered("rank", ranks) + " x " +
                     (fewest == most ? std::to_string(most) : std::to_string(fewest) + "-" + std::to_string(most)) +
                     (most == 1 ? " thread" : " threads") + " on CPUs " + listed(cpus);
  if (!gpus.empty()) {
    line += std::string("; ") + (gpus.size() == 1 ? "GPU " : "GPUs ") + listed(gpus);
    if (!binding.uses_gpus) line += " unused";  // whoever asked Slurm for some shall see that they idle
  }
  return line + "\n";
}

}  // namespace

Binding gather_binding(int threads, const ComputeDevice& device, const Communicator& comm) {
  Binding binding{map_nodes(comm), {}, device.on_gpu()};
  const auto mine_of_node = binding.nodes.node_of_rank.begin() + comm.rank();
  const auto rank_on_node =
      static_cast<int>(std::count(binding.nodes.node_of_rank.begin(), mine_of_node, *mine_of_node));
  const std::optional<GpuChoice> gpu = choose_gpu([](const char* name) { return std::getenv(name); }, rank_on_node);
  const std::string gpu_name = device.on_gpu() ? device.gpu_name : gpu ? gpu->name : std::string();
  const std::vector<int> cpus = allowed_cpus();
  const json mine = {{"cpus", as_ranges(cpus)},
                     {"n_cpus", cpus.size()},
                     {"threads", threads},
                     {"gpu", gpu_name.empty() ? json() : json(gpu_name)}};
  for (const std::string& text : comm.all_gather(mine.dump())) {
    const json rank = json::parse(text);
    binding.ranks.push_back({rank["cpus"], rank["n_cpus"], rank["threads"], std::nullopt});
    if (rank["gpu"].is_string()) binding.ranks.back().gpu = rank["gpu"];
  }
  return binding;
}

std::string describe(const Binding& binding) {
  const std::vector<std::vector<int>> nodes = ranks_of_nodes(binding.nodes);
  std::string text;
  for (std::size_t node = 0; node < std::min(nodes.size(), kNodesShown); ++node)
    text += describe_node(binding, nodes[node]);
  if (nodes.size() > kNodesShown)
    text += "and " + std::to_string(nodes.size() - kNodesShown) + " more nodes: run.json names every rank's CPUs\n";
  return text;
}

std::optional<std::string> oversubscription(const Binding& binding) {
  for (const std::vector<int>& node : ranks_of_nodes(binding.nodes)) {
    std::map<std::string, std::vector<int>> sharers;  // by the CPUs they share
    for (const int r : node) sharers[binding.ranks[static_cast<std::size_t>(r)].cpus].push_back(r);
    for (const auto& [cpus, ranks] : sharers) {
      int threads = 0;
      for (const int r : ranks) threads += binding.ranks[static_cast<std::size_t>(r)].threads;
      const int n_cpus = binding.ranks[static_cast<std::size_t>(ranks.front())].n_cpus;
      if (threads <= n_cpus) continue;
      return numbered("rank", ranks) + " on node " + binding.host_of(ranks.front()) +
             (ranks.size() == 1 ? " runs " : " run ") + std::to_string(threads) + " threads on " +
             std::to_string(n_cpus) + (n_cpus == 1 ? " CPU (" : " CPUs (") + cpus +
             "): give fewer --threads, or each rank CPUs of its own (srun --cpus-per-task=N --cpu-bind=cores, mpirun "
             "--map-by slot:PE=N)";
    }
  }
  return std::nullopt;
}

}  // namespace switchyard
