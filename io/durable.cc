#include "io/durable.h"

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "parallel/error.h"

namespace switchyard {
namespace {

std::string remedy_for(int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return "free some space and start the run again: it goes on after the last committed segment";
    case EROFS:
    case EACCES:
    case EPERM:
      return "give an output folder that you may write to";
    default:
      return {};
  }
}

[[noreturn]] void fail(std::string_view action, const std::filesystem::path& path, int error) {
  throw Error("cannot " + std::string(action) + ": " + std::generic_category().message(error), path.string(),
              remedy_for(error));
}

class Descriptor {
 public:
  Descriptor(const std::filesystem::path& path, int flags, std::string_view action)
      : path_(path), fd_(::open(path.c_str(), flags | O_CLOEXEC, 0666)) {
    if (fd_ < 0) fail(action, path_, errno);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }

  void write(std::string_view bytes) const {
    while (!bytes.empty()) {
      const ssize_t written = ::write(fd_, bytes.data(), bytes.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail("write", path_, errno);
      bytes.remove_prefix(static_cast<std::size_t>(written));
    }
  }
  /// The system's error number, or 0.
  int reserve(std::uint64_t bytes) const {
    return ::fallocate(fd_, FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(bytes)) == 0 ? 0 : errno;
  }
  void sync() const {
    if (::fsync(fd_) != 0) fail("sync to disk", path_, errno);
  }

 private:
  const std::filesystem::path& path_;
  int fd_;
};

}  // namespace

void make_folder(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) fail("make the folder", folder, error.value());
}

void make_empty_file(const std::filesystem::path& path) {
  const Descriptor file(path, O_WRONLY | O_CREAT | O_TRUNC, "create the file");
}

void sync_to_disk(const std::filesystem::path& path) {
  const Descriptor file(path, O_RDONLY, "open it to sync");
  file.sync();
}

void rename_durably(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (std::rename(from.c_str(), to.c_str()) != 0) fail("rename to " + to.filename().string(), from, errno);
  sync_to_disk(to.parent_path().empty() ? "." : to.parent_path());
}

void append_durably(const std::filesystem::path& path, std::string_view bytes) {
  const bool is_new = !std::filesystem::exists(path);
  const Descriptor file(path, O_WRONLY | O_CREAT | O_APPEND, "open it to append");
  file.write(bytes);
  file.sync();
  if (is_new) sync_to_disk(path.parent_path().empty() ? "." : path.parent_path());
}

void require_free_space(const std::filesystem::path& folder, std::uint64_t bytes) {
  struct statvfs info {};
  if (::statvfs(folder.c_str(), &info) != 0) fail("ask for free space", folder, errno);
  const std::uint64_t free_bytes = static_cast<std::uint64_t>(info.f_bavail) * info.f_frsize;
  if (free_bytes < bytes) {
    throw Error("the disk is full: " + std::to_string(bytes) + " bytes are needed and " + std::to_string(free_bytes) +
                    " are free",
                folder.string(), remedy_for(ENOSPC));
  }
}

void write_whole(const std::filesystem::path& path, std::string_view content) {
  const std::filesystem::path part = path.string() + ".part";
  make_empty_file(part);
  append_durably(part, content);
  rename_durably(part, path);
}

void reserve_space(const std::filesystem::path& file, std::uint64_t bytes) {
  const int error = Descriptor(file, O_WRONLY, "open it to reserve space").reserve(bytes);
  if (error == ENOSPC || error == EDQUOT) fail("reserve " + std::to_string(bytes) + " bytes", file, error);
}

void release_space(const std::filesystem::path& file) {
  std::error_code error;
  std::filesystem::resize_file(file, std::filesystem::file_size(file), error);
  if (error) fail("release the space after its end", file, error.value());
}

}  // namespace switchyard
