#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "pipeline/block_source.h"
#include "pipeline/experiments/ablation.h"

namespace switchyard {

/// Sums over one category's windows, by group of documents (document_groups.h): what is resampled.
struct CategorySums {
  std::string name;
  std::uint64_t documents = 0;
  std::vector<std::uint64_t> tokens;         // [groups] tokens that have a next one
  std::vector<std::uint64_t> right;          // [groups] of them, by the model as it is
  std::vector<double> loss;                  // [groups] nats
  std::vector<double> ablated_loss;          // [layers, variants, groups] nats
  std::vector<std::int64_t> ablated_gained;  // [layers, variants, groups] right now minus right before
  std::vector<std::uint64_t> lost;           // [layers, variants] right before, wrong now
  std::vector<std::uint64_t> gained;         // [layers, variants] wrong before, right now
};

/// Everything an ablation remembers of the text it has seen: of one size for any amount of text. Windows are added in
/// the order of the corpora, so that sums are the same bits for any number of ranks, batches and restarts.
class AblationSums {
 public:
  /// corpora: names, for categories: the label alone of one corpus, CORPUS/LABEL of several; documents without a label
  /// are of the category CORPUS.
  AblationSums(std::size_t layers, std::size_t variants, std::size_t experts, std::vector<std::string> corpora);

  /// Adds a block's windows, `windows` those of all ranks. Throws Error at more categories than can be told apart in
  /// bounded memory.
  void add(const Block& block, const WindowSums& windows);

  const std::vector<CategorySums>& categories() const { return categories_; }
  /// [layers, experts of the model], over all tokens of all categories.
  const std::vector<ExpertUse>& use() const { return use_; }
  std::size_t layers() const { return layers_; }
  std::size_t variants() const { return variants_; }
  std::size_t experts() const { return experts_; }

  /// To go on after a restart. from_json throws nlohmann::json::exception, or Error where sizes are not those of this.
  nlohmann::json to_json() const;
  void from_json(const nlohmann::json& json);

 private:
  CategorySums empty_category(std::string name) const;
  std::size_t category(std::uint64_t corpus, const std::string& label);

  std::size_t layers_, variants_, experts_;
  std::vector<std::string> corpora_;
  std::vector<CategorySums> categories_;
  std::vector<ExpertUse> use_;
  std::uint64_t documents_ = 0;      // rows of /documents so far
  std::size_t latest_category_ = 0;  // of the last of them, whose windows may go on in the next block
};

/// Sums of all categories together, named "all".
CategorySums all_together(const AblationSums& sums);

}  // namespace switchyard
