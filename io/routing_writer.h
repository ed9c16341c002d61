#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "io/hdf5/table.h"
#include "io/routing_schema.h"
#include "parallel/communicator.h"

namespace switchyard {

/// Everything a segment holds. Rows are each rank's own; tables are written by rank 0 and ignored elsewhere.
struct SegmentContents {
  std::uint64_t n_rows = 0;            // of all ranks
  std::vector<RowRange> ranges;        // this rank's rows, ascending, one range for each block
  std::vector<const TokenRows*> rows;  // as many as ranges; rows[i]->size() == ranges[i].count
  std::vector<Table> tables;           // rank 0: /documents/*, /dispatch/*, /accumulators/*
};

struct WriteOptions {
  RowLayout layout;
  bool compress = false;  // shuffle + deflate 1; filtered writes are collective, 10x slower
};

/// Facts of a committed segment: a line of manifest.jsonl.
struct SegmentEntry {
  std::string file;  // "segments/segment-000042.h5"
  std::uint64_t bytes = 0;
  std::string checksum;  // XXH3-64 of the file, hex
  std::uint64_t tokens = 0;
  std::string details;  // JSON object of what the caller needs to go on after it (blocks, cursor, ...), kept as it is
};

/// Collective. Writes OUT/segments/segment-NNNNNN.h5.part (row data sets by all ranks, each its own rows; tables,
/// attributes and dimension scales by rank 0), closes, fsyncs, renames to .h5, fsyncs the folder, appends a line to
/// OUT/manifest.jsonl and fsyncs it. Killed at any instant, it leaves either the line and the whole file, or no line.
/// Throws Error naming file and cause (disk full, read-only, ...), on every rank.
SegmentEntry commit_segment(const std::filesystem::path& out, std::uint64_t number, const ModelFacts& model,
                            const SegmentContents& contents, const WriteOptions& options, const std::string& details,
                            const Communicator& comm);

/// The committed segments, in order. A torn last line (a kill while appending) is dropped; anything else malformed
/// throws Error.
std::vector<SegmentEntry> read_manifest(const std::filesystem::path& out);
/// Cuts a torn last line off and removes *.part files and segments that the manifest does not name, so that appending
/// can go on. Rank 0 only.
void repair_after_kill(const std::filesystem::path& out);

/// Writes OUT/routing.h5: virtual data sets over the committed segments, appended along the first dimension of
/// everything whose first dimension is token, document, step or block; what is narrower in some segments (dispatch
/// columns of runs restarted with fewer ranks) is filled with an impossible value. `tables` (/corpora/*, /model/*,
/// /dispatch/placement ...) are copied in. Replaces the file atomically. Rank 0 only.
void write_master(const std::filesystem::path& out, const ModelFacts& model, std::span<const SegmentEntry> segments,
                  std::span<const Table> tables);

}  // namespace switchyard
