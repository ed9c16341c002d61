#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "io/routing_writer.h"
#include "parallel/device/energy_meter.h"
#include "parallel/node_map.h"
#include "pipeline/block_source.h"
#include "pipeline/generation.h"
#include "pipeline/model/model.h"
#include "pipeline/rebalancer.h"
#include "pipeline/recorder.h"

namespace switchyard {

/// Where the run is, as rank 0 sees it after a step.
struct RouteProgress {
  std::uint64_t corpus = 0;
  std::uint64_t corpus_tokens = 0;     // done of this corpus, earlier sessions included
  std::optional<CorpusCursor> cursor;  // where the chunk begins that holds the next block; none: this was the last
  std::uint64_t session_tokens = 0;    // routed since this process began, by all ranks
  double imbalance = 0;                // Recorder::latest_imbalance; NaN where no ranks routed
};

struct RouteOptions {
  ModelFacts model;
  std::filesystem::path out;
  std::uint64_t next_segment = 0;       // segments committed before
  std::vector<std::string> categories;  // met before, in the order of their numbers
  std::int64_t batch_tokens = 0;        // most tokens of a rank's step
  GenerationOptions generation;
  std::uint64_t generated = 0;           // tokens of answers committed before
  const Tokenizer* tokenizer = nullptr;  // of answers; nullptr: they are kept as token ids alone
  NodeMap nodes;                         // of all ranks, for the record
  const EnergyMeter* energy = nullptr;   // of this rank's GPU; nullptr: it has none
  WriteOptions write;
  RebalanceOptions rebalance;
  std::function<void(const Rebalanced&)> on_rebalance;  // every rank, after each change of places
  double commit_seconds = 60;                  // a segment is committed at the first block's end after this long ...
  std::uint64_t commit_bytes = 256ULL << 20U;  // ... or when a rank holds this many bytes of rows
  std::function<double(const RouteProgress&)> share_done;  // rank 0: of the whole run, for the manifest
};

struct RouteOutcome {
  bool stopped = false;              // by a signal: the run is not complete
  std::uint64_t session_tokens = 0;  // of all ranks, answers included
  std::uint64_t session_generated = 0;
  double seconds = 0;     // wall
  PhaseSeconds phases{};  // summed over this rank's steps
  double commit_seconds = 0;
  RebalanceTotals rebalanced;
  double source_seconds = 0;  // waiting for blocks: reading and tokenizing that did not hide behind routing
};

/// What a manifest line's `details` say of a segment.
struct SegmentDetails {
  std::uint64_t corpus = 0;
  std::uint64_t blocks = 0;
  std::uint64_t windows = 0;
  std::uint64_t documents = 0;
  std::uint64_t skipped = 0;  // bad documents
  std::vector<std::string> skipped_places;
  std::vector<std::string> new_categories;
  SourcePosition next;          // where the next segment begins
  std::optional<double> share;  // of the run that is done with this segment, 0 to 1, where it is known

  std::string to_json() const;
  static SegmentDetails parse(const std::string& json_text);
};

/// Collective. Routes every block of the source and commits segments as it goes:
///   block b:  next() -> each rank's windows -> steps of forward + record -> finish_block -> maybe commit
/// With options.rebalance, a segment also ends when experts are to move, and they move before the next block.
/// With answers, a step is a Generator::answer. Every rank takes the same number of steps in a block; one whose windows
/// are used up brings an empty batch, because dispatch is collective. A segment holds blocks of one corpus. After a
/// stop signal on any rank the running step ends, finished blocks are committed, the rest of the running block is
/// dropped.
RouteOutcome route_blocks(BlockSource& source, Model& model, Recorder& recorder, const RouteOptions& options,
                          const std::function<void(const RouteProgress&)>& on_step, const Communicator& comm);

}  // namespace switchyard
