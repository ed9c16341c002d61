#include <algorithm>
#include <charconv>
#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include "io/routing_schema.h"
#include "io/stats_file.h"
#include "jobs/command.h"
#include "jobs/format.h"
#include "jobs/options.h"
#include "parallel/communicator.h"
#include "parallel/error.h"
#include "pipeline/analysis/statistics.h"
#include "pipeline/analysis/token_experts.h"

namespace switchyard {
namespace {

OptionParser make_parser() {
  OptionParser parser("tokens", "tokens STATS --expert LAYER:EXPERT | --token TEXT | --id N [options]",
                      "Prints, for each dataset of a statistics file, which tokens an expert gets, by count or by lift "
                      "(the token's share in the expert over its\n"
                      "share of all slots), or where a token goes, layer by layer.",
                      "Examples:\n  switchyard tokens run/stats.h5 --expert 3:7 --by lift\n  switchyard tokens "
                      "run/stats.h5 --token the --dataset wiki\n  switchyard tokens run/stats.h5 --expert 0:2 --of "
                      "predicted\n");
  auto add = parser.options().add_options();
  add("stats", po::value<std::string>()->required()->value_name("STATS"), "stats.h5; also without --stats");
  add("expert", po::value<std::string>()->value_name("LAYER:EXPERT"), "decoder layer and expert whose tokens to print");
  add("token", po::value<std::string>()->value_name("TEXT"),
      "text of a token; with and without a leading space are both looked up");
  add("id", po::value<std::uint32_t>()->value_name("N"), "id of a token");
  add("dataset", po::value<std::string>()->value_name("NAME"), "only this dataset");
  add("of", po::value<std::string>()->default_value("input"),
      "input: the token itself; target: the one that follows; predicted: the model's guess of it");
  add("by", po::value<std::string>()->default_value("count"), "count or lift");
  add("min-count", po::value<std::uint64_t>()->default_value(10), "slots that an id needs at the layer to be listed");
  add("top", po::value<std::size_t>()->default_value(20), "how many tokens to print");
  parser.positional("stats", 1);
  return parser;
}

/// What is asked of one statistics file.
class Lookup {
 public:
  Lookup(const OptionParser& parser, Statistics statistics)
      : parser_(parser), statistics_(std::move(statistics)), which_(parse_table()) {}

  void print_expert(const std::string& place) const;
  void print_token(std::uint32_t id) const;
  /// Ids of the tokens with this text, the one with a leading space first.
  std::vector<std::uint32_t> ids_of(const std::string& text) const;

 private:
  std::size_t parse_table() const;
  std::vector<const Dataset*> datasets() const;
  const SparseCounts& table_of(const Dataset& dataset) const;
  /// Says so when a layer's counts may be too low.
  void print_bound(const Dataset& dataset, std::size_t layer) const;
  std::string text_of(std::uint32_t id) const;

