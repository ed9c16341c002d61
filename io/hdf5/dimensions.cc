#include "io/hdf5/dimensions.h"

#include <cstddef>
#include <map>
#include <set>

#include "io/hdf5/table.h"
#include "parallel/error.h"

namespace switchyard::hdf5 {
namespace {

constexpr std::string_view kPureScaleName = "This is a netCDF dimension but not a netCDF variable.";

/// An axis of a data set that a scale belongs to: an element of the scale's REFERENCE_LIST.
struct ScaleUse {
  hobj_ref_t data_set;
  unsigned dimension;
};

struct Scale {
  std::string path;
  std::uint64_t length = 0;
  bool is_variable = false;  // a data set with values is the scale
  std::vector<ScaleUse> uses;
};

/// For every axis of every data set, the path of its scale.
class ScalePlan {
 public:
  explicit ScalePlan(std::span<const NamedShape> data_sets) {
    for (const NamedShape& data_set : data_sets) note_lengths(data_set);
    for (const NamedShape& data_set : data_sets) place(data_set);
  }

  std::map<std::string, Scale>& scales() { return scales_; }
  /// Paths of the scales of a data set's axes; empty for a data set that is itself a scale.
  std::vector<std::string> scales_of(const NamedShape& data_set) const {
    std::vector<std::string> paths;
    for (const std::string& dimension : data_set.dimensions) paths.push_back(scale_path(data_set, dimension));
    if (paths.size() == 1 && paths.front() == data_set.path) return {};
    return paths;
  }

 private:
  void note_lengths(const NamedShape& data_set) {
    for (std::size_t axis = 0; axis < data_set.dimensions.size(); ++axis)
      lengths_[data_set.dimensions[axis]].insert(data_set.shape[axis]);
  }

  std::string scale_path(const NamedShape& data_set, const std::string& dimension) const {
    const std::string group(lengths_.at(dimension).size() == 1 ? "/" : group_of(data_set.path));
    return group == "/" ? "/" + dimension : group + "/" + dimension;
  }

  void place(const NamedShape& data_set) {
    for (std::size_t axis = 0; axis < data_set.dimensions.size(); ++axis) {
      const std::string path = scale_path(data_set, data_set.dimensions[axis]);
      const auto [entry, is_new] = scales_.try_emplace(path, Scale{path, data_set.shape[axis], false, {}});
      if (is_new) first_use_[path] = data_set.path;
      if (entry->second.length != data_set.shape[axis]) {
        throw Error("dimension " + data_set.dimensions[axis] + " has length " + std::to_string(data_set.shape[axis]) +
                        " here and " + std::to_string(entry->second.length) + " in " + first_use_[path],
                    data_set.path);
      }
      if (path == data_set.path) {
        if (data_set.dimensions.size() != 1)
          throw Error("a data set named like its dimension has no other dimension", data_set.path);
        entry->second.is_variable = true;
      }
    }
  }

