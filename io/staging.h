#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>

#include "parallel/communicator.h"

namespace switchyard {

/// A checkpoint's copy on this rank's node.
struct StagedCheckpoint {
  std::filesystem::path folder;  // the source, when the copy was broken off
  std::uint64_t bytes = 0;       // copied by this rank: 0 but on a node's first, and where a copy was there already
  double seconds = 0;            // that copying took
};

/// Collective. Copies the files of a checkpoint (config.json, shards and their index) into NODE_FOLDER/NAME-HASH once a
/// node, by its first rank, so that the node's ranks read a disk of their own and share its pages. A copy that is there
/// and whole is taken as it is; two jobs that want the same one wait for each other. The copy appears under its name
/// when all of it is on disk: one that is broken off or killed leaves at most a NAME-HASH.part, which the next removes.
/// keep_going(copied, all): bytes of this node, asked a few times a second on nodes' first ranks; false breaks off.
/// Throws Error on all ranks, with the lowest failing rank's message: a checkpoint that does not open, a folder that
/// cannot be written, a disk without room, naming the bytes.
StagedCheckpoint stage_checkpoint(const std::filesystem::path& source, const std::filesystem::path& node_folder,
                                  const std::function<bool(std::uint64_t copied, std::uint64_t all)>& keep_going,
                                  const Communicator& comm);

}  // namespace switchyard
