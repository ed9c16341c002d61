#include "pipeline/analysis/corpus_segments.h"

#include <nlohmann/json.hpp>

#include "io/routing_writer.h"
#include "io/run_folder.h"
#include "parallel/error.h"
#include "pipeline/route_loop.h"

namespace switchyard {

CorpusSegments segments_of(const std::filesystem::path& run, const std::optional<std::string>& corpus) {
  std::vector<std::string> names;
  const nlohmann::json description = nlohmann::json::parse(read_run_json(run));
  for (const nlohmann::json& c : description.at("identity").at("corpora")) names.push_back(c.at("name"));
  CorpusSegments segments;
  for (const SegmentEntry& entry : read_manifest(run)) {
    const std::string& name = names.at(SegmentDetails::parse(entry.details).corpus);
    if (corpus && name != *corpus) continue;
    segments.files.push_back(run / entry.file);
    segments.corpora.push_back(name);
  }
  if (segments.files.empty())
    throw Error("has no committed segment" + (corpus ? " of the corpus " + *corpus : std::string()), run.string(),
                "route the corpus into it first");
  return segments;
}

}  // namespace switchyard
