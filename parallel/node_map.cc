#include "parallel/node_map.h"

#include <unistd.h>

#include <array>
#include <map>

namespace switchyard {
namespace {

std::string host_name() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

}  // namespace

NodeMap number_nodes(const std::vector<int>& lowest_rank, const std::vector<std::string>& hosts) {
  NodeMap map;
  std::map<int, std::uint32_t> node_of;  // by its lowest rank
  for (const int lowest : lowest_rank) {
    const auto [entry, is_new] = node_of.try_emplace(lowest, static_cast<std::uint32_t>(map.names.size()));
    if (is_new) map.names.push_back(hosts[static_cast<std::size_t>(lowest)]);
    map.node_of_rank.push_back(entry->second);
  }
  return map;
}

NodeMap map_nodes(const Communicator& comm) {
  const auto lowest = static_cast<int>(comm.same_node().min(std::int64_t{comm.rank()}));
  return number_nodes(comm.all_gather(lowest), comm.all_gather(host_name()));
}

}  // namespace switchyard
