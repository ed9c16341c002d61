#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "io/routing_writer.h"

namespace switchyard::hdf5 {
class File;
}

namespace switchyard {

/// The two phases of a segment file. Rows are written by all ranks into one file; everything else is small and is added
/// by rank 0 alone, because metadata written by all ranks costs a collective call each.

/// Throws Error when this rank's rows do not fit their ranges, the model or the segment.
void require_consistent_rows(const ModelFacts& model, const SegmentContents& contents, const RowLayout& layout);

/// Bytes that the segment takes at most, with this rank's tables: rows count raw, as nobody knows before how well they
/// compress.
std::uint64_t bytes_needed(const ModelFacts& model, const SegmentContents& contents, const RowLayout& layout);

/// The row data sets of a segment that is being written. What is collective here must not be caught where it throws on
/// one rank alone: the others wait inside HDF5, and only the end of the process frees them.
class RowFile {
 public:
  /// Collective. Creates the file and its row data sets.
  RowFile(const std::filesystem::path& path, const ModelFacts& model, const SegmentContents& contents,
          const WriteOptions& options, const Communicator& comm);
  ~RowFile();
  RowFile(const RowFile&) = delete;
  RowFile& operator=(const RowFile&) = delete;

  /// Writes this rank's rows: collective when compressed, because filters need it; else each rank on its own, which is
  /// twice as fast. Throws Error naming data set and cause.
  void write();
  /// Collective.
  void close();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// This process alone. Sets disk space of the file aside, so that a full disk is met before rows are written.
void reserve_rows(const std::filesystem::path& path, const ModelFacts& model, const SegmentContents& contents,
                  const RowLayout& layout);

/// This process alone. Reads this rank's rows back and compares them. For collective transfers: Open MPI's can drop the
/// system's errors, so that HDF5 cannot tell either; independent ones report them.
void verify_rows(const std::filesystem::path& path, const ModelFacts& model, const SegmentContents& contents,
                 const RowLayout& layout);

/// This process alone. Adds tables, attributes, dimension scales, units and descriptions; creates the file when the
/// segment has no row data sets.
void add_tables(const std::filesystem::path& path, const ModelFacts& model, const SegmentContents& contents,
                const RowLayout& layout);

/// Root and /model attributes of a segment or a master.
void write_identity(const hdf5::File& file, const ModelFacts& model, const RowLayout& layout);

}  // namespace switchyard
