#pragma once

#include <sys/mount.h>

#include <cstdint>
#include <filesystem>

#include "parallel/communicator.h"

namespace switchyard::testing {

/// A small file system of all ranks, at a folder; needs root.
class SmallDisk {
 public:
  SmallDisk(const std::filesystem::path& at, const char* options, unsigned long flags, const Communicator& comm)
      : at_(at), comm_(comm) {
    int mounted = 0;
    if (comm.rank() == 0) {
      std::filesystem::create_directories(at);
      mounted = mount("none", at.c_str(), "tmpfs", flags, options) == 0 ? 1 : 0;
    }
    mounted_ = comm.max(std::int64_t{mounted}) == 1;
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;
  ~SmallDisk() {
    comm_.barrier();
    if (comm_.rank() == 0 && mounted_) umount(at_.c_str());
  }
  bool is_mounted() const { return mounted_; }

 private:
  std::filesystem::path at_;
  const Communicator& comm_;
  bool mounted_ = false;
};

}  // namespace switchyard::testing
