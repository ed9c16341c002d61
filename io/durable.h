#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace switchyard {

/// What it takes for a file to be there after a crash. All throw Error naming the path and the system's reason, with a
/// remedy for a full or read-only file system.

/// Makes a folder and those above it.
void make_folder(const std::filesystem::path& folder);
/// Makes an empty file or empties one.
void make_empty_file(const std::filesystem::path& path);
/// Returns when a file's bytes, or a folder's names, are on disk.
void sync_to_disk(const std::filesystem::path& path);
/// Gives a synced file its final name, replacing what had it, and syncs the folder.
void rename_durably(const std::filesystem::path& from, const std::filesystem::path& to);
/// Appends to a file, which is made if need be, and syncs it.
void append_durably(const std::filesystem::path& path, std::string_view bytes);
/// Throws unless the file system of a folder has this many bytes free.
void require_free_space(const std::filesystem::path& folder, std::uint64_t bytes);
/// Gives a file this content, whole or not at all: through PATH.part.
void write_whole(const std::filesystem::path& path, std::string_view content);
/// Sets room aside for a file's first bytes, where the file system can, so that no later write to them meets a full
/// disk. The file's size stays. release_space gives back what lies past its end.
void reserve_space(const std::filesystem::path& file, std::uint64_t bytes);
void release_space(const std::filesystem::path& file);

}  // namespace switchyard
