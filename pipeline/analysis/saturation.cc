#include "pipeline/analysis/saturation.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "io/routing_reader.h"
#include "parallel/error.h"
#include "pipeline/analysis/document_groups.h"
#include "pipeline/analysis/resampling.h"

namespace switchyard {
namespace {

constexpr std::uint64_t kRowsAtOnce = 1 << 16;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

template <typename T>
std::vector<T> column(const RoutingReader& reader, const char* path) {
  return std::get<std::vector<T>>(reader.read(path).values);
}

/// Two records of the same tokens.
class Pair {
 public:
  Pair(const std::filesystem::path& first, const std::filesystem::path& second)
      : names_{first.string(), second.string()}, first_(first), second_(second) {
    for (const auto& [reader, name] : {std::pair(&first_, &names_.first), std::pair(&second_, &names_.second)})
      if (reader->level() == RecordLevel::counts || reader->model().n_moe_layers() == 0)
        throw Error("holds no routing of single tokens", *name,
                    "route a mixture-of-experts model with --record tokens");
    for (const auto& [reader, name] : {std::pair(&first_, &names_.first), std::pair(&second_, &names_.second)})
      if (!reader->layout().has(RowField::id))
        throw Error("holds no token ids, which tell whether the tokens are the same", *name,
                    "import lines that have token ids");
    const ModelFacts& a = first_.model();
    const ModelFacts& b = second_.model();
    if (a.n_moe_layers() != b.n_moe_layers() || a.n_experts != b.n_experts || a.top_k != b.top_k)
      throw Error("routed a model of another shape than " + names_.first, names_.second,
                  "compare checkpoints of one model");
    if (column<std::string>(first_, "/corpora/name") != column<std::string>(second_, "/corpora/name") ||
        column<std::uint64_t>(first_, "/corpora/tokens") != column<std::uint64_t>(second_, "/corpora/tokens"))
      throw Error("has other corpora or numbers of tokens than " + names_.first, names_.second,
                  "route the same corpora with the same options");
    for (const std::string& id : column<std::string>(first_, "/documents/id")) groups_.push_back(document_group(id));
  }

  const ModelFacts& model() const { return first_.model(); }
  std::vector<std::string> corpora() const { return column<std::string>(first_, "/corpora/name"); }
  std::vector<std::uint64_t> tokens() const { return column<std::uint64_t>(first_, "/corpora/tokens"); }
  std::uint16_t group_of(std::uint32_t document) const { return groups_.at(document); }

  /// Rows [first, first + count) of both.
  std::pair<TokenRows, TokenRows> read(std::uint64_t first, std::uint64_t count) const {
    std::pair<TokenRows, TokenRows> rows = {first_.read_rows(first, count), second_.read_rows(first, count)};
    const auto [a, b] = std::mismatch(rows.first.id.begin(), rows.first.id.end(), rows.second.id.begin());
    if (a != rows.first.id.end())
      throw Error("its token " + std::to_string(first + static_cast<std::uint64_t>(a - rows.first.id.begin())) +
                      " has id " + std::to_string(*b) + ", that of " + names_.first + " has " + std::to_string(*a),
                  names_.second, "route the same corpora with the same options and tokenizer");
    return rows;
  }

 private:
  std::pair<std::string, std::string> names_;
  RoutingReader first_, second_;
  std::vector<std::uint16_t> groups_;  // by row of /documents
};

/// Counts of one corpus, added up over rows and ranks.
struct Overlap {
  std::vector<std::uint64_t> common;               // [groups, L] experts in both choices
  std::vector<std::uint64_t> tokens;               // [groups]
  std::vector<std::uint64_t> in_first, in_second;  // [L, E] slots

  explicit Overlap(const ModelFacts& model)
      : common(static_cast<std::size_t>(kDocumentGroups * model.n_moe_layers()), 0),
        tokens(kDocumentGroups, 0),
        in_first(static_cast<std::size_t>(model.n_moe_layers() * model.n_experts), 0),
        in_second(in_first.size(), 0) {}

