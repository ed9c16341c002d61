#pragma once

#include <hdf5.h>

#include <cstdint>
#include <source_location>
#include <string>
#include <string_view>
#include <utility>

/// The only wrapper header of hdf5.h: include it in .cc files, never in an interface of io/. The library is not
/// thread-safe: all calls come from one thread of a process.
namespace switchyard::hdf5 {

/// Throws Error: "OBJECT: cannot ACTION: reasons from HDF5's error stack (FILE:LINE); remedy".
[[noreturn]] void fail(std::string_view action, const std::string& object, const std::string& remedy,
                       std::source_location where);

/// Every HDF5 call goes through here: hands a good result on and throws Error (see fail) for a negative one.
/// action: what was tried, after "cannot": "open the data set". object: file and path.
template <typename Result>
Result check(Result result, std::string_view action, const std::string& object, const std::string& remedy = {},
             std::source_location where = std::source_location::current()) {
  if (result < 0) fail(action, object, remedy, where);
  return result;
}

/// Owns an HDF5 identifier and closes it once. A close that must not fail unseen goes through `close`; the destructor
/// is for the ways out that already have an error.
template <herr_t (*Close)(hid_t)>
class Handle {
 public:
  Handle() = default;
  explicit Handle(hid_t id) : id_(id) {}
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, H5I_INVALID_HID)) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(id_, other.id_);
    return *this;
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() {
    if (id_ >= 0) Close(id_);
  }

  hid_t id() const { return id_; }
  void close(const std::string& object, std::source_location where = std::source_location::current()) {
    const hid_t id = std::exchange(id_, H5I_INVALID_HID);
    if (id >= 0) check(Close(id), "close it", object, {}, where);
  }

 private:
  hid_t id_ = H5I_INVALID_HID;
};

/// Closes a file so that it is closed even when its last bytes cannot be written: HDF5 1.10 keeps the identifier of a
/// file whose closing failed, and later follows it into freed memory. The file is emptied then, which makes room for
/// what HDF5 still has to write.
herr_t close_file(hid_t file);

using FileHandle = Handle<close_file>;
using DataSet = Handle<H5Dclose>;
using Space = Handle<H5Sclose>;
using Type = Handle<H5Tclose>;
using Properties = Handle<H5Pclose>;
using Attribute = Handle<H5Aclose>;
using Object = Handle<H5Oclose>;

}  // namespace switchyard::hdf5
