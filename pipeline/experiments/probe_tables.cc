#include "pipeline/experiments/probe_tables.h"

#include <cstdint>

namespace switchyard {
namespace {

/// Makes tables [dataset, layer, ...] of the fields of ProbedLayer.
class LayerTables {
 public:
  LayerTables(const std::vector<ProbedDataset>& datasets, std::uint64_t n_layers, std::uint64_t n_experts)
      : datasets_(datasets), n_layers_(n_layers), n_experts_(n_experts) {}

  template <typename T>
  void add(const char* name, std::vector<T> ProbedLayer::*field, std::vector<std::string> rest, const char* units,
           const char* long_name, std::uint64_t last_length = 0) {
    Table table = {
        std::string("/probe/") + name, {"dataset", "layer"}, {datasets_.size(), n_layers_}, {}, units, long_name};
    for (std::string& dimension : rest) {
      table.dimensions.push_back(std::move(dimension));
      table.shape.push_back(n_experts_);
    }
    if (last_length > 0) table.shape.back() = last_length;
    std::vector<T> values;
    for (const ProbedDataset& dataset : datasets_)
      for (const ProbedLayer& layer : dataset.layers)
        values.insert(values.end(), (layer.*field).begin(), (layer.*field).end());
    table.values = std::move(values);
    tables.push_back(std::move(table));
  }

  std::vector<Table> tables;

 private:
  const std::vector<ProbedDataset>& datasets_;
  std::uint64_t n_layers_, n_experts_;
};

std::vector<Table> layer_tables(const std::vector<ProbedDataset>& datasets, const ModelFacts& model,
                                const std::vector<int>& moe_layers) {
  const auto n_experts = static_cast<std::uint64_t>(model.n_experts);
  const std::vector<std::string> pair = {"expert", "expert2"};
  LayerTables make(datasets, moe_layers.size(), n_experts);
  make.add("output_cosine", &ProbedLayer::output_cosine, pair, "1", "mean cosine of two experts' outputs of a token");
  make.add("output_angular", &ProbedLayer::output_angular, pair, "1",
           "mean of 1 - arccos(cosine) / pi of two experts' outputs of a token");
  make.add("norm_score_rank", &ProbedLayer::norm_score_rank, {"norm_rank", "score_rank"}, "1",
           "tokens by an expert's rank of output norm and of router probability, 0 the largest");
  make.add("output_norm", &ProbedLayer::output_norm, {"expert"}, "1", "mean Euclidean norm of an expert's outputs");
  make.add("output_norm_std", &ProbedLayer::output_norm_std, {"expert"}, "1",
           "standard deviation over tokens of that norm");
  make.add("intermediate_cosine", &ProbedLayer::intermediate_cosine, pair, "1",
           "cosine of two experts' mean intermediate states");
  make.add("sparsity", &ProbedLayer::sparsity, {"expert"}, "1",
           "share of an intermediate state below 1e-3 of its largest magnitude");
  const std::uint64_t width = datasets.front().layers.front().intermediate_mean.size() / n_experts;
  if (datasets.size() * moe_layers.size() * n_experts * width * sizeof(float) <= kMostStateBytes)
    make.add("intermediate_mean", &ProbedLayer::intermediate_mean, {"expert", "neuron"}, "1",
             "mean intermediate state of an expert", width);
  std::vector<std::uint32_t> decoder_layers;
  for (const int layer : moe_layers)
    decoder_layers.push_back(static_cast<std::uint32_t>(model.moe_layers[static_cast<std::size_t>(layer)]));
  make.tables.push_back({"/probe/decoder_layer",
                         {"layer"},
                         {moe_layers.size()},
                         std::move(decoder_layers),
                         "1",
                         "decoder layer of each layer probed"});
  return std::move(make.tables);
}

std::vector<Table> shown_tables(const std::vector<ProbedDataset>& datasets, const ModelFacts& model,
                                const std::vector<int>& moe_layers, const Tokenizer* tokenizer) {
  std::vector<std::uint32_t> dataset_of;
  std::vector<std::uint32_t> id;
  std::vector<std::uint32_t> position;
  std::vector<std::string> document;
  std::vector<std::string> piece;
  std::vector<std::uint16_t> expert;
  std::vector<float> weight;
  for (std::size_t d = 0; d < datasets.size(); ++d) {
    for (const ShownToken& token : datasets[d].shown) {
      dataset_of.push_back(static_cast<std::uint32_t>(d));
      id.push_back(token.id);
      position.push_back(token.position);
      document.push_back(token.document);
      const bool has_piece = tokenizer != nullptr && token.id < tokenizer->vocabulary_size();
      piece.push_back(has_piece ? tokenizer->piece(token.id) : std::string());
    }
    for (const std::uint64_t e : datasets[d].shown_expert) expert.push_back(static_cast<std::uint16_t>(e));
    for (const double w : datasets[d].shown_weight) weight.push_back(static_cast<float>(w));
  }
  const std::uint64_t n = id.size();
  const std::vector<std::uint64_t> choices = {n, moe_layers.size(), static_cast<std::uint64_t>(model.top_k)};
  return {
      {"/tokens_shown/dataset", {"token"}, {n}, std::move(dataset_of), "1", "row of /datasets"},
      {"/tokens_shown/id", {"token"}, {n}, std::move(id), "1", "token id"},
      {"/tokens_shown/position", {"token"}, {n}, std::move(position), "1", "position in the window"},
      {"/tokens_shown/document", {"token"}, {n}, std::move(document), "1", "id of the document"},
      {"/tokens_shown/piece", {"token"}, {n}, std::move(piece), "1", "text of the token, empty without a tokenizer"},
      {"/tokens_shown/expert",
       {"token", "layer", "slot"},
       choices,
       std::move(expert),
       "1",
       "chosen experts by weight descending"},
      {"/tokens_shown/weight", {"token", "layer", "slot"}, choices, std::move(weight), "1", "combine weights"}};
}

}  // namespace

std::vector<Table> probe_tables(const std::vector<ProbedDataset>& datasets, const std::vector<std::string>& names,
                                const ModelFacts& model, const std::vector<int>& moe_layers,
                                const Tokenizer* tokenizer) {
  std::vector<std::uint64_t> tokens;
  std::vector<std::uint64_t> documents;
  for (const ProbedDataset& dataset : datasets) {
    tokens.push_back(dataset.tokens);
    documents.push_back(dataset.documents);
  }
  const std::uint64_t n = datasets.size();
  std::vector<Table> tables = {
      {"/datasets/name", {"dataset"}, {n}, names, "1", "name of the dataset"},
      {"/datasets/tokens", {"dataset"}, {n}, std::move(tokens), "1", "tokens probed"},
      {"/datasets/documents", {"dataset"}, {n}, std::move(documents), "1", "documents of them"}};
  for (Table& table : layer_tables(datasets, model, moe_layers)) tables.push_back(std::move(table));
  for (Table& table : shown_tables(datasets, model, moe_layers, tokenizer)) tables.push_back(std::move(table));
  return tables;
}

std::vector<std::pair<std::string, std::string>> probe_group_descriptions() {
  return {{"/datasets", "the corpora whose tokens were probed"},
          {"/probe", "every expert on every token: similarity of outputs and intermediate states, norms, sparsity"},
          {"/tokens_shown", "experts chosen for the first tokens of each dataset"}};
}

}  // namespace switchyard
