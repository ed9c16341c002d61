#include "jobs/token_tables.h"

#include <algorithm>
#include <sstream>

#include "jobs/format.h"
#include "parallel/error.h"

namespace switchyard {
namespace {

constexpr std::uint64_t kMostTableBytes = 8ULL << 30U;

}  // namespace

TokenTableChoice parse_token_tables(const std::string& text) {
  TokenTableChoice choice{{false, false, false}};
  if (text == "none") return choice;
  std::istringstream words(text);
  for (std::string word; std::getline(words, word, ',');) {
    const auto found = std::find(kTokenTableNames.begin(), kTokenTableNames.end(), word);
    if (found == kTokenTableNames.end())
      throw UsageError("unknown table '" + word + "'", "--token-tables",
                       "give none, or a list of input, target, predicted");
    choice.keep[static_cast<std::size_t>(found - kTokenTableNames.begin())] = true;
  }
  return choice;
}

void require_affordable(const AccumulatorShape& shape, TokenTableChoice tables, const std::string& text) {
  const std::uint64_t bytes = LiveAccumulators::table_bytes(shape, tables);
  if (bytes > kMostTableBytes)
    throw UsageError("would take " + as_bytes_text(static_cast<double>(bytes) * 2) + " on each rank",
                     "--token-tables " + text, "choose fewer tables, e.g. --token-tables input or none");
}

}  // namespace switchyard
