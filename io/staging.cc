#include "io/staging.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "io/checkpoint.h"
#include "io/durable.h"
#include "io/mapped_file.h"
#include "io/together.h"
#include "parallel/error.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kPiece = std::size_t{8} << 20;
constexpr const char* kOtherFolder = "name a folder on the node's own disk that you may write to";

std::string reason(int error) { return std::generic_category().message(error); }

struct Descriptor {
  explicit Descriptor(int opened) : fd(opened) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
  int fd;
};

/// One copy at work: by a node's first rank.
class Staging {
 public:
  using KeepGoing = std::function<bool(std::uint64_t, std::uint64_t)>;

  Staging(const fs::path& source, const fs::path& node_folder, const KeepGoing& keep_going)
      : source_(source), checkpoint_(source), node_folder_(node_folder), keep_going_(keep_going) {
    const std::string name = fs::weakly_canonical(source).filename().string() + "-" + checkpoint_.fingerprint();
    target_ = node_folder / name;
    part_ = node_folder / (name + ".part");
    for (const fs::path& file : checkpoint_.paths()) all_ += fs::file_size(file);
  }

  StagedCheckpoint run() {
    make_folder(node_folder_);
    const Descriptor lock(
        ::open((target_.string() + ".lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));  // stays for the next
    if (lock.fd < 0) throw Error("cannot create a file in it: " + reason(errno), node_folder_.string(), kOtherFolder);
    while (::flock(lock.fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      if (!keep_going_(0, all_)) return {source_};
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    // Any other failure means a file system without locks: then the copy still appears as a whole.
    if (is_whole()) return {target_};
    const auto start = Clock::now();
    try {
      fs::remove_all(part_);
      fs::remove_all(target_);
      if (!copy_all()) {
        fs::remove_all(part_);
        return {source_};
      }
      rename_durably(part_, target_);
    } catch (...) {
      std::error_code ignored;
      fs::remove_all(part_, ignored);
      throw;
    }
    return {target_, all_, std::chrono::duration<double>(Clock::now() - start).count()};
  }

 private:
  /// Whether the copy is there, with all its bytes as far as a fingerprint tells: cleaners of /tmp may have taken some.
  bool is_whole() const {
    if (!fs::exists(target_)) return false;
    try {
      return Checkpoint(target_).fingerprint() == checkpoint_.fingerprint();
    } catch (const Error&) {
      return false;
    }
  }

  bool copy_all() {
    make_folder(part_);
    if (const std::uint64_t free = fs::space(part_).available; free < all_)
      throw no_room(std::to_string(free) + " are free");
    for (const fs::path& file : checkpoint_.paths())
      if (!copy(file, part_ / file.filename())) return false;
    sync_to_disk(part_);
    return true;
  }

  /// False when it was broken off.
  bool copy(const fs::path& from, const fs::path& to) {
    const Descriptor in(::open(from.c_str(), O_RDONLY | O_CLOEXEC));
    if (in.fd < 0) throw Error("cannot open: " + reason(errno), from.string());
    ::posix_fadvise(in.fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    const Descriptor out(::open(to.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    if (out.fd < 0) throw Error("cannot create: " + reason(errno), to.string(), kOtherFolder);
    const std::uint64_t size = fs::file_size(from);
    for (std::uint64_t at = 0; at < size;) {
      const ssize_t n = ::read(in.fd, buffer_.data(), buffer_.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) throw Error("cannot read: " + reason(errno), from.string(), "check the file system it lies on");
      if (n == 0) throw Error("became shorter while it was copied", from.string(), "leave the checkpoint as it is");
      write(out.fd, static_cast<std::size_t>(n), to);
      at += static_cast<std::uint64_t>(n);
      copied_ += static_cast<std::uint64_t>(n);
      if (!keep_going_(copied_, all_)) return false;
    }
    sync_to_disk(to);
    return true;
  }

  void write(int fd, std::size_t n, const fs::path& to) {
    for (std::size_t done = 0; done < n;) {
      const ssize_t written = ::write(fd, buffer_.data() + done, n - done);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0 && (errno == ENOSPC || errno == EDQUOT))
        throw no_room(std::to_string(copied_ + done) + " could be written and no more");
      if (written < 0) throw Error("cannot write: " + reason(errno), to.string(), kOtherFolder);
      done += static_cast<std::size_t>(written);
    }
  }

  Error no_room(const std::string& found) const {
    return Error("no room for the checkpoint: " + std::to_string(all_) + " bytes are needed, " + found,
                 node_folder_.string(), "free some space, name another folder, or leave out --stage-to");
  }

  fs::path source_;
  Checkpoint checkpoint_;
  fs::path node_folder_, target_, part_;
  const KeepGoing& keep_going_;
  std::uint64_t all_ = 0, copied_ = 0;
  std::vector<std::byte> buffer_ = std::vector<std::byte>(kPiece);
};

}  // namespace

StagedCheckpoint stage_checkpoint(const fs::path& source, const fs::path& node_folder,
                                  const std::function<bool(std::uint64_t, std::uint64_t)>& keep_going,
                                  const Communicator& comm) {
  const Communicator node = comm.same_node();
  StagedCheckpoint staged;
  together(comm, [&] {
    if (node.rank() == 0) staged = Staging(source, node_folder, keep_going).run();
  });
  staged.folder = node.broadcast(staged.folder.string());
  return staged;
}

}  // namespace switchyard
