#include "jobs/master_file.h"

#include <utility>

#include "io/routing_reader.h"
#include "pipeline/route_loop.h"

namespace switchyard {

void write_run_master(const std::filesystem::path& out, const ModelFacts& model, std::vector<std::string> names,
                      const std::vector<SegmentEntry>& segments, const Tokenizer* tokenizer) {
  const std::uint64_t n = names.size();
  std::vector<std::uint64_t> documents(n, 0);
  std::vector<std::uint64_t> tokens(n, 0);
  std::vector<std::uint64_t> skipped(n, 0);
  std::vector<std::string> categories;
  std::vector<std::string> places;
  for (const SegmentEntry& entry : segments) {
    const SegmentDetails details = SegmentDetails::parse(entry.details);
    documents[details.corpus] += details.documents;
    tokens[details.corpus] += entry.tokens;
    skipped[details.corpus] += details.skipped;
    categories.insert(categories.end(), details.new_categories.begin(), details.new_categories.end());
    for (const std::string& place : details.skipped_places) places.push_back(names[details.corpus] + ": " + place);
  }
  std::vector<Table> tables;
  tables.push_back({"/corpora/name", {"corpus"}, {n}, std::move(names), "1", "name of the corpus"});
  tables.push_back({"/corpora/documents", {"corpus"}, {n}, std::move(documents), "1", "documents routed"});
  tables.push_back({"/corpora/tokens", {"corpus"}, {n}, std::move(tokens), "1", "tokens routed"});
  tables.push_back({"/corpora/skipped", {"corpus"}, {n}, std::move(skipped), "1", "bad documents left out"});
  const std::uint64_t n_categories = categories.size();
  tables.push_back({"/corpora/categories",
                    {"category"},
                    {n_categories},
                    std::move(categories),
                    "1",
                    "labels that /documents/category numbers"});
  if (tokenizer) {
    std::vector<std::string> pieces;
    for (std::uint32_t id = 0; id < tokenizer->vocabulary_size(); ++id) pieces.push_back(tokenizer->piece(id));
    const std::uint64_t n_pieces = pieces.size();
    tables.push_back({"/vocabulary/piece", {"token_id"}, {n_pieces}, std::move(pieces), "1", "text of the token id"});
  }
  // Placement and phases are those of the last segment: a continued run may have had other ranks before.
  if (!segments.empty()) {
    const RoutingReader last(out / segments.back().file);
    for (const char* path : {"/dispatch/placement", "/dispatch/logical", "/dispatch/phase_name", "/dispatch/part_name",
                             "/dispatch/row_bytes"})
      if (last.contains(path)) tables.push_back(last.read(path));
  }
  const std::uint64_t n_places = places.size();
  tables.push_back({"/corpora/skipped_places",
                    {"skipped_place"},
                    {n_places},
                    std::move(places),
                    "1",
                    "where bad documents were, up to 100 for each corpus and session"});
  write_master(out, model, segments, tables);
}

}  // namespace switchyard
