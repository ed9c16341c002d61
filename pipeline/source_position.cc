#include "pipeline/source_position.h"

namespace switchyard {

nlohmann::json as_json(const SourcePosition& p) {
  return {{"corpus", p.corpus},
          {"file", p.chunk.file},
          {"offset", p.chunk.offset},
          {"in_file", p.chunk.in_file},
          {"ordinal", p.chunk.ordinal},
          {"lines", p.chunk.lines},
          {"blocks_of_chunk", p.blocks_of_chunk},
          {"block", p.block},
          {"documents", p.documents},
          {"tokens", p.tokens},
          {"generated", p.generated},
          {"corpus_tokens", p.corpus_tokens},
          {"corpus_documents", p.corpus_documents}};
}

SourcePosition source_position(const nlohmann::json& j) {
  SourcePosition p;
  p.corpus = j.at("corpus");
  // Records of earlier versions do not say lines: bad documents behind such a place are named by lines from there.
  p.chunk = {j.at("file"), j.at("offset"), j.at("in_file"), j.at("ordinal"), j.value("lines", std::uint64_t{0})};
  p.blocks_of_chunk = j.at("blocks_of_chunk");
  p.block = j.at("block");
  p.documents = j.at("documents");
  p.tokens = j.at("tokens");
  p.generated = j.value("generated", std::uint64_t{0});  // records of earlier versions have no answers
  p.corpus_tokens = j.at("corpus_tokens");
  p.corpus_documents = j.at("corpus_documents");
  return p;
}

}  // namespace switchyard
