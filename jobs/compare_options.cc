#include "jobs/compare_options.h"

#include <chrono>
#include <iostream>

#include "jobs/format.h"
#include "parallel/error.h"

namespace switchyard {

void add_compare_options(OptionParser& parser) {
  auto add = parser.options().add_options();
  add("bootstrap", po::value<int>()->default_value(1000), "resamples behind an interval");
  add("permutations", po::value<int>()->default_value(1000),
      "permutations behind a p-value, which is at least 1 / (1 + N)");
  add("confidence", po::value<double>()->default_value(0.95), "of the intervals");
  add("seed", po::value<std::uint64_t>()->default_value(0), "the same seed gives the same figures");
}

CompareOptions compare_options(const OptionParser& parser) {
  const CompareOptions options{.bootstrap = parser.get<int>("bootstrap"),
                               .permutations = parser.get<int>("permutations"),
                               .confidence = parser.get<double>("confidence"),
                               .seed = parser.get<std::uint64_t>("seed")};
  for (const auto& [name, value] :
       {std::pair("--bootstrap", options.bootstrap), {"--permutations", options.permutations}})
    if (value < 20) throw UsageError("is " + std::to_string(value), name, "give at least 20; 1000 is usual");
  if (!(options.confidence > 0 && options.confidence < 1))
    throw UsageError("is " + std::to_string(options.confidence), "--confidence", "give a number between 0 and 1");
  return options;
}

std::function<void(std::size_t, std::size_t)> pair_progress(bool show) {
  using Clock = std::chrono::steady_clock;
  return [show, start = Clock::now(), shown = Clock::now()](std::size_t done, std::size_t all) mutable {
    const auto now = Clock::now();
    if (!show || done == all || now - shown < std::chrono::seconds(3)) return;
    shown = now;
    const double seconds = std::chrono::duration<double>(now - start).count();
    std::cerr << "pair " << done << " of " << all << ", ETA "
              << as_duration(seconds * static_cast<double>(all - done) / static_cast<double>(done)) << "\n";
  };
}

}  // namespace switchyard
