#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/routing_writer.h"

namespace switchyard {

/// OUT/manifest.jsonl: a line for each committed segment, appended and never changed. A line counts once its newline is
/// there.

/// "segments/segment-000042.h5".
std::string segment_file(std::uint64_t number);

/// Throws Error when `details` is no JSON object.
std::string to_line(const SegmentEntry& entry);
/// Throws Error naming `where` and the fault.
SegmentEntry parse_line(std::string_view line, const std::string& where);
/// Appends the entry's line and syncs it to disk.
void append_entry(const std::filesystem::path& out, const SegmentEntry& entry);

/// XXH3-64 of a file's bytes, 16 hex digits. Throws Error naming the path.
std::string checksum_of(const std::filesystem::path& file);
/// What is wrong with a committed segment (missing, another size, another checksum), or nothing. Reads the whole file.
std::optional<std::string> segment_fault(const std::filesystem::path& out, const SegmentEntry& entry);

}  // namespace switchyard
