#include "io/hdf5/handle.h"

#include <unistd.h>

#include <filesystem>
#include <vector>

#include "parallel/error.h"

namespace switchyard::hdf5 {
namespace {

herr_t collect(unsigned /*index*/, const H5E_error2_t* error, void* reasons) {
  if (error->desc != nullptr && *error->desc != '\0')
    static_cast<std::vector<std::string>*>(reasons)->emplace_back(error->desc);
  return 0;
}

/// The stack's outermost and innermost lines: what failed, and the system's reason. Those between only name functions.
std::string reasons() {
  std::vector<std::string> lines;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, collect, &lines);
  if (lines.empty()) return "HDF5 gives no reason";
  return lines.size() == 1 ? lines.front() : lines.front() + ": " + lines.back();
}

}  // namespace

void fail(std::string_view action, const std::string& object, const std::string& remedy, std::source_location where) {
  const std::string place =
      std::filesystem::path(where.file_name()).filename().string() + ":" + std::to_string(where.line());
  throw Error("cannot " + std::string(action) + ": " + reasons() + " (" + place + ")", object, remedy);
}

herr_t close_file(hid_t file) {
  if (H5Fflush(file, H5F_SCOPE_GLOBAL) >= 0) return H5Fclose(file);
  const ssize_t length = H5Fget_name(file, nullptr, 0);
  std::string path(length > 0 ? static_cast<std::size_t>(length) + 1 : 1, '\0');
  H5Fget_name(file, path.data(), path.size());
  const bool emptied = ::truncate(path.c_str(), 0) == 0;
  const herr_t closed = H5Fclose(file);
  return emptied && closed >= 0 ? -1 : closed;
}

}  // namespace switchyard::hdf5
