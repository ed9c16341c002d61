#include "pipeline/analysis/token_phase.h"

#include <utility>

#include "pipeline/analysis/table_index.h"

namespace switchyard {
namespace {

constexpr const char* kRoot = "/accumulators";

}  // namespace

std::vector<Table> phase_tables(const std::vector<PhaseSums>& phases) {
  std::vector<const Accumulators*> sums;
  std::vector<std::uint8_t> numbers;
  for (const PhaseSums& phase : phases) {
    sums.push_back(&phase.sums);
    numbers.push_back(static_cast<std::uint8_t>(phase.phase));
  }
  std::vector<Table> tables = to_tables(sums, kRoot);
  const std::uint64_t n = numbers.size();
  tables.push_back({std::string(kRoot) + "/phase", {"dataset"}, {n}, std::move(numbers), "1", "0 prefill, 1 decode"});
  return tables;
}

std::vector<PhaseSums> from_phase_tables(const std::vector<Table>& tables, const AccumulatorShape& shape, bool whole) {
  const TableIndex index(tables, kRoot);
  std::vector<Accumulators> sums = from_tables(tables, kRoot, shape, whole);
  std::vector<std::uint8_t> numbers(1, 0);
  if (index.find("/phase") != nullptr) numbers = index.values<std::uint8_t>("/phase");
  if (numbers.size() != sums.size()) index.fail("/phase", "does not name every dataset");
  std::vector<PhaseSums> phases;
  for (std::size_t i = 0; i < sums.size(); ++i) {
    if (numbers[i] >= kTokenPhases) index.fail("/phase", "names phase " + std::to_string(numbers[i]));
    phases.push_back({static_cast<TokenPhase>(numbers[i]), std::move(sums[i])});
  }
  return phases;
}

std::string dataset_of(const std::string& corpus, TokenPhase phase) {
  if (phase == TokenPhase::prefill) return corpus;
  return corpus + " (" + std::string(kTokenPhaseNames[static_cast<std::size_t>(phase)]) + ")";
}

}  // namespace switchyard
