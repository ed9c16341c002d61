#include "pipeline/analysis/rerun.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "io/routing_reader.h"
#include "io/run_folder.h"
#include "parallel/error.h"
#include "pipeline/analysis/corpus_segments.h"
#include "pipeline/analysis/dispatch_values.h"

namespace switchyard {
namespace {

/// Where a segment's experts were, and where its ranks.
struct Machine {
  std::vector<LayerPlan> plans;
  std::vector<std::uint32_t> rank_node;

  bool operator==(const Machine&) const = default;
};

Machine machine_of(DispatchValues& dispatch, const ModelFacts& model) {
  Machine machine;
  machine.plans = plans_of_record(dispatch.values<std::int32_t>("placement"), dispatch.values<std::uint16_t>("logical"),
                                  dispatch.shape("placement").at(1), model.moe_layers.size(),
                                  static_cast<std::size_t>(model.n_experts));
  const auto& node = dispatch.values<std::uint32_t>("rank_node");
  machine.rank_node.assign(node.begin(), node.begin() + static_cast<std::ptrdiff_t>(dispatch.shape("rank_node").at(1)));
  return machine;
}

MeasuredCorpus nothing_measured(const std::string& name, const ModelFacts& model, std::size_t ranks) {
  const std::size_t layers = model.moe_layers.size();
  return {name,
          RankLoad(model.n_moe_layers(), model.top_k),
          RankTime(model.n_moe_layers(), model.n_experts),
          std::vector<double>(layers * static_cast<std::size_t>(model.n_experts), 0),
          std::vector<double>(layers * ranks, 0),
          std::vector<double>(layers * ranks * ranks, 0)};
}

void add_segment(DispatchValues& dispatch, std::size_t ranks, MeasuredCorpus& corpus) {
  corpus.load.add(dispatch, 0);
  corpus.time.add(dispatch);
  const auto& slots = dispatch.values<std::uint32_t>("expert_slots");
  const auto& rank_of = dispatch.values<std::int32_t>("placement");
  const auto& logical = dispatch.values<std::uint16_t>("logical");
  const std::size_t physical = dispatch.shape("placement").at(1);
  const std::size_t experts = corpus.expert_slots.size() / (rank_of.size() / physical);
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const std::size_t copy = i % rank_of.size();  // of a layer
    const std::size_t layer = copy / physical;
    corpus.expert_slots[layer * experts + logical[copy]] += slots[i];
    corpus.rank_slots[layer * ranks + static_cast<std::size_t>(rank_of[copy])] += slots[i];
  }
  const auto& traffic = dispatch.values<std::uint64_t>("traffic");
  for (std::size_t i = 0; i < traffic.size(); ++i)
    corpus.traffic[i % corpus.traffic.size()] += static_cast<double>(traffic[i]);
}

CopyRule copy_rule_of(const std::filesystem::path& folder) {
  const nlohmann::json description = nlohmann::json::parse(read_run_json(folder));
  return parse_copy_rule(description.at("options").value("copies", "token"));
}

}  // namespace

double MeasuredCorpus::tokens() const {
  const auto of_layer = load.send_ranks.begin() + load.top_k + 1;
  return static_cast<double>(std::accumulate(load.send_ranks.begin(), of_layer, std::uint64_t{0}));
}

int Rerun::copies_of_layer() const {
  return std::accumulate(plans.front().begin(), plans.front().end(), 0,
                         [](int sum, const auto& ranks_of) { return sum + static_cast<int>(ranks_of.size()); });
}

Rerun read_rerun(const std::filesystem::path& folder) {
  Rerun rerun;
  rerun.folder = folder;
  rerun.copies = copy_rule_of(folder);
  const CorpusSegments segments = segments_of(folder, std::nullopt);
  std::optional<Machine> machine;
  for (std::size_t s = 0; s < segments.files.size(); ++s) {
    const RoutingReader segment(segments.files[s]);
    rerun.model = segment.model();
    if (rerun.model.n_moe_layers() == 0 || !segment.contains("/dispatch"))
      throw Error("no ranks routed its tokens to experts", folder.string(), "give a run of `switchyard route`");
    DispatchValues dispatch(segment);
    Machine of_segment = machine_of(dispatch, rerun.model);
    if (machine && *machine != of_segment)
      throw Error("its segments are of several placements, or of several machines", folder.string(),
                  "route into a new folder with one placement");
    machine = std::move(of_segment);
    const std::size_t ranks = machine->rank_node.size();
    if (rerun.corpora.empty()) rerun.corpora.push_back(nothing_measured("all datasets", rerun.model, ranks));
    auto corpus =
        std::ranges::find(rerun.corpora.begin() + 1, rerun.corpora.end(), segments.corpora[s], &MeasuredCorpus::name);
    if (corpus == rerun.corpora.end())
      corpus = rerun.corpora.insert(corpus, nothing_measured(segments.corpora[s], rerun.model, ranks));
    add_segment(dispatch, ranks, *corpus);
    add_segment(dispatch, ranks, rerun.corpora.front());
  }
  if (rerun.corpora.size() == 2) rerun.corpora.erase(rerun.corpora.begin());
  rerun.ranks = static_cast<int>(machine->rank_node.size());
  rerun.plans = std::move(machine->plans);
  rerun.rank_node = std::move(machine->rank_node);
  return rerun;
}

}  // namespace switchyard
