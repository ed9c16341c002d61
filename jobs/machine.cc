#include "jobs/machine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>
#include <span>
#include <thread>

namespace switchyard {

std::vector<std::string> host_names(const Communicator& comm) {
  std::array<char, 256> mine{};
  ::gethostname(mine.data(), mine.size() - 1);
  const std::vector<char> all = comm.all_gather_v<char>(std::span<const char>(mine.data(), mine.size()));
  std::vector<std::string> names;
  for (std::size_t at = 0; at < all.size(); at += mine.size()) names.emplace_back(all.data() + at);
  return names;
}

int default_threads(const std::vector<std::string>& hosts, int rank) {
  if (const char* asked = std::getenv("OMP_NUM_THREADS"); asked != nullptr && std::atoi(asked) > 0)
    return std::atoi(asked);
  cpu_set_t bound;
  const int all = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  const int mine = ::sched_getaffinity(0, sizeof bound, &bound) == 0 ? CPU_COUNT(&bound) : all;
  const long configured = ::sysconf(_SC_NPROCESSORS_ONLN);
  if (mine < configured) return mine;
  const auto neighbours =
      static_cast<int>(std::count(hosts.begin(), hosts.end(), hosts[static_cast<std::size_t>(rank)]));
  return std::max(1, mine / neighbours);
}

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown";
}

}  // namespace switchyard
