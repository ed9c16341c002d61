#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "io/hdf5/file.h"
#include "io/hdf5/handle.h"
#include "io/hdf5/types.h"
#include "parallel/bf16.h"
#include "parallel/error.h"
#include "tests/support/error_text.h"
#include "tests/support/temp_folder.h"

namespace switchyard::hdf5 {
namespace {

using switchyard::testing::error_text;
using switchyard::testing::TempFolder;
using ::testing::AllOf;
using ::testing::HasSubstr;

int closed = 0;
herr_t count_close(hid_t) {
  ++closed;
  return 0;
}

TEST(Hdf5Handle, ClosesOnce) {
  closed = 0;
  {
    Handle<count_close> first(5);
    Handle<count_close> second(std::move(first));
    EXPECT_EQ(second.id(), 5);
    Handle<count_close> third;
    third = std::move(second);
    EXPECT_EQ(third.id(), 5);
    EXPECT_EQ(closed, 0);
  }
  EXPECT_EQ(closed, 1);
  Handle<count_close> closed_by_hand(6);
  closed_by_hand.close("it");
  closed_by_hand.close("it");
  EXPECT_EQ(closed, 2);
}

TEST(Hdf5Handle, LeavesNothingOpen) {
  const TempFolder folder;
  File file = File::create(folder / "a.h5");
  const hid_t id = file.id();
  {
    const DataSet data_set = file.create_data_set("/group/x", H5T_STD_U8LE, space_of({3}), data_set_properties());
    EXPECT_EQ(shape_of(data_set), (std::vector<std::uint64_t>{3}));
    const Object group = file.open_object("/group");
    EXPECT_EQ(H5Fget_obj_count(id, H5F_OBJ_DATASET | H5F_OBJ_GROUP), 2);
  }
  EXPECT_EQ(H5Fget_obj_count(id, H5F_OBJ_ALL), 1);  // the file itself
  file.close();
  EXPECT_EQ(H5Iis_valid(id), 0);
}

TEST(Hdf5Check, NamesObjectReasonAndPlace) {
  const TempFolder folder;
  File file = File::create(folder / "a.h5");
  EXPECT_THAT(error_text([&] { file.open_data_set("/tokens/id"); }),
              AllOf(HasSubstr((folder / "a.h5").string() + ", /tokens/id: cannot open the data set: "),
                    HasSubstr("component not found"), HasSubstr("file.cc:")));
  EXPECT_THAT(
      error_text([&] { check(H5Sclose(-1), "close it", "a space", "call the author"); }),
      AllOf(HasSubstr("a space: cannot close it: "), HasSubstr("hdf5_test.cc:"), HasSubstr("; call the author")));
  EXPECT_THAT(error_text([&] { File::open(folder / "none.h5", File::Access::read); }),
              AllOf(HasSubstr("none.h5: cannot open the HDF5 file"), HasSubstr("No such file or directory")));
  EXPECT_EQ(check(7, "count", "fingers"), 7);
}

TEST(Hdf5File, KeepsAttributes) {
  const TempFolder folder;
  {
    File file = File::create(folder / "a.h5");
    file.set_attribute("/", "text", std::string("größe"));
    file.set_attribute("/", "text", std::string("länge"));  // replaces
    file.set_attribute("/", "empty", std::string());
    file.set_attribute("/", "number", std::int64_t{-5});
    file.close();
  }
  const File file = File::open(folder / "a.h5", File::Access::read);
  EXPECT_EQ(file.string_attribute("/", "text"), "länge");
  EXPECT_EQ(file.string_attribute("/", "empty"), "");
  EXPECT_EQ(file.integer_attribute("/", "number"), -5);
  EXPECT_EQ(file.string_attribute("/", "none"), std::nullopt);
  EXPECT_EQ(file.string_attribute("/", "number"), std::nullopt);
  EXPECT_EQ(file.integer_attribute("/", "text"), std::nullopt);
}

TEST(Hdf5File, KnowsWhatItContains) {
  const TempFolder folder;
  const File file = File::create(folder / "a.h5");
  file.create_data_set("/a/b/c", H5T_STD_U8LE, space_of({}), data_set_properties());
  EXPECT_TRUE(file.contains("/"));
  EXPECT_TRUE(file.contains("/a"));
  EXPECT_TRUE(file.contains("/a/b/c"));
  EXPECT_FALSE(file.contains("/a/c"));
  EXPECT_FALSE(file.contains("/x/y/z"));
  EXPECT_THAT(file.links_below("/"), ::testing::ElementsAre("/a", "/a/b", "/a/b/c"));
  EXPECT_THAT(file.links_below("/a"), ::testing::ElementsAre("/a/b", "/a/b/c"));
}

TEST(Hdf5Types, HalfIsIeeeBinary16) {
  const Type half = half_type();
  std::vector<std::uint16_t> bits = {0x3c00, 0xc000, 0x0001, 0x7bff, 0x7c00, 0x8000, 0x3555};
  std::vector<float> values(bits.size());
  std::copy(bits.begin(), bits.end(), reinterpret_cast<std::uint16_t*>(values.data()));
  check(H5Tconvert(half.id(), H5T_NATIVE_FLOAT, bits.size(), values.data(), nullptr, H5P_DEFAULT), "convert", "half");
  for (std::size_t i = 0; i < bits.size(); ++i) EXPECT_EQ(values[i], from_half_bits(bits[i])) << i;
  EXPECT_EQ(values[0], 1.0F);
  EXPECT_EQ(values[3], 65504.0F);
}

TEST(Hdf5Types, ImpossibleValues) {
  const auto bytes = [](std::initializer_list<int> values) {
    std::vector<std::byte> result;
    for (const int value : values) result.push_back(static_cast<std::byte>(value));
    return result;
  };
  EXPECT_EQ(impossible_value(H5T_STD_U8LE), bytes({0xff}));
  EXPECT_EQ(impossible_value(H5T_STD_U16LE), bytes({0xff, 0xff}));
  EXPECT_EQ(impossible_value(H5T_STD_I16LE), bytes({0x00, 0x80}));
  EXPECT_EQ(impossible_value(H5T_IEEE_F32LE), bytes({0x00, 0x00, 0xc0, 0x7f}));
  EXPECT_EQ(impossible_value(H5T_IEEE_F64LE), bytes({0, 0, 0, 0, 0, 0, 0xf8, 0x7f}));
  EXPECT_EQ(impossible_value(half_type().id()), bytes({0x00, 0x7e}));
}

}  // namespace
}  // namespace switchyard::hdf5
