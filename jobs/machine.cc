#include "jobs/machine.h"

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <thread>

#include "jobs/format.h"

namespace switchyard {
namespace {

constexpr int kMostCpus = 1 << 16;

/// CPUs of OpenMP's places; none unless OMP_PLACES or OMP_PROC_BIND asks for any.
std::vector<int> openmp_cpus() {
  std::vector<int> cpus;
  for (int place = 0; place < omp_get_num_places(); ++place) {
    std::vector<int> of_place(static_cast<std::size_t>(omp_get_place_num_procs(place)));
    omp_get_place_proc_ids(place, of_place.data());
    cpus.insert(cpus.end(), of_place.begin(), of_place.end());
  }
  std::sort(cpus.begin(), cpus.end());
  cpus.erase(std::unique(cpus.begin(), cpus.end()), cpus.end());
  return cpus;
}

}  // namespace

std::vector<int> allowed_cpus() {
  // OpenMP that binds threads has bound this one already, to a part of what it found.
  if (std::vector<int> cpus = openmp_cpus(); !cpus.empty()) return cpus;
  // The kernel refuses a set that is smaller than its own, whose size it does not tell.
  for (int room = 1024; room <= kMostCpus; room *= 2) {
    const std::unique_ptr<cpu_set_t, void (*)(cpu_set_t*)> set(CPU_ALLOC(static_cast<std::size_t>(room)),
                                                               [](cpu_set_t* s) { CPU_FREE(s); });
    const std::size_t bytes = CPU_ALLOC_SIZE(static_cast<std::size_t>(room));
    if (::sched_getaffinity(0, bytes, set.get()) != 0) continue;
    std::vector<int> cpus;
    for (int cpu = 0; cpu < room; ++cpu)
      if (CPU_ISSET_S(static_cast<std::size_t>(cpu), bytes, set.get())) cpus.push_back(cpu);
    return cpus;
  }
  std::vector<int> all(std::max(1U, std::thread::hardware_concurrency()));
  for (std::size_t cpu = 0; cpu < all.size(); ++cpu) all[cpu] = static_cast<int>(cpu);
  return all;
}

int default_threads(const Communicator& comm) {
  const std::vector<int> cpus = allowed_cpus();
  const std::vector<std::string> of_node = comm.same_node().all_gather(as_ranges(cpus));
  const auto sharers = std::count(of_node.begin(), of_node.end(), as_ranges(cpus));
  if (const char* asked = std::getenv("OMP_NUM_THREADS"); asked != nullptr && std::atoi(asked) > 0)
    return std::atoi(asked);
  return std::max(1, static_cast<int>(cpus.size()) / static_cast<int>(sharers));
}

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown";
}

}  // namespace switchyard