  std::map<std::string, std::set<std::uint64_t>> lengths_;
  std::map<std::string, Scale> scales_;
  std::map<std::string, std::string> first_use_;
};

Type reference_list_type() {
  Type type(check(H5Tcreate(H5T_COMPOUND, sizeof(ScaleUse)), "make a type", "REFERENCE_LIST"));
  check(H5Tinsert(type.id(), "dataset", offsetof(ScaleUse, data_set), H5T_STD_REF_OBJ), "add a field",
        "REFERENCE_LIST");
  check(H5Tinsert(type.id(), "dimension", offsetof(ScaleUse, dimension), H5T_NATIVE_UINT), "add a field",
        "REFERENCE_LIST");
  return type;
}

void write_attribute(const DataSet& data_set, const std::string& name, const char* attribute, hid_t type,
                     const Space& space, const void* values) {
  const Attribute created(check(H5Acreate2(data_set.id(), attribute, type, space.id(), H5P_DEFAULT, H5P_DEFAULT),
                                std::string("make attribute ") + attribute, name));
  check(H5Awrite(created.id(), type, values), std::string("write attribute ") + attribute, name);
}

/// CLASS and NAME are ASCII, ended by NUL, in all files: the specification asks for the bytes.
void write_ascii_attribute(const DataSet& data_set, const std::string& name, const char* attribute,
                           const std::string& value) {
  Type type(check(H5Tcopy(H5T_C_S1), "copy a type", name));
  check(H5Tset_size(type.id(), value.size() + 1), "set the size", name);
  write_attribute(data_set, name, attribute, type.id(), space_of({}), value.c_str());
}

void write_scale(const File& file, const Scale& scale, int dimension_id) {
  if (!scale.is_variable && file.contains(scale.path))
    throw Error("a dimension is named like a group or data set", file.name(scale.path));
  const DataSet data_set = scale.is_variable ? file.open_data_set(scale.path)
                                             : file.create_data_set(scale.path, H5T_IEEE_F32BE,
                                                                    space_of({scale.length}), data_set_properties());
  const std::string name = file.name(scale.path);
  const std::string length = std::to_string(scale.length);
  const std::string padding(length.size() < 10 ? 10 - length.size() : 0, ' ');
  write_ascii_attribute(data_set, name, "CLASS", "DIMENSION_SCALE");
  write_ascii_attribute(
      data_set, name, "NAME",
      scale.is_variable ? std::string(name_of(scale.path)) : std::string(kPureScaleName) + padding + length);
  write_attribute(data_set, name, "_Netcdf4Dimid", H5T_STD_I32LE, space_of({}), &dimension_id);
  if (!scale.uses.empty()) {
    const Type type = reference_list_type();
    write_attribute(data_set, name, "REFERENCE_LIST", type.id(), space_of({scale.uses.size()}), scale.uses.data());
  }
}

hobj_ref_t reference_to(const File& file, const std::string& path) {
  hobj_ref_t reference = 0;
  check(H5Rcreate(&reference, file.id(), path.c_str(), H5R_OBJECT, -1), "make a reference", file.name(path));
  return reference;
}

void write_dimension_list(const File& file, const NamedShape& data_set, const std::vector<std::string>& scales) {
  std::vector<hobj_ref_t> references;
  for (const std::string& scale : scales) references.push_back(reference_to(file, scale));
  std::vector<hvl_t> axes;
  for (hobj_ref_t& reference : references) axes.push_back({1, &reference});
  const Type type(check(H5Tvlen_create(H5T_STD_REF_OBJ), "make a type", "DIMENSION_LIST"));
  write_attribute(file.open_data_set(data_set.path), file.name(data_set.path), "DIMENSION_LIST", type.id(),
                  space_of({axes.size()}), axes.data());
}

std::string last_name(hid_t object, const std::string& name) {
  const ssize_t length = check(H5Iget_name(object, nullptr, 0), "read a dimension's name", name);
  std::string path(static_cast<std::size_t>(length) + 1, '\0');
  check(H5Iget_name(object, path.data(), path.size()), "read a dimension's name", name);
  path.pop_back();
  return std::string(name_of(path));
}

}  // namespace

void attach_dimension_scales(const File& file, std::span<const NamedShape> data_sets) {
  ScalePlan plan(data_sets);
  for (const NamedShape& data_set : data_sets) {
    const std::vector<std::string> scales = plan.scales_of(data_set);
    const hobj_ref_t reference = reference_to(file, data_set.path);
    for (std::size_t axis = 0; axis < scales.size(); ++axis)
      plan.scales().at(scales[axis]).uses.push_back({reference, static_cast<unsigned>(axis)});
  }
  int dimension_id = 0;
  for (const auto& [path, scale] : plan.scales()) write_scale(file, scale, dimension_id++);
  for (const NamedShape& data_set : data_sets) {
    const std::vector<std::string> scales = plan.scales_of(data_set);
    if (!scales.empty()) write_dimension_list(file, data_set, scales);
  }
}

bool is_pure_scale(const Object& data_set, const std::string& name) {
  if (check(H5Aexists(data_set.id(), "NAME"), "look for attribute NAME", name) == 0) return false;
  const Attribute attribute(check(H5Aopen(data_set.id(), "NAME", H5P_DEFAULT), "open attribute NAME", name));
  const Type type(check(H5Aget_type(attribute.id()), "read the type of NAME", name));
  if (H5Tget_class(type.id()) != H5T_STRING || H5Tis_variable_str(type.id()) > 0) return false;
  std::string text(H5Tget_size(type.id()), '\0');
  check(H5Aread(attribute.id(), type.id(), text.data()), "read attribute NAME", name);
  return text.starts_with(kPureScaleName);
}

std::vector<std::string> dimension_names(const DataSet& data_set, const std::string& name) {
  std::vector<std::string> names(shape_of(data_set).size());
  if (check(H5Aexists(data_set.id(), "DIMENSION_LIST"), "look for attribute DIMENSION_LIST", name) == 0) {
    if (names.size() == 1 && check(H5Aexists(data_set.id(), "CLASS"), "look for attribute CLASS", name) > 0)
      names.front() = last_name(data_set.id(), name);
    return names;
  }
  const Attribute attribute(
      check(H5Aopen(data_set.id(), "DIMENSION_LIST", H5P_DEFAULT), "open attribute DIMENSION_LIST", name));
  const Type type(check(H5Tvlen_create(H5T_STD_REF_OBJ), "make a type", "DIMENSION_LIST"));
  const Space space(check(H5Aget_space(attribute.id()), "read the space of DIMENSION_LIST", name));
  if (H5Sget_simple_extent_npoints(space.id()) != static_cast<hssize_t>(names.size()))
    throw Error("DIMENSION_LIST has another length than the data set has dimensions", name);
  std::vector<hvl_t> axes(names.size());
  check(H5Aread(attribute.id(), type.id(), axes.data()), "read attribute DIMENSION_LIST", name);
  const struct Reclaim {
    hid_t type, space;
    void* values;
    ~Reclaim() { H5Dvlen_reclaim(type, space, H5P_DEFAULT, values); }
  } reclaim{type.id(), space.id(), axes.data()};
  for (std::size_t axis = 0; axis < axes.size(); ++axis) {
    if (axes[axis].len == 0) continue;
    const Object scale(check(H5Rdereference2(data_set.id(), H5P_DEFAULT, H5R_OBJECT, axes[axis].p),
                             "follow the reference to a dimension scale", name));
    names[axis] = last_name(scale.id(), name);
  }
  return names;
}

}  // namespace switchyard::hdf5
