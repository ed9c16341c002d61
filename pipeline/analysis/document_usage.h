#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/hdf5/table.h"
#include "pipeline/analysis/table_index.h"

namespace switchyard {

/// Where one document's tokens of a phase were sent.
struct DocumentUsage {
  std::string id, category;  // category: "" for none
  std::uint64_t tokens = 0;
  std::vector<std::uint64_t> count;  // [L, E] slots
};

/// /documents/* of datasets; none when no dataset has documents.
std::vector<Table> document_usage_tables(const std::vector<const std::vector<DocumentUsage>*>& datasets,
                                         std::uint64_t layers, std::uint64_t experts);
/// The inverse, by dataset; all are empty where there are no such tables. Throws Error naming a table that is wrong.
std::vector<std::vector<DocumentUsage>> from_document_usage_tables(const TableIndex& tables, std::size_t n_datasets,
                                                                   std::uint64_t layers, std::uint64_t experts);

}  // namespace switchyard
