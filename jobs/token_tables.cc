#include "jobs/token_tables.h"

#include <algorithm>
#include <sstream>

#include "parallel/error.h"

namespace switchyard {

void add_token_table_options(OptionParser& parser, const char* usual_tables) {
  auto add = parser.options().add_options();
  add("token-tables", po::value<std::string>()->default_value(usual_tables),
      "which experts-by-token tables to keep, or none; each takes layers x vocabulary x experts x 8 bytes a rank, or "
      "--token-cells x 8 where that is less");
  add("token-cells", po::value<std::uint64_t>()->default_value(kExactTokenCells),
      "tables of no more cells (layers x vocabulary x experts) are exact; larger ones keep their most frequent cells, "
      "and by how much a count may be too low");
}

TokenTableChoice chosen_token_tables(const OptionParser& parser, const AccumulatorShape& shape) {
  TokenTableChoice choice = TokenTableChoice::within(parser.get<std::uint64_t>("token-cells"), shape);
  choice.keep = {false, false, false};
  const auto& text = parser.get<std::string>("token-tables");
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

}  // namespace switchyard