  void add(const Pair& pair, const TokenRows& a, const TokenRows& b) {
    const auto k = static_cast<std::size_t>(pair.model().top_k);
    const auto experts = static_cast<std::size_t>(pair.model().n_experts);
    const std::size_t layers = a.layers.size();
    for (std::size_t t = 0; t < a.size(); ++t) {
      const std::size_t group = pair.group_of(a.document[t]);
      ++tokens[group];
      for (std::size_t l = 0; l < layers; ++l) {
        const std::uint16_t* mine = a.layers[l].expert.data() + t * k;
        const std::uint16_t* other = b.layers[l].expert.data() + t * k;
        for (std::size_t j = 0; j < k; ++j) {
          common[group * layers + l] += std::find(other, other + k, mine[j]) != other + k ? 1 : 0;
          ++in_first[l * experts + mine[j]];
          ++in_second[l * experts + other[j]];
        }
      }
    }
  }
  void reduce_to_root(const Communicator& comm) {
    for (auto* counts : {&common, &tokens, &in_first, &in_second}) comm.sum_to_root(*counts);
  }
};

Saturation saturation_of(const std::string& corpus, const Overlap& overlap, const ModelFacts& model,
                         const CompareOptions& options) {
  const auto layers = static_cast<std::size_t>(model.n_moe_layers());
  const auto experts = static_cast<std::size_t>(model.n_experts);
  const double k = model.top_k;
  // Groups as a dataset of L + 1 columns: common experts by layer, then tokens. Resampling sums both alike.
  std::vector<std::size_t> used;
  for (std::size_t g = 0; g < kDocumentGroups; ++g)
    if (overlap.tokens[g] > 0) used.push_back(g);
  const auto ratios = [&](const std::vector<std::uint32_t>& times) {
    std::vector<double> sums(layers, 0);
    double tokens = 0;
    for (std::size_t i = 0; i < used.size(); ++i) {
      tokens += times[i] * static_cast<double>(overlap.tokens[used[i]]);
      for (std::size_t l = 0; l < layers; ++l)
        sums[l] += times[i] * static_cast<double>(overlap.common[used[i] * layers + l]);
    }
    for (double& sum : sums) sum /= k * tokens;
    return sums;
  };

  Saturation result;
  result.corpus = corpus;
  for (const std::size_t g : used) result.tokens += overlap.tokens[g];
  result.value = ratios(std::vector<std::uint32_t>(used.size(), 1));
  const auto all = static_cast<double>(result.tokens);
  for (std::size_t l = 0; l < layers; ++l) {
    double expected = 0;
    for (std::size_t e = 0; e < experts; ++e)
      expected += static_cast<double>(overlap.in_first[l * experts + e]) / all *
                  (static_cast<double>(overlap.in_second[l * experts + e]) / all);
    result.expected.push_back(expected / k);
  }
  result.low.assign(layers, kNan);
  result.high.assign(layers, kNan);
  if (used.size() < 2) return result;
  std::vector<std::vector<double>> resampled(layers);
  for (int resample = 0; resample < options.bootstrap; ++resample) {
    const std::vector<double> values =
        ratios(bootstrap_times(used.size(), options.seed, corpus, static_cast<std::uint64_t>(resample)));
    for (std::size_t l = 0; l < layers; ++l) resampled[l].push_back(values[l]);
  }
  for (std::size_t l = 0; l < layers; ++l) {
    std::sort(resampled[l].begin(), resampled[l].end());
    result.low[l] = sorted_quantile(resampled[l], (1 - options.confidence) / 2);
    result.high[l] = sorted_quantile(resampled[l], (1 + options.confidence) / 2);
  }
  return result;
}

}  // namespace

std::vector<Saturation> router_saturation(const std::filesystem::path& first, const std::filesystem::path& second,
                                          const CompareOptions& options, const Communicator& comm) {
  const Pair pair(first, second);
  const std::vector<std::string> corpora = pair.corpora();
  const std::vector<std::uint64_t> tokens = pair.tokens();
  const auto rank = static_cast<std::uint64_t>(comm.rank());
  const auto n_ranks = static_cast<std::uint64_t>(comm.size());
  std::vector<Saturation> result;
  std::uint64_t begin = 0;  // of the corpus
  for (std::size_t c = 0; c < corpora.size(); begin += tokens[c++]) {
    Overlap overlap(pair.model());
    const std::uint64_t my_end = begin + tokens[c] * (rank + 1) / n_ranks;
    for (std::uint64_t row = begin + tokens[c] * rank / n_ranks; row < my_end; row += kRowsAtOnce) {
      const auto [a, b] = pair.read(row, std::min(kRowsAtOnce, my_end - row));
      overlap.add(pair, a, b);
    }
    overlap.reduce_to_root(comm);
    if (comm.rank() == 0) result.push_back(saturation_of(corpora[c], overlap, pair.model(), options));
  }
  return result;
}

std::vector<Table> saturation_tables(const std::vector<Saturation>& corpora) {
  const std::uint64_t n = corpora.size();
  const std::uint64_t layers = n == 0 ? 0 : corpora.front().value.size();
  std::vector<Table> tables;
  std::vector<std::string> names;
  std::vector<std::uint64_t> tokens;
  for (const Saturation& corpus : corpora) {
    names.push_back(corpus.corpus);
    tokens.push_back(corpus.tokens);
  }
  tables.push_back({"/saturation/corpus", {"corpus"}, {n}, std::move(names), "1", "name of the corpus"});
  tables.push_back({"/saturation/tokens", {"corpus"}, {n}, std::move(tokens), "1", "tokens that both runs routed"});
  for (const auto& [name, member, long_name] :
       {std::tuple("value", &Saturation::value, "share of a token's experts that both runs chose, mean over tokens"),
        std::tuple("low", &Saturation::low, "lower end of its interval over documents"),
        std::tuple("high", &Saturation::high, "upper end of its interval over documents"),
        std::tuple("expected", &Saturation::expected, "the same for independent choices of the same usage")}) {
    std::vector<double> values;
    for (const Saturation& corpus : corpora)
      values.insert(values.end(), (corpus.*member).begin(), (corpus.*member).end());
    tables.push_back(
        {std::string("/saturation/") + name, {"corpus", "layer"}, {n, layers}, std::move(values), "1", long_name});
  }
  return tables;
}

}  // namespace switchyard
