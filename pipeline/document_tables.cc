#include "pipeline/document_tables.h"

#include "parallel/error.h"

namespace switchyard {
namespace {

constexpr std::size_t kMostCategories = 32767;

}  // namespace

Categories::Categories(const std::vector<std::string>& names) {
  for (const std::string& name : names) numbers_.emplace(name, static_cast<std::int16_t>(numbers_.size()));
}

std::int16_t Categories::number(const std::string& name) {
  if (name.empty()) return -1;
  const auto [found, is_new] = numbers_.emplace(name, static_cast<std::int16_t>(numbers_.size()));
  if (is_new) {
    if (numbers_.size() > kMostCategories)
      throw Error("more than " + std::to_string(kMostCategories) + " categories", "category " + name,
                  "is it a column of labels?");
    added_.push_back(name);
  }
  return found->second;
}

std::vector<Table> document_tables(std::uint64_t corpus, const std::vector<DocumentRow>& documents,
                                   Categories& categories, AnswerTables answers) {
  std::vector<std::string> id;
  std::vector<std::int16_t> category;
  std::vector<std::uint64_t> first_token;
  std::vector<std::uint64_t> n_tokens;
  std::vector<std::uint8_t> truncated;
  std::vector<std::uint64_t> prompt_tokens;
  std::vector<std::string> response;
  for (const DocumentRow& document : documents) {
    id.push_back(document.id);
    category.push_back(categories.number(document.category));
    first_token.push_back(document.first_token);
    n_tokens.push_back(document.n_tokens);
    truncated.push_back(document.truncated ? 1 : 0);
    prompt_tokens.push_back(document.prompt_tokens);
    response.push_back(document.response);
  }
  const std::uint64_t n = id.size();
  const auto table = [n](const char* name, Table::Values values, const char* long_name) {
    return Table{std::string("/documents/") + name, {"document"}, {n}, std::move(values), "1", long_name};
  };
  std::vector<Table> tables;
  tables.push_back(
      table("corpus", std::vector<std::uint32_t>(n, static_cast<std::uint32_t>(corpus)), "row of /corpora"));
  tables.push_back(table("id", std::move(id), "identifier in its corpus"));
  tables.push_back(table("category", std::move(category), "row of /corpora/categories, -1: none"));
  tables.push_back(table("first_token", std::move(first_token), "row of the document's first token in the run"));
  tables.push_back(table("n_tokens", std::move(n_tokens), "tokens of the document"));
  tables.push_back(table("truncated", std::move(truncated), "1: the document's end was cut off"));
  if (answers != AnswerTables::none)
    tables.push_back(table("prompt_tokens", std::move(prompt_tokens), "of n_tokens, those before the answer"));
  if (answers == AnswerTables::text)
    tables.push_back(table("response", std::move(response), "text of the answer, without special tokens"));
  return tables;
}

}  // namespace switchyard
