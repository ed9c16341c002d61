#include "pipeline/experiments/ablation_sums.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "parallel/error.h"
#include "pipeline/analysis/document_groups.h"

namespace switchyard {
namespace {

using nlohmann::json;

constexpr std::size_t kMostCategories = 256;
constexpr std::size_t kGroups = kDocumentGroups;

/// The vectors of a category's sums, by the names they are kept under.
template <typename Sums, typename Visit>
void visit_vectors(Sums& sums, Visit&& visit) {
  visit("tokens", sums.tokens);
  visit("right", sums.right);
  visit("loss", sums.loss);
  visit("ablated_loss", sums.ablated_loss);
  visit("ablated_gained", sums.ablated_gained);
  visit("lost", sums.lost);
  visit("gained", sums.gained);
}

template <typename T>
json as_bytes(const std::vector<T>& values) {
  json::binary_t::container_type bytes(values.size() * sizeof(T));
  if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return json::binary(std::move(bytes));
}

template <typename T>
void fill_from_bytes(std::vector<T>& values, const json& stored) {
  const auto& bytes = stored.get_binary();
  if (bytes.size() != values.size() * sizeof(T)) throw Error("sums of an ablation are of another size");
  if (!bytes.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
}

template <typename T>
void add_to(std::vector<T>& sums, const std::vector<T>& more) {
  std::transform(sums.begin(), sums.end(), more.begin(), sums.begin(), std::plus<>());
}

void add_window(CategorySums& sums, std::size_t group, const WindowScore& score, const AblatedScore* changes) {
  sums.tokens[group] += score.tokens;
  sums.right[group] += score.right;
  sums.loss[group] += score.loss;
  for (std::size_t c = 0; c < sums.lost.size(); ++c) {
    const AblatedScore& change = changes[c];
    sums.ablated_loss[c * kGroups + group] += change.loss;
    sums.ablated_gained[c * kGroups + group] += std::int64_t{change.gained} - std::int64_t{change.lost};
    sums.lost[c] += change.lost;
    sums.gained[c] += change.gained;
  }
}

}  // namespace

AblationSums::AblationSums(std::size_t layers, std::size_t variants, std::size_t experts,
                           std::vector<std::string> corpora)
    : layers_(layers), variants_(variants), experts_(experts), corpora_(std::move(corpora)), use_(layers * experts) {}

CategorySums AblationSums::empty_category(std::string name) const {
  CategorySums sums;
  sums.name = std::move(name);
  const std::size_t changes = layers_ * variants_;
  sums.tokens.resize(kGroups);
  sums.right.resize(kGroups);
  sums.loss.resize(kGroups);
  sums.ablated_loss.resize(changes * kGroups);
  sums.ablated_gained.resize(changes * kGroups);
  sums.lost.resize(changes);
  sums.gained.resize(changes);
  return sums;
}

std::size_t AblationSums::category(std::uint64_t corpus, const std::string& label) {
  const std::string& of = corpora_[corpus];
  const std::string name = label.empty() ? of : corpora_.size() == 1 ? label : of + "/" + label;
  const auto found = std::ranges::find(categories_, name, &CategorySums::name);
  if (found == categories_.end()) {
    if (categories_.size() == kMostCategories)
      throw Error("more than " + std::to_string(kMostCategories) + " categories", "corpus " + of,
                  "give another column or key in category=, or none");
    categories_.push_back(empty_category(name));
    return categories_.size() - 1;
  }
  return static_cast<std::size_t>(found - categories_.begin());
}

void AblationSums::add(const Block& block, const WindowSums& windows) {
  std::vector<std::size_t> of_document;
  for (const DocumentRow& document : block.documents) {
    of_document.push_back(category(block.corpus, document.category));
    ++categories_[of_document.back()].documents;
  }
  for (std::size_t w = 0; w < block.windows.size(); ++w) {
    const std::uint64_t row = block.windows[w].document;
    const std::size_t c = row < documents_ ? latest_category_ : of_document[row - documents_];
    add_window(categories_[c], block.windows[w].group, windows.baseline[w],
               windows.ablated.data() + w * layers_ * variants_);
    for (std::size_t i = 0; i < use_.size(); ++i) {
      const ExpertUse& more = windows.use[w * use_.size() + i];
      use_[i].count += more.count;
      use_[i].weight += more.weight;
      use_[i].weighted_norm += more.weighted_norm;
      use_[i].norm += more.norm;
    }
  }
  documents_ += of_document.size();
  if (!of_document.empty()) latest_category_ = of_document.back();
}

json AblationSums::to_json() const {
  json categories = json::array();
  for (const CategorySums& sums : categories_) {
    json stored = {{"name", sums.name}, {"documents", sums.documents}};
    visit_vectors(sums, [&](const char* name, const auto& values) { stored[name] = as_bytes(values); });
    categories.push_back(std::move(stored));
  }
  return {{"categories", std::move(categories)},
          {"use", as_bytes(use_)},
          {"documents", documents_},
          {"latest_category", latest_category_}};
}

void AblationSums::from_json(const json& json) {
  categories_.clear();
  for (const auto& stored : json.at("categories")) {
    CategorySums sums = empty_category(stored.at("name"));
    sums.documents = stored.at("documents");
    visit_vectors(sums, [&](const char* name, auto& values) { fill_from_bytes(values, stored.at(name)); });
    categories_.push_back(std::move(sums));
  }
  fill_from_bytes(use_, json.at("use"));
  documents_ = json.at("documents");
  latest_category_ = json.at("latest_category");
}

CategorySums all_together(const AblationSums& sums) {
  CategorySums all = sums.categories().front();
  all.name = "all";
  for (std::size_t c = 1; c < sums.categories().size(); ++c) {
    const CategorySums& more = sums.categories()[c];
    all.documents += more.documents;
    add_to(all.tokens, more.tokens);
    add_to(all.right, more.right);
    add_to(all.loss, more.loss);
    add_to(all.ablated_loss, more.ablated_loss);
    add_to(all.ablated_gained, more.ablated_gained);
    add_to(all.lost, more.lost);
    add_to(all.gained, more.gained);
  }
  return all;
}

}  // namespace switchyard