  const OptionParser& parser_;
  Statistics statistics_;
  std::size_t which_;  // of kTokenTableNames
};

std::size_t Lookup::parse_table() const {
  const auto& name = parser_.get<std::string>("of");
  const auto found = std::find(kTokenTableNames.begin(), kTokenTableNames.end(), name);
  if (found == kTokenTableNames.end())
    throw UsageError("unknown table '" + name + "'", "--of", "give input, target or predicted");
  return static_cast<std::size_t>(found - kTokenTableNames.begin());
}

std::vector<const Dataset*> Lookup::datasets() const {
  std::vector<const Dataset*> chosen;
  std::string known;
  for (const Dataset& dataset : statistics_.datasets) {
    known += (known.empty() ? "" : ", ") + dataset.name;
    if (!parser_.has("dataset") || parser_.get<std::string>("dataset") == dataset.name) chosen.push_back(&dataset);
  }
  if (chosen.empty())
    throw UsageError("no dataset is named '" + parser_.get<std::string>("dataset") + "'", "--dataset",
                     "give one of " + known);
  return chosen;
}

const SparseCounts& Lookup::table_of(const Dataset& dataset) const {
  const SparseCounts& table = dataset.accumulators.token_tables[which_];
  if (table.cells().empty() && dataset.accumulators.n_tokens() > 0)
    throw Error("holds no table of tokens by " + std::string(kTokenTableNames[which_]),
                parser_.get<std::string>("stats") + ", dataset " + dataset.name,
                "route with --token-tables " + std::string(kTokenTableNames[which_]));
  return table;
}

void Lookup::print_bound(const Dataset& dataset, std::size_t layer) const {
  const std::uint64_t undercount = dataset.accumulators.token_bounds[which_].undercount[layer];
  if (undercount > 0)
    std::printf(
        "          only the most frequent pairs of token and expert are kept: each count is at most %s too low\n",
        with_commas(undercount).c_str());
}

std::string Lookup::text_of(std::uint32_t id) const {
  if (id >= statistics_.vocabulary.size()) return std::to_string(id);
  std::string text;
  for (const char byte : statistics_.vocabulary[id])
    text += static_cast<unsigned char>(byte) < 0x20 ? std::string("?") : std::string(1, byte);
  return text;
}

std::vector<std::uint32_t> Lookup::ids_of(const std::string& text) const {
  const std::vector<std::string>& vocabulary = statistics_.vocabulary;
  if (vocabulary.empty())
    throw Error("does not say what token ids stand for", parser_.get<std::string>("stats"), "give --id instead");
  std::vector<std::uint32_t> ids;
  for (const std::string& piece : {"\u2581" + text, text})
    if (const auto found = std::find(vocabulary.begin(), vocabulary.end(), piece); found != vocabulary.end())
      ids.push_back(static_cast<std::uint32_t>(found - vocabulary.begin()));
  if (!ids.empty()) return ids;
  throw Error("'" + text + "' is not one token", "--token", "give a part of it, or an id by --id");
}

void Lookup::print_expert(const std::string& place) const {
  int decoder_layer = -1;
  int expert = -1;
  const char* end = place.data() + place.size();
  const auto [colon, fault] = std::from_chars(place.data(), end, decoder_layer);
  if (fault != std::errc() || colon == end || *colon != ':' || std::from_chars(colon + 1, end, expert).ptr != end)
    throw UsageError("is '" + place + "'", "--expert", "give LAYER:EXPERT, e.g. 3:7");
  const std::vector<int>& layers = statistics_.model.moe_layers;
  const auto layer = std::find(layers.begin(), layers.end(), decoder_layer);
  if (layer == layers.end() || expert < 0 || expert >= statistics_.model.n_experts)
    throw UsageError(
        "is " + place, "--expert",
        "the model has experts 0 to " + std::to_string(statistics_.model.n_experts - 1) + " in MoE layers " +
            (layers.empty() ? "none" : std::to_string(layers.front()) + " to " + std::to_string(layers.back())));
  const auto& by = parser_.get<std::string>("by");
  if (by != "count" && by != "lift") throw UsageError("unknown order '" + by + "'", "--by", "give count or lift");
  const TokenOrder order = by == "lift" ? TokenOrder::lift : TokenOrder::count;

  for (const Dataset* dataset : datasets()) {
    const auto by_expert =
        top_tokens(table_of(*dataset), dataset->accumulators.shape, static_cast<int>(layer - layers.begin()), order,
                   parser_.get<std::uint64_t>("min-count"), parser_.get<std::size_t>("top"));
    const std::vector<TokenShare>& tokens = by_expert.at(static_cast<std::size_t>(expert));
    std::printf("\n%s: tokens of layer %d's expert %d, by %s\n", dataset->name.c_str(), decoder_layer, expert,
                by.c_str());
    print_bound(*dataset, static_cast<std::size_t>(layer - layers.begin()));
    std::printf("      id     slots  of the expert  of the token    lift  token\n");
    for (const TokenShare& token : tokens)
      std::printf("%8u  %8s       %6.2f %%      %6.2f %%  %6.2f  %s\n", token.token, with_commas(token.count).c_str(),
                  100 * token.share, 100 * token.of_token, token.lift, text_of(token.token).c_str());
    if (tokens.empty()) std::printf("  none with that many slots\n");
  }
}

void Lookup::print_token(std::uint32_t id) const {
  if (id >= static_cast<std::uint32_t>(statistics_.model.vocabulary))
    throw UsageError("is " + std::to_string(id), "--id",
                     "the vocabulary has " + std::to_string(statistics_.model.vocabulary) + " tokens");
  for (const Dataset* dataset : datasets()) {
    const SparseCounts& table = table_of(*dataset);
    std::printf("\n%s: experts of token %u, %s\n", dataset->name.c_str(), id, text_of(id).c_str());
    std::printf("   layer     slots  experts, their share in %%\n");
    for (int l = 0; l < statistics_.model.n_moe_layers(); ++l) {
      const std::vector<std::uint64_t> counts = experts_of_token(table, dataset->accumulators.shape, l, id);
      std::uint64_t total = 0;
      for (const std::uint64_t count : counts) total += count;
      std::printf("%8d  %8s  %s ", statistics_.model.moe_layers[static_cast<std::size_t>(l)],
                  with_commas(total).c_str(), as_bars(counts).c_str());
      std::vector<std::size_t> order(counts.size());
      for (std::size_t e = 0; e < order.size(); ++e) order[e] = e;
      std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return counts[a] > counts[b]; });
      for (std::size_t i = 0; i < std::min<std::size_t>(4, order.size()) && counts[order[i]] > 0; ++i)
        std::printf(" %zu: %.1f", order[i], 100 * static_cast<double>(counts[order[i]]) / static_cast<double>(total));
      std::printf("\n");
      print_bound(*dataset, static_cast<std::size_t>(l));
    }
  }
}

}  // namespace

int run_tokens(const Arguments& arguments) {
  OptionParser parser = make_parser();
  if (!parser.parse(arguments)) return 0;
  if (static_cast<int>(parser.has("expert")) + static_cast<int>(parser.has("token")) +
          static_cast<int>(parser.has("id")) !=
      1)
    throw UsageError("what to look up?", "tokens", "give one of --expert, --token and --id");
  if (Communicator::world().rank() != 0) return 0;
  const std::filesystem::path path = parser.get<std::string>("stats");
  const Lookup lookup(parser, from_statistics_tables(read_tables(path, std::string(kStatsFormat)), path.string()));
  if (parser.has("expert")) lookup.print_expert(parser.get<std::string>("expert"));
  if (parser.has("id")) lookup.print_token(parser.get<std::uint32_t>("id"));
  if (parser.has("token"))
    for (const std::uint32_t id : lookup.ids_of(parser.get<std::string>("token"))) lookup.print_token(id);
  return 0;
}

}  // namespace switchyard
