#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "io/hdf5/table.h"
#include "pipeline/block_source.h"

namespace switchyard {

/// Category labels -> their numbers in /documents/category, in order of first appearance in the run.
class Categories {
 public:
  /// names: those of the run so far.
  explicit Categories(const std::vector<std::string>& names);
  /// -1 for no category. Throws Error past the 32767 that the column holds.
  std::int16_t number(const std::string& name);
  /// Names that are new since the last call.
  std::vector<std::string> take_added() { return std::exchange(added_, {}); }

 private:
  std::map<std::string, std::int16_t> numbers_;
  std::vector<std::string> added_;
};

/// What /documents says of answers: nothing, how long they are, or what they say too.
enum class AnswerTables : std::uint8_t { none, lengths, text };

/// /documents/* of documents of one corpus.
std::vector<Table> document_tables(std::uint64_t corpus, const std::vector<DocumentRow>& documents,
                                   Categories& categories, AnswerTables answers = AnswerTables::none);

}  // namespace switchyard
