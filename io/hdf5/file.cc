#include "io/hdf5/file.h"

#include <mpi.h>

#include <memory>

#include "io/hdf5/types.h"
#include "parallel/error.h"
#include "parallel/mpi_handle.h"

namespace switchyard::hdf5 {
namespace {

/// HDF5 prints its error stack unless told not to; ours goes into the Error. Not at static initialization: the library
/// must first be entered after MPI_Init.
void enter_library() {
  static const herr_t quiet = H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  check(quiet, "switch printing of errors off", "HDF5");
}

enum class Buffers { hdf5, none };

/// Without buffers every write reaches the system in the call that asked for it, so that a full disk is met there and
/// not when a data set is closed, which HDF5 1.10 does not survive.
Properties access_properties(Buffers buffers) {
  enter_library();
  Properties properties(check(H5Pcreate(H5P_FILE_ACCESS), "make file access properties", "HDF5"));
  check(H5Pset_libver_bounds(properties.id(), H5F_LIBVER_V18, H5F_LIBVER_V110), "choose the file version", "HDF5");
  // Closing a file closes all of it.
  check(H5Pset_fclose_degree(properties.id(), H5F_CLOSE_STRONG), "set the close degree", "HDF5");
  if (buffers == Buffers::none) {
    check(H5Pset_sieve_buf_size(properties.id(), 0), "switch the sieve buffer off", "HDF5");
    check(H5Pset_cache(properties.id(), 0, 0, 0, 0.75), "switch the chunk cache off", "HDF5");
  }
  return properties;
}

struct OpenAttribute {
  Attribute attribute;
  Type type;
};

/// Nothing when there is no such attribute, or it is not one value of that class.
std::optional<OpenAttribute> open_scalar(hid_t object, const std::string& name, H5T_class_t wanted,
                                         const std::string& where) {
  if (check(H5Aexists(object, name.c_str()), "look for the attribute", where) == 0) return std::nullopt;
  Attribute attribute(check(H5Aopen(object, name.c_str(), H5P_DEFAULT), "open the attribute", where));
  Type type(check(H5Aget_type(attribute.id()), "read the type", where));
  const Space space(check(H5Aget_space(attribute.id()), "read the space", where));
  if (H5Tget_class(type.id()) != wanted || H5Sget_simple_extent_npoints(space.id()) != 1) return std::nullopt;
  return OpenAttribute{std::move(attribute), std::move(type)};
}

herr_t append_attribute(hid_t /*object*/, const char* name, const H5A_info_t* /*info*/, void* names) {
  static_cast<std::vector<std::string>*>(names)->emplace_back(name);
  return 0;
}

void write_attribute(hid_t object, const std::string& object_name, const std::string& name, hid_t type,
                     const void* value) {
  const std::string where = object_name + ", attribute " + name;
  if (check(H5Aexists(object, name.c_str()), "look for the attribute", where) > 0)
    check(H5Adelete(object, name.c_str()), "replace the attribute", where);
  const Space scalar(check(H5Screate(H5S_SCALAR), "make a space", where));
  const Attribute attribute(check(H5Acreate2(object, name.c_str(), type, scalar.id(), H5P_DEFAULT, H5P_DEFAULT),
                                  "make the attribute", where));
  check(H5Awrite(attribute.id(), type, value), "write the attribute", where);
}

herr_t append_link(hid_t /*group*/, const char* name, const H5L_info_t* /*info*/, void* links) {
  static_cast<std::vector<std::string>*>(links)->emplace_back(name);
  return 0;
}

}  // namespace

File File::create(const std::filesystem::path& path) {
  const Properties access = access_properties(Buffers::none);
  return {FileHandle(check(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.id()), "create the HDF5 file",
                           path.string())),
          path};
}

File File::create(const std::filesystem::path& path, const Communicator& comm) {
  const Properties access = access_properties(Buffers::none);
  check(H5Pset_fapl_mpio(access.id(), comm.handle().comm, MPI_INFO_NULL), "choose MPI-IO", path.string());
  return {FileHandle(check(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.id()),
                           "create the HDF5 file by all ranks", path.string())),
          path};
}

File File::open(const std::filesystem::path& path, Access access) {
  const Properties properties = access_properties(access == Access::read ? Buffers::hdf5 : Buffers::none);
  const unsigned flags = access == Access::read ? H5F_ACC_RDONLY : H5F_ACC_RDWR;
  return {FileHandle(check(H5Fopen(path.c_str(), flags, properties.id()), "open the HDF5 file", path.string(),
                           "check that it is there, whole and readable")),
          path};
}

std::string File::name(std::string_view object) const { return path_.string() + ", " + std::string(object); }

void File::close() {
  check(H5Fflush(id(), H5F_SCOPE_GLOBAL), "write the last bytes", path_.string(), "check that the disk is not full");
  handle_.close(path_.string());
}

bool File::contains(std::string_view path) const {
  // H5Lexists wants every group on the way to be there.
  for (std::size_t end = path.find('/', 1);; end = path.find('/', end + 1)) {
    const std::string step(path.substr(0, end));
    if (step != "/" && check(H5Lexists(id(), step.c_str(), H5P_DEFAULT), "look for it", name(step)) == 0) return false;
    if (end == std::string_view::npos) return true;
  }
}

