#include "pipeline/analysis/token_phase.h"

#include <utility>

#include "pipeline/analysis/table_index.h"

namespace switchyard {
namespace {

constexpr const char* kRoot = "/accumulators";

/// The phase of each entry of `dataset`; without /phase there is one entry, prefill.
std::vector<TokenPhase> phases_of(const TableIndex& index, std::size_t n_entries) {
  std::vector<std::uint8_t> numbers(1, 0);
  if (index.find("/phase") != nullptr) numbers = index.values<std::uint8_t>("/phase");
  if (numbers.size() != n_entries) index.fail("/phase", "does not name every dataset");
  std::vector<TokenPhase> phases;
  for (const std::uint8_t number : numbers) {
    if (number >= kTokenPhases) index.fail("/phase", "names phase " + std::to_string(number));
    phases.push_back(static_cast<TokenPhase>(number));
  }
  return phases;
}

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
  std::vector<Accumulators> sums = from_tables(tables, kRoot, shape, whole);
  const std::vector<TokenPhase> phases = phases_of(TableIndex(tables, kRoot), sums.size());
  std::vector<PhaseSums> named;
  for (std::size_t i = 0; i < sums.size(); ++i) named.push_back({phases[i], std::move(sums[i])});
  return named;
}

std::vector<std::string> phase_table_paths() {
  std::vector<std::string> paths = accumulator_paths();
  paths.emplace_back("/phase");
  for (std::string& path : paths) path.insert(0, kRoot);
  return paths;
}

void add_phase_tables(const std::vector<Table>& tables, const AccumulatorShape& shape,
                      std::array<std::optional<AccumulatorSum>, kTokenPhases>& sums) {
  const TableIndex index(tables, kRoot);
  const std::vector<TokenPhase> phases = phases_of(index, index.at("/totals/tokens").size());
  for (std::size_t entry = 0; entry < phases.size(); ++entry) {
    std::optional<AccumulatorSum>& sum = sums.at(static_cast<std::size_t>(phases[entry]));
    if (!sum) sum.emplace(shape);
    sum->add(index, entry);
  }
}

std::string dataset_of(const std::string& corpus, TokenPhase phase) {
  if (phase == TokenPhase::prefill) return corpus;
  return corpus + " (" + std::string(kTokenPhaseNames[static_cast<std::size_t>(phase)]) + ")";
}

}  // namespace switchyard
