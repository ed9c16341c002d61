#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace switchyard {

/// Which node, a machine whose memory its ranks share, each rank runs on.
struct NodeMap {
  std::vector<std::uint32_t> node_of_rank;  // [ranks]; nodes count from 0 in the order of their lowest ranks
  std::vector<std::string> names;           // [nodes] host name of each
};

/// The nodes of ranks of which the lowest rank of the same node, [ranks], and the host name, [ranks], are known.
NodeMap number_nodes(const std::vector<int>& lowest_rank, const std::vector<std::string>& hosts);

/// The nodes of a communicator's ranks. Collective.
NodeMap map_nodes(const Communicator& comm);

}  // namespace switchyard
