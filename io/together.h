#pragma once

#include <exception>
#include <optional>
#include <string>

#include "parallel/communicator.h"
#include "parallel/error.h"

namespace switchyard {

/// Collective. Each rank does `work`; when it throws on any rank, all ranks get the text of the lowest such rank's
/// error, else nothing. For work without collective calls, or whose collective calls all ranks reach even if it fails
/// on one.
template <typename Work>
std::optional<std::string> attempt(const Communicator& comm, Work&& work) {
  bool failed = false;
  std::string reason;
  try {
    work();
  } catch (const std::exception& error) {
    failed = true;
    reason = error.what();
  }
  const auto first = static_cast<int>(comm.min(failed ? comm.rank() : comm.size()));
  if (first == comm.size()) return std::nullopt;
  return comm.broadcast(reason, first);
}

/// Collective. The same, but what failed is thrown, as an Error on all ranks.
template <typename Work>
void together(const Communicator& comm, Work&& work) {
  if (const std::optional<std::string> reason = attempt(comm, work)) throw Error(*reason);
}

}  // namespace switchyard