DataSet File::open_data_set(const std::string& path) const {
  return DataSet(check(H5Dopen2(id(), path.c_str(), H5P_DEFAULT), "open the data set", name(path)));
}

// Opened first: to ask for every group on the way costs as much as to read a small data set.
std::optional<DataSet> File::find_data_set(const std::string& path) const {
  const hid_t opened = H5Dopen2(id(), path.c_str(), H5P_DEFAULT);
  if (opened < 0 && !contains(path)) return std::nullopt;
  return opened < 0 ? open_data_set(path) : DataSet(opened);
}

DataSet File::create_data_set(const std::string& path, hid_t type, const Space& space,
                              const Properties& creation) const {
  const Properties link(check(H5Pcreate(H5P_LINK_CREATE), "make link properties", name(path)));
  check(H5Pset_create_intermediate_group(link.id(), 1), "set link properties", name(path));
  return DataSet(check(H5Dcreate2(id(), path.c_str(), type, space.id(), link.id(), creation.id(), H5P_DEFAULT),
                       "create the data set", name(path)));
}

Object File::open_object(const std::string& path) const {
  return Object(check(H5Oopen(id(), path.c_str(), H5P_DEFAULT), "open it", name(path)));
}

void File::set_attribute(const std::string& object, const std::string& attribute, const std::string& value) const {
  hdf5::set_attribute(open_object(object).id(), name(object), attribute, value);
}

void File::set_attribute(const std::string& object, const std::string& attribute, std::int64_t value) const {
  write_attribute(open_object(object).id(), name(object), attribute, H5T_STD_I64LE, &value);
}

std::optional<std::string> File::string_attribute(const std::string& object, const std::string& attribute) const {
  const std::string where = name(object) + ", attribute " + attribute;
  const std::optional<OpenAttribute> opened = open_scalar(open_object(object).id(), attribute, H5T_STRING, where);
  if (!opened) return std::nullopt;
  if (H5Tis_variable_str(opened->type.id()) > 0) {
    char* text = nullptr;
    const Type memory = string_type(H5T_VARIABLE);
    check(H5Aread(opened->attribute.id(), memory.id(), static_cast<void*>(&text)), "read the attribute", where);
    const std::unique_ptr<char, herr_t (*)(void*)> owned(text, [](void* memory_) { return H5free_memory(memory_); });
    return std::string(text == nullptr ? "" : text);
  }
  std::string text(H5Tget_size(opened->type.id()), '\0');
  check(H5Aread(opened->attribute.id(), opened->type.id(), text.data()), "read the attribute", where);
  return text.substr(0, text.find('\0'));
}

std::map<std::string, std::string> File::string_attributes(const std::string& object) const {
  std::vector<std::string> names;
  const Object owner = open_object(object);
  check(H5Aiterate2(owner.id(), H5_INDEX_NAME, H5_ITER_INC, nullptr, append_attribute, &names), "list the attributes",
        name(object));
  std::map<std::string, std::string> texts;
  for (const std::string& attribute : names)
    if (std::optional<std::string> text = string_attribute(object, attribute)) texts[attribute] = std::move(*text);
  return texts;
}

std::optional<std::int64_t> File::integer_attribute(const std::string& object, const std::string& attribute) const {
  const std::string where = name(object) + ", attribute " + attribute;
  const std::optional<OpenAttribute> opened = open_scalar(open_object(object).id(), attribute, H5T_INTEGER, where);
  if (!opened) return std::nullopt;
  std::int64_t value = 0;
  check(H5Aread(opened->attribute.id(), H5T_NATIVE_INT64, &value), "read the attribute", where);
  return value;
}

std::vector<std::string> File::links_below(const std::string& group) const {
  std::vector<std::string> links;
  check(H5Lvisit_by_name(id(), group.c_str(), H5_INDEX_NAME, H5_ITER_INC, append_link, &links, H5P_DEFAULT),
        "list the group", name(group));
  for (std::string& link : links) link.insert(0, group.ends_with('/') ? group : group + "/");
  return links;
}

Properties data_set_properties() {
  return Properties(check(H5Pcreate(H5P_DATASET_CREATE), "make data set properties", "HDF5"));
}

std::vector<std::uint64_t> shape_of(const Space& space) {
  const int rank = check(H5Sget_simple_extent_ndims(space.id()), "read the number of dimensions", "data space");
  std::vector<hsize_t> extent(static_cast<std::size_t>(rank));
  check(H5Sget_simple_extent_dims(space.id(), extent.data(), nullptr), "read the extent", "data space");
  return {extent.begin(), extent.end()};
}

std::vector<std::uint64_t> shape_of(const DataSet& data_set) {
  return shape_of(Space(check(H5Dget_space(data_set.id()), "read the extent", "data set")));
}

Space space_of(const std::vector<std::uint64_t>& shape) {
  const std::vector<hsize_t> extent(shape.begin(), shape.end());
  return Space(
      check(H5Screate_simple(static_cast<int>(extent.size()), extent.data(), nullptr), "make a space", "HDF5"));
}

void set_attribute(hid_t object, const std::string& object_name, const std::string& name, const std::string& value) {
  const Type type = string_type(H5T_VARIABLE);
  const char* text = value.c_str();
  write_attribute(object, object_name, name, type.id(), static_cast<const void*>(&text));
}

}  // namespace switchyard::hdf5
