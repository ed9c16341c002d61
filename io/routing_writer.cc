#include "io/routing_writer.h"

#include <optional>
#include <string>
#include <system_error>

#include "io/durable.h"
#include "io/manifest.h"
#include "io/segment_file.h"
#include "io/together.h"
#include "parallel/error.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

/// Meets predictable failures before anything collective: a folder that cannot be written, a full disk, a name that is
/// taken.
void prepare(const fs::path& part, const fs::path& file, std::uint64_t bytes) {
  make_folder(file.parent_path());
  if (fs::exists(file)) {
    throw Error("the segment is there already", file.string(),
                "give another output folder, or go on with the run that left it");
  }
  make_empty_file(part);
  require_free_space(file.parent_path(), bytes);
}

void require_whole(const SegmentContents& contents, const Communicator& comm) {
  std::int64_t rows = 0;
  for (const RowRange& range : contents.ranges) rows += static_cast<std::int64_t>(range.count);
  const std::int64_t all_rows = comm.sum(rows);
  if (all_rows != static_cast<std::int64_t>(contents.n_rows)) {
    throw Error("the ranks bring " + std::to_string(all_rows) + " rows for a segment of " +
                std::to_string(contents.n_rows));
  }
}

bool has_rows(const SegmentContents& contents, const WriteOptions& options) {
  return options.layout.level != RecordLevel::counts && contents.n_rows > 0;
}

SegmentEntry finish(const fs::path& out, const fs::path& part, SegmentEntry entry) {
  release_space(part);
  sync_to_disk(part);
  entry.bytes = fs::file_size(part);
  entry.checksum = checksum_of(part);
  rename_durably(part, out / entry.file);
  append_entry(out, entry);
  return entry;
}

/// Collective. Writes all ranks' rows; gives what went wrong, on all ranks alike.
std::optional<std::string> write_rows(const fs::path& part, const ModelFacts& model, const SegmentContents& contents,
                                      const WriteOptions& options, const Communicator& comm) {
  RowFile rows(part, model, contents, options, comm);
  std::optional<std::string> failure = attempt(comm, [&] {
    if (comm.rank() == 0) reserve_rows(part, model, contents, options.layout);
  });
  if (!failure && options.compress) rows.write();
  if (!failure && !options.compress) failure = attempt(comm, [&] { rows.write(); });
  rows.close();
  if (failure) return failure;
  return attempt(comm, [&] {
    sync_to_disk(part);  // a node's own pages are synced on that node
    if (options.compress) verify_rows(part, model, contents, options.layout);
  });
}

}  // namespace

SegmentEntry commit_segment(const fs::path& out, std::uint64_t number, const ModelFacts& model,
                            const SegmentContents& contents, const WriteOptions& options, const std::string& details,
                            const Communicator& comm) {
  SegmentEntry entry{segment_file(number), 0, "", contents.n_rows, details};
  const fs::path file = out / entry.file;
  const fs::path part = file.string() + ".part";
  together(comm, [&] {
    require_consistent_rows(model, contents, options.layout);
    to_line(entry);
  });
  if (has_rows(contents, options)) require_whole(contents, comm);
  std::optional<std::string> failure = attempt(comm, [&] {
    if (comm.rank() == 0) prepare(part, file, bytes_needed(model, contents, options.layout));
  });
  if (!failure && has_rows(contents, options)) failure = write_rows(part, model, contents, options, comm);
  if (!failure)
    failure = attempt(comm, [&] {
      if (comm.rank() != 0) return;
      add_tables(part, model, contents, options.layout);
      entry = finish(out, part, entry);
    });
  if (failure) {
    std::error_code ignored;
    if (comm.rank() == 0) fs::remove(part, ignored);
    throw Error(*failure);
  }
  return parse_line(comm.broadcast(comm.rank() == 0 ? to_line(entry) : std::string{}), file.string());
}

}  // namespace switchyard
