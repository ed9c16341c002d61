#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "io/routing_writer.h"
#include "parallel/communicator.h"
#include "pipeline/analysis/document_usage.h"
#include "pipeline/analysis/token_phase.h"

namespace switchyard {

/// Tables hold each document's counts whole: for sets of questions, not for corpora.
inline constexpr std::uint64_t kMostDocuments = 4096;

/// A corpus of a run, whose documents are asked for.
struct DocumentRows {
  std::filesystem::path folder;
  std::span<const SegmentEntry> segments;            // of the whole run
  std::span<const std::uint64_t> corpus_of_segment;  // [segments]
  std::uint64_t corpus = 0;
  std::span<const std::uint8_t> excluded_tokens;  // [V] flags of ids that do not count, or empty
};

/// Collective. The corpus' first `most` documents, in order, by phase, from its token rows; ranks share the documents.
/// One without a token of a phase is left out there, one without any token stands with prefill. Whole on rank 0. Throws
/// Error when the record holds no token rows.
std::array<std::vector<DocumentUsage>, kTokenPhases> usage_of_documents(const DocumentRows& rows, std::uint64_t most,
                                                                        const Communicator& comm);

}  // namespace switchyard
