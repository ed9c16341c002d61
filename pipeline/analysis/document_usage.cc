#include "pipeline/analysis/document_usage.h"

#include <utility>

namespace switchyard {

std::vector<Table> document_usage_tables(const std::vector<const std::vector<DocumentUsage>*>& datasets,
                                         std::uint64_t layers, std::uint64_t experts) {
  std::vector<std::uint32_t> dataset;
  std::vector<std::string> id;
  std::vector<std::string> category;
  std::vector<std::uint64_t> tokens;
  std::vector<std::uint64_t> count;
  for (std::size_t d = 0; d < datasets.size(); ++d)
    for (const DocumentUsage& document : *datasets[d]) {
      dataset.push_back(static_cast<std::uint32_t>(d));
      id.push_back(document.id);
      category.push_back(document.category);
      tokens.push_back(document.tokens);
      count.insert(count.end(), document.count.begin(), document.count.end());
    }
  std::vector<Table> tables;
  const std::uint64_t n = id.size();
  if (n == 0) return tables;
  tables.push_back({"/documents/dataset", {"document"}, {n}, std::move(dataset), "1", "dataset of the document"});
  tables.push_back({"/documents/id", {"document"}, {n}, std::move(id), "1", "identifier in its corpus"});
  tables.push_back({"/documents/category", {"document"}, {n}, std::move(category), "1", "its label, empty for none"});
  tables.push_back({"/documents/tokens", {"document"}, {n}, std::move(tokens), "1", "tokens of the document"});
  if (layers > 0)
    tables.push_back({"/documents/count",
                      {"document", "layer", "expert"},
                      {n, layers, experts},
                      std::move(count),
                      "1",
                      "slots that the document's tokens sent to the expert"});
  return tables;
}

std::vector<std::vector<DocumentUsage>> from_document_usage_tables(const TableIndex& tables, std::size_t n_datasets,
                                                                   std::uint64_t layers, std::uint64_t experts) {
  std::vector<std::vector<DocumentUsage>> datasets(n_datasets);
  if (tables.find("/documents/id") == nullptr) return datasets;
  const auto& id = tables.values<std::string>("/documents/id");
  const auto& dataset = tables.values<std::uint32_t>("/documents/dataset", id.size());
  const auto& category = tables.values<std::string>("/documents/category", id.size());
  const auto& tokens = tables.values<std::uint64_t>("/documents/tokens", id.size());
  const std::uint64_t cells = layers * experts;
  static const std::vector<std::uint64_t> none;
  const auto& count = layers > 0 ? tables.values<std::uint64_t>("/documents/count", id.size() * cells) : none;
  for (std::size_t i = 0; i < id.size(); ++i) {
    if (dataset[i] >= n_datasets) tables.fail("/documents/dataset", "names dataset " + std::to_string(dataset[i]));
    const auto begin = count.begin() + static_cast<std::ptrdiff_t>(i * cells);
    datasets[dataset[i]].push_back(
        {id[i], category[i], tokens[i], {begin, begin + static_cast<std::ptrdiff_t>(cells)}});
  }
  return datasets;
}

}  // namespace switchyard
