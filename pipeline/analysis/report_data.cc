#include "pipeline/analysis/report_data.h"

#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <string_view>
#include <utility>

#include "pipeline/analysis/cost_model.h"
#include "pipeline/analysis/token_experts.h"

namespace switchyard {
namespace {

// Floats are written with as many digits as tell 32-bit numbers apart: half the bytes of doubles.
using Json = nlohmann::basic_json<std::map, std::vector, std::string, bool, std::int64_t, std::uint64_t, float>;

constexpr std::size_t kDataBytes = 4'000'000;  // of JSON; the page's script and D3 come on top
constexpr std::size_t kFlowNumbers = 60'000;   // pairs of edge and count
constexpr std::size_t kCoactivationNumbers = 130'000;
constexpr std::size_t kExpertTokenNumbers = 100'000;
constexpr std::size_t kTokenNumbers = 250'000;
constexpr std::size_t kDocumentNumbers = 100'000;
constexpr std::size_t kExperimentNumbers = 150'000;  // of all of an experiment's tables
constexpr std::size_t kHistogramNumbers = 50'000;    // beyond, entropy's histograms alone are shown
constexpr std::size_t kRankTimeNumbers = 3'000;      // of a table by layer and rank
constexpr std::size_t kStragglerNumbers = 20'000;    // of the one by layer and expert
constexpr std::size_t kMostTokensOfExpert = 15;
constexpr std::size_t kFewTokens = 500;  // fewer than so many are not worth a split by dataset
constexpr std::size_t kPaths = 40;
constexpr std::uint64_t kMinTokenCount = 10;

/// Tables that a page shows as they are: whole groups end in "/".
constexpr std::array<std::string_view, 39> kShown = {"/cost/",
                                                     "/load/count",
                                                     "/load/cv",
                                                     "/load/gini",
                                                     "/load/max_over_mean",
                                                     "/load/min_over_mean",
                                                     "/load/effective_experts",
                                                     "/load/dead",
                                                     "/load/underused",
                                                     "/load/balancing_loss_per_choice",
                                                     "/load/z_loss",
                                                     "/loss/mean",
                                                     "/loss/perplexity",
                                                     "/loss/accuracy",
                                                     "/entropy/mean",
                                                     "/entropy/std",
                                                     "/entropy/median",
                                                     "/entropy/mean_bits",
                                                     "/entropy/histogram",
                                                     "/margin/mean",
                                                     "/margin/median",
                                                     "/margin/histogram",
                                                     "/top_probability/mean",
                                                     "/top_probability/confident_share",
                                                     "/top_probability/histogram",
                                                     "/repetition/top1_share",
                                                     "/repetition/any_share",
                                                     "/repetition/top1_null",
                                                     "/repetition/any_null",
                                                     "/flow/mutual_information",
                                                     "/flow/mutual_information_bias",
                                                     "/dataset_information/mutual_information",
                                                     "/dataset_information/mutual_information_bias",
                                                     "/ranks/steps",
                                                     "/ranks/seconds",
                                                     "/ranks/step_seconds",
                                                     "/ranks/phase_name",
                                                     "/ranks/traffic",
                                                     "/ranks/series"};
constexpr std::array<std::string_view, 28> kShownOfRanks = {"straggler_seconds",
                                                            "straggler_share",
                                                            "balancedness_mean",
                                                            "balancedness_ratio",
                                                            "imbalance_p50",
                                                            "imbalance_p90",
                                                            "imbalance_p99",
                                                            "imbalance_max",
                                                            "local_slots",
                                                            "remote_slots",
                                                            "remote_bytes",
                                                            "timed_steps",
                                                            "layer_dispatch_seconds",
                                                            "layer_dispatch_wait_seconds",
                                                            "layer_expert_seconds",
                                                            "layer_combine_seconds",
                                                            "layer_combine_wait_seconds",
                                                            "layer_straggler_seconds",
                                                            "slowest_steps",
                                                            "straggler_by_rank",
                                                            "straggler_by_expert",
                                                            "cost_sums",
                                                            "cost_model",
                                                            "cost_model_covariance",
                                                            "cost_model_r_squared",
                                                            "cost_model_of_rank",
                                                            "cost_model_of_rank_r_squared",
                                                            "slots_seconds_correlation"};
constexpr std::array<std::string_view, 4> kShownOfTokens = {"specialisation", "specialisation_baseline",
                                                            "mutual_information", "mutual_information_bias"};

bool is_shown(const Table& table) {
  const std::string_view path = table.path;
  const std::string_view name = name_of(path);
  if (name == "histogram" && path != "/entropy/histogram" && table.size() * 2 > kHistogramNumbers) return false;
  const auto among = [&](const auto& names) { return std::find(names.begin(), names.end(), name) != names.end(); };
  if (path.starts_with("/tokens/")) return among(kShownOfTokens);
  if (path.starts_with("/ranks/") && among(kShownOfRanks)) {
    const bool by_layer = table.dimensions.size() == 3 && table.dimensions[1] == "layer";
    return !by_layer || table.size() <= (table.dimensions[2] == "rank" ? kRankTimeNumbers : kStragglerNumbers);
  }
  return std::any_of(kShown.begin(), kShown.end(), [&](std::string_view shown) {
    return shown.ends_with('/') ? path.starts_with(shown) : path == shown;
  });
}

Json as_json(const Table& table) {
  Json values = Json::array();
  std::visit(
      [&](const auto& numbers) {
        for (const auto& number : numbers) {
          if constexpr (std::is_same_v<std::decay_t<decltype(number)>, double>)
            values.push_back(static_cast<float>(number));
          else
            values.push_back(number);
        }
      },
      table.values);
  return {{"dimensions", table.dimensions},
          {"shape", table.shape},
          {"units", table.units},
          {"name", table.long_name},
          {"values", std::move(values)}};
}

/// A dataset, or all of them together.
struct Scope {
  std::string name;
  const Accumulators* accumulators;
};

Json names_of(const std::vector<Scope>& scopes) {
  Json names = Json::array();
  for (const Scope& scope : scopes) names.push_back(scope.name);
  return names;
}

/// Number and count, alternating, of the largest counts, at most `most`, in ascending order of number.
Json largest(std::vector<std::pair<std::uint64_t, std::uint64_t>> counted, std::size_t most) {
  if (counted.size() > most) {
    const auto more = [](const auto& a, const auto& b) {
      return a.second != b.second ? a.second > b.second : a.first < b.first;
    };
    std::nth_element(counted.begin(), counted.begin() + static_cast<std::ptrdiff_t>(most), counted.end(), more);
    counted.resize(most);
    std::sort(counted.begin(), counted.end());
  }
  Json flat = Json::array();
  for (const auto& [number, count] : counted) {
    flat.push_back(number);
    flat.push_back(count);
  }
  return flat;
}

/// Of first choices between neighbouring layers: edges [scope, L-1][from * E + to, tokens, ...] and the tokens of each
/// first choice, [scope, L, E].
Json flow(const std::vector<Scope>& scopes, const AccumulatorShape& shape) {
  const auto experts = static_cast<std::size_t>(shape.experts);
  const std::size_t square = experts * experts;
  const auto pairs = static_cast<std::size_t>(shape.layers - 1);
  const std::size_t kept = std::min(square, std::max<std::size_t>(16, kFlowNumbers / 2 / (scopes.size() * pairs)));
  Json edges = Json::array();
  Json first = Json::array();
  for (const Scope& scope : scopes) {
    const std::vector<std::uint64_t>& counts = scope.accumulators->flow_top1;
    for (std::size_t l = 0; l < pairs; ++l) {
      std::vector<std::pair<std::uint64_t, std::uint64_t>> of_pair;
      for (std::size_t i = 0; i < square; ++i)
        if (counts[l * square + i] > 0) of_pair.emplace_back(i, counts[l * square + i]);
      edges.push_back(largest(std::move(of_pair), kept));
    }
    for (std::size_t l = 0; l <= pairs; ++l)
      for (std::size_t e = 0; e < experts; ++e)
        first.push_back(scope.accumulators->slot_count[l * static_cast<std::size_t>(shape.top_k) * experts + e]);
  }
  return {{"edges", std::move(edges)}, {"first", std::move(first)}, {"kept", kept}};
}

/// Tokens that chose two experts: [scope, L] of all pairs i < j in row order, or of the most frequent as i * E + j and
/// count; for datasets together where each alone would not fit.
Json coactivation(const std::vector<Scope>& scopes, const AccumulatorShape& shape) {
  const auto experts = static_cast<std::size_t>(shape.experts);
  const auto layers = static_cast<std::size_t>(shape.layers);
  const std::size_t n_pairs = experts * (experts - 1) / 2;
  const std::vector<Scope> shown(
      scopes.begin(), scopes.size() * layers * n_pairs <= kCoactivationNumbers ? scopes.end() : scopes.begin() + 1);
  const bool whole = shown.size() * layers * n_pairs <= kCoactivationNumbers;
  const std::size_t kept =
      whole ? n_pairs : std::max<std::size_t>(16, kCoactivationNumbers / 2 / (shown.size() * layers));
  Json pairs = Json::array();
  for (const Scope& scope : shown)
    for (std::size_t l = 0; l < layers; ++l) {
      const std::uint64_t* together = scope.accumulators->coactivation.data() + l * experts * experts;
      Json all = Json::array();
      std::vector<std::pair<std::uint64_t, std::uint64_t>> counted;
      for (std::size_t i = 0; i < experts; ++i)
        for (std::size_t j = i + 1; j < experts; ++j) {
          if (whole)
            all.push_back(together[i * experts + j]);
          else
            counted.emplace_back(i * experts + j, together[i * experts + j]);
        }
      pairs.push_back(whole ? std::move(all) : largest(std::move(counted), kept));
    }
  return {{"scopes", names_of(shown)}, {"pairs", std::move(pairs)}, {"whole", whole}, {"kept", kept}};
}

Json paths(const std::vector<Dataset>& datasets) {
  Json all = Json::array();
  for (const Dataset& dataset : datasets) {
    Json path = Json::array();
    Json count = Json::array();
    for (const PathSketch::Entry& entry : dataset.accumulators.paths.entries()) {
      if (count.size() == kPaths) break;
      path.push_back(entry.experts);
      count.push_back(entry.count);
    }
    all.push_back({{"path", std::move(path)},
                   {"count", std::move(count)},
                   {"undercount", dataset.accumulators.paths.undercount()}});
  }
  return all;
}

/// [vocabulary] slots of each token id in a layer. Of an exact table all layers say the same; of one that keeps its
/// most frequent cells alone each says at least so many, and the largest is nearest.
std::vector<std::uint64_t> slots_of_tokens(const SparseCounts& table, const AccumulatorShape& shape) {
  std::vector<std::uint64_t> slots(static_cast<std::size_t>(shape.vocabulary), 0);
  const auto experts = static_cast<std::uint64_t>(shape.experts);
  const std::vector<std::uint64_t>& cells = table.cells();
  for (std::size_t i = 0; i < cells.size();) {
    const std::uint64_t token_of_layer = cells[i] / experts;
    std::uint64_t sum = 0;
    for (; i < cells.size() && cells[i] / experts == token_of_layer; ++i) sum += table.counts()[i];
    std::uint64_t& most = slots[token_of_layer % slots.size()];
    most = std::max(most, sum);
  }
  return slots;
}

/// The tokens of every expert, most frequent and of highest lift, and what their figures need: slots of the experts, of
/// the tokens, of a layer.
Json expert_tokens(const SparseCounts& table, const AccumulatorShape& shape, std::size_t most,
                   std::set<std::uint32_t>& ids) {
  const std::vector<std::uint64_t> slots_of_token = slots_of_tokens(table, shape);
  const auto experts = static_cast<std::size_t>(shape.experts);
  std::vector<std::uint64_t> slots(static_cast<std::size_t>(shape.layers) * experts, 0);
  const std::uint64_t layer_cells = static_cast<std::uint64_t>(shape.vocabulary) * experts;
  for (std::size_t i = 0; i < table.cells().size(); ++i)
    slots[table.cells()[i] / layer_cells * experts + table.cells()[i] % experts] += table.counts()[i];
  const std::uint64_t layer_slots = std::reduce(slots_of_token.begin(), slots_of_token.end());
  Json result = {{"slots", slots}, {"total", Json::object()}, {"layer_slots", layer_slots}};
  for (const auto& [name, order] : {std::pair("count", TokenOrder::count), {"lift", TokenOrder::lift}}) {
    Json lists = Json::array();
    for (int l = 0; l < shape.layers; ++l)
      for (const std::vector<TokenShare>& tokens : top_tokens(table, shape, l, order, kMinTokenCount, most)) {
        Json list = Json::array();
        for (const TokenShare& token : tokens) {
          list.push_back(token.token);
          list.push_back(token.count);
          result["total"][std::to_string(token.token)] = slots_of_token[token.token];
          ids.insert(token.token);
        }
        lists.push_back(std::move(list));
      }
    result[name] = std::move(lists);
  }
  return result;
}

/// The most frequent tokens with their experts, layer by layer: cells [scope, token, layer] of E counts, or of the most
/// chosen experts' numbers and counts. room: how many numbers may be spent.
Json token_experts(const std::vector<Scope>& scopes, const std::vector<const SparseCounts*>& tables,
                   const AccumulatorShape& shape, std::size_t room, std::set<std::uint32_t>& ids) {
  std::vector<std::pair<std::uint64_t, std::uint32_t>> frequent;  // all datasets: slots, id
  const std::vector<std::uint64_t> slots_of_all = slots_of_tokens(*tables[0], shape);
  for (std::size_t id = 0; id < slots_of_all.size(); ++id)
    if (slots_of_all[id] > 0) frequent.emplace_back(slots_of_all[id], static_cast<std::uint32_t>(id));
  std::stable_sort(frequent.begin(), frequent.end(), [](const auto& a, const auto& b) { return a.first > b.first; });

  const auto layers = static_cast<std::size_t>(shape.layers);
  const bool whole = shape.experts <= 16;
  const std::size_t experts = whole ? static_cast<std::size_t>(shape.experts) : 4;
  const std::size_t of_token = layers * experts * (whole ? 1 : 2);
  const bool split = room / (of_token * scopes.size()) >= std::min(kFewTokens, frequent.size());
  const std::size_t n_scopes = split ? scopes.size() : 1;
  const std::size_t n_tokens = std::min(frequent.size(), room / (of_token * n_scopes));

  Json cells = Json::array();
  Json total = Json::array();
  for (std::size_t s = 0; s < n_scopes; ++s) {
    const std::vector<std::uint64_t> slots = slots_of_tokens(*tables[s], shape);
    for (std::size_t t = 0; t < n_tokens; ++t) {
      total.push_back(slots[frequent[t].second]);
      for (int l = 0; l < shape.layers; ++l) {
        const std::vector<std::uint64_t> counts = experts_of_token(*tables[s], shape, l, frequent[t].second);
        if (whole) {
          for (const std::uint64_t count : counts) cells.push_back(count);
          continue;
        }
        std::vector<std::pair<std::uint64_t, std::uint64_t>> counted;
        for (std::size_t e = 0; e < counts.size(); ++e) counted.emplace_back(e, counts[e]);
        for (Json& number : largest(std::move(counted), experts)) cells.push_back(std::move(number));
      }
    }
  }
  Json id = Json::array();
  for (std::size_t t = 0; t < n_tokens; ++t) {
    id.push_back(frequent[t].second);
    ids.insert(frequent[t].second);
  }
  return {{"scopes", names_of({scopes.begin(), scopes.begin() + static_cast<std::ptrdiff_t>(n_scopes)})},
          {"id", std::move(id)},
          {"seen", frequent.size()},
          {"whole", whole},
          {"experts", experts},
          {"cells", std::move(cells)},
          {"total", std::move(total)}};
}

Json comparison(const std::vector<PairDistances>& pairs, const CompareOptions& options) {
  Json result = {{"bootstrap", options.bootstrap},
                 {"permutations", options.permutations},
                 {"confidence", static_cast<float>(options.confidence)},
                 {"seed", options.seed}};
  for (const auto& [name, distances] :
       {std::pair("jsd", &PairDistances::jensen_shannon), {"tv", &PairDistances::total_variation}})
    for (const auto& [column, member] : {std::pair("value", &Distance::value),
                                         {"low", &Distance::low},
                                         {"high", &Distance::high},
                                         {"p", &Distance::p},
                                         {"q", &Distance::q}}) {
      Json values = Json::array();
      for (const PairDistances& pair : pairs)
        for (const Distance& distance : pair.*distances) values.push_back(static_cast<float>(distance.*member));
      result[name][column] = std::move(values);
    }
  return result;
}

Json facts(const Statistics& statistics, const ReportOptions& options) {
  const ModelFacts& model = statistics.model;
  Json datasets = Json::array();
  for (const Dataset& dataset : statistics.datasets)
    datasets.push_back({{"name", dataset.name},
                        {"tokens", dataset.accumulators.tokens[0]},
                        {"documents", dataset.accumulators.documents[0]},
                        {"windows", dataset.accumulators.windows[0]}});
  return {{"program", options.program},
          {"sources", options.sources},
          {"target_layer", options.target_layer},
          {"least_r_squared", static_cast<float>(kLeastRSquared)},
          {"datasets", std::move(datasets)},
          {"model",
           {{"name", model.name},
            {"family", model.family},
            {"layers", model.moe_layers},
            {"experts", model.n_experts},
            {"top_k", model.top_k},
            {"n_layers", model.n_layers},
            {"d_model", model.d_model},
            {"vocabulary", model.vocabulary}}}};
}

/// The first documents that statistics keep apart, of each dataset as many: slots by layer and expert.
Json documents(const std::vector<Dataset>& datasets, const AccumulatorShape& shape) {
  const std::size_t of_document = static_cast<std::size_t>(shape.layers) * static_cast<std::size_t>(shape.experts);
  const std::size_t most = kDocumentNumbers / (of_document * datasets.size());
  Json all = Json::array();
  for (std::size_t d = 0; d < datasets.size(); ++d)
    for (std::size_t i = 0; i < std::min(most, datasets[d].documents.size()); ++i) {
      const DocumentUsage& document = datasets[d].documents[i];
      all.push_back({{"dataset", d},
                     {"id", document.id},
                     {"category", document.category},
                     {"tokens", document.tokens},
                     {"count", document.count}});
    }
  return all;
}

/// The smaller tables first, while there is room, those of one size together: a figure may want all of them. The others
/// are named.
Json as_json(const Experiment& experiment) {
  std::map<std::uint64_t, std::vector<const Table*>> by_size;
  for (const Table& table : experiment.tables) by_size[table.size()].push_back(&table);
  Json json = {{"source", experiment.source}, {"settings", experiment.settings}, {"tables", Json::object()}};
  json["left_out"] = Json::array();
  std::uint64_t numbers = 0;
  for (const auto& [size, tables] : by_size) {
    numbers += size * tables.size();
    for (const Table* table : tables) {
      if (numbers > kExperimentNumbers)
        json["left_out"].push_back(table->path);
      else
        json["tables"][table->path] = as_json(*table);
    }
  }
  return json;
}

/// What is chosen of the token tables, of all datasets together and where there is room of each.
void add_tokens(Json& page, const std::vector<Scope>& scopes, const AccumulatorShape& shape,
                const std::vector<std::string>& vocabulary) {
  std::set<std::uint32_t> ids;
  const std::size_t of_experts = static_cast<std::size_t>(shape.layers) * static_cast<std::size_t>(shape.experts);
  // Each list of an expert holds ids and counts, once by count and once by lift.
  const auto lists_of = [&](std::size_t n_tables) { return kExpertTokenNumbers / (of_experts * 4 * n_tables); };
  const std::size_t n_tables = lists_of(kTokenTables) >= kMostTokensOfExpert / 2 ? kTokenTables : 1;
  const std::size_t most = std::clamp<std::size_t>(lists_of(n_tables), 3, kMostTokensOfExpert);
  for (std::size_t which = 0; which < n_tables; ++which) {
    const Accumulators& all = *scopes[0].accumulators;
    if (all.token_tables[which].cells().empty()) continue;
    Json& of_table = page["expert_tokens"][std::string(kTokenTableNames[which])];
    of_table = expert_tokens(all.token_tables[which], shape, most, ids);
    of_table["undercount"] = all.token_bounds[which].undercount;  // [L] how much a count may be too low
  }
  if (!page.contains("expert_tokens")) return;
  std::vector<const SparseCounts*> tables;
  for (const Scope& scope : scopes) tables.push_back(&scope.accumulators->token_tables[0]);
  if (!tables[0]->cells().empty()) {
    const std::size_t used = page.dump(-1, ' ', false, Json::error_handler_t::replace).size();
    constexpr std::size_t kBytesOfNumber = 8;
    const std::size_t room = std::min(kTokenNumbers, (kDataBytes - std::min(kDataBytes, used)) / kBytesOfNumber);
    page["tokens"] = token_experts(scopes, tables, shape, room, ids);
  }
  for (const std::uint32_t id : ids)
    if (id < vocabulary.size()) page["pieces"][std::to_string(id)] = vocabulary[id];
}

}  // namespace

std::string report_data(const Statistics& statistics, const std::vector<GroupedSlots>& groups,
                        const std::vector<PairDistances>& pairs, std::span<const Experiment> experiments,
                        const ReportOptions& options) {
  Json page = facts(statistics, options);
  for (const Experiment& experiment : experiments) page["experiments"][experiment.kind] = as_json(experiment);
  page["pieces"] = Json::object();
  page["tables"] = Json::object();
  std::vector<Table> tables = statistics_tables(statistics);
  if (!groups.empty())
    for (Table& table : pooled_tables(groups)) tables.push_back(std::move(table));
  for (const Table& table : tables)
    if (is_shown(table)) page["tables"][table.path] = as_json(table);
  if (!pairs.empty()) page["compare"] = comparison(pairs, options.compare);

  const AccumulatorShape shape = shape_of(statistics.model);
  Accumulators pooled(shape);
  std::vector<Scope> scopes;
  if (statistics.datasets.size() > 1) {
    for (const Dataset& dataset : statistics.datasets) pooled.merge(dataset.accumulators);
    scopes.push_back({"all datasets", &pooled});
  }
  for (const Dataset& dataset : statistics.datasets) scopes.push_back({dataset.name, &dataset.accumulators});
  page["scopes"] = names_of(scopes);
  const auto any = [&](std::vector<std::uint64_t> Accumulators::*counts) {  // what an import lacks is left out
    const std::vector<std::uint64_t>& all = scopes.front().accumulators->*counts;
    return std::any_of(all.begin(), all.end(), [](std::uint64_t count) { return count > 0; });
  };
  if (!scopes.empty() && shape.layers > 1 && any(&Accumulators::flow_top1)) {
    page["flow"] = flow(scopes, shape);
    page["paths"] = paths(statistics.datasets);
  }
  if (!scopes.empty() && shape.top_k > 1 && any(&Accumulators::coactivation))
    page["coactivation"] = coactivation(scopes, shape);
  if (!scopes.empty() && shape.layers > 0) page["documents"] = documents(statistics.datasets, shape);
  if (!scopes.empty() && shape.layers > 0) add_tokens(page, scopes, shape, statistics.vocabulary);
  return page.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace switchyard
