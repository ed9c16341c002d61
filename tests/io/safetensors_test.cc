#include "io/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "parallel/error.h"
#include "tests/fuzz/safetensors_fuzz.cc"  // NOLINT(bugprone-suspicious-include): the fuzz target is the test's subject
#include "tests/support/temp_folder.h"

namespace switchyard {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::read_file;
using testing::TempFolder;
using testing::write_file;

const std::string kGolden = std::string(SWITCHYARD_TEST_DATA) + "/golden/mixtral/";

std::string with_length(const std::string& header, const std::string& data, std::uint64_t length) {
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file + header + data;
}

std::string file_of(const std::string& header, const std::string& data) {
  return with_length(header, data, header.size());
}

/// Two tensors, six and eight bytes.
constexpr const char* kTwo =
    R"({"a":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]},"b":{"dtype":"F32","shape":[2,1],"data_offsets":[6,14]}})";
const std::string kTwoData(14, '\1');

/// The message of the Error that opening such a file gives; empty when it opens. Asserts that the message names the
/// file.
std::string fault_of(const std::string& content) {
  const TempFolder folder;
  const auto path = folder / "broken.safetensors";
  write_file(path, content);
  try {
    const SafetensorsFile file(path);
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr(path.string()));
    return error.what();
  }
  return "";
}

std::string fault_of_header(const std::string& header, std::size_t data_bytes = 14) {
  return fault_of(file_of(header, std::string(data_bytes, '\1')));
}

std::string one_tensor(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"w":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
}

TEST(Safetensors, GoldenValues) {
  const SafetensorsFile model(kGolden + "model.safetensors");
  EXPECT_EQ(model.tensors().size(), 96U);
  EXPECT_EQ(model.header().size(), 8U + 10976U);
  EXPECT_EQ(model.data().size(), 462240U);
  const StoredTensor* const down = model.find("model.layers.2.block_sparse_moe.experts.7.w2.weight");
  ASSERT_NE(down, nullptr);
  EXPECT_EQ(down->dtype, "BF16");
  EXPECT_EQ(down->shape, (std::vector<std::int64_t>{48, 56}));
  for (const DType type : {DType::f32, DType::bf16}) {
    const Tensor w = to_tensor(*down, type);
    ASSERT_EQ(w.rows(), 48);
    ASSERT_EQ(w.cols(), 56);
    const auto at = [&](std::int64_t r, std::int64_t c) {
      return type == DType::f32 ? w.row<float>(r)[static_cast<std::size_t>(c)]
                                : static_cast<float>(w.row<Bf16>(r)[static_cast<std::size_t>(c)]);
    };
    EXPECT_EQ(at(0, 0), 0x1.c2p-2F);
    EXPECT_EQ(at(0, 1), -0x1.6cp-4F);
    EXPECT_EQ(at(47, 55), -0x1.22p-4F);
    double sum = 0;
    for (std::int64_t i = 0; i < w.rows() * w.cols(); ++i) sum += at(i / w.cols(), i % w.cols());
    EXPECT_DOUBLE_EQ(sum, 13.647739291191101);
  }
  const Tensor norm = to_tensor(*model.find("model.norm.weight"), DType::f32);
  EXPECT_EQ(norm.rows(), 1);
  EXPECT_EQ(norm.cols(), 48);
  EXPECT_EQ(norm.row<float>(0)[5], 0.734375F);
  EXPECT_EQ(model.find("model.norm"), nullptr);
}

TEST(Safetensors, GoldenF32AndIntegers) {
  const SafetensorsFile golden(kGolden + "golden.safetensors");
  const Tensor logits = to_tensor(*golden.find("logits"), DType::f32);
  ASSERT_EQ(logits.rows(), 74);
  ASSERT_EQ(logits.cols(), 160);
  EXPECT_EQ(logits.row<float>(73)[159], -0x1.aef66ep+0F);
  EXPECT_EQ(to_tensor(*golden.find("token_loss"), DType::f32).row<float>(0)[0], 0x1.6e17bcp+2F);
  const StoredTensor& ids = *golden.find("input_ids");
  EXPECT_EQ(ids.dtype, "I32");
  std::int32_t second = 0;
  std::memcpy(&second, ids.data.data() + 4, 4);
  EXPECT_EQ(second, 146);
  try {
    to_tensor(ids, DType::f32);
    ADD_FAILURE() << "integers were read as numbers";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("input_ids"), HasSubstr("I32")));
  }
}

TEST(Safetensors, RowsOfATensorWithThreeDimensions) {
  const TempFolder folder;
  write_safetensors(folder / "x.safetensors", DType::f32, {{"w", {2, 3, 5}}}, [](const TensorToWrite&) {
    Tensor values(DType::f32, 1, 30);
    for (int i = 0; i < 30; ++i) values.data<float>()[i] = static_cast<float>(i);
    return values;
  });
  const SafetensorsFile file(folder / "x.safetensors");
  const StoredTensor& stored = *file.find("w");
  EXPECT_EQ(to_tensor(stored, DType::f32).rows(), 2);
  EXPECT_EQ(to_tensor(stored, DType::f32).cols(), 15);
  const Tensor rows = to_tensor(stored, DType::bf16, 2, 6);  // across the first dimension's border
  ASSERT_EQ(rows.rows(), 4);
  ASSERT_EQ(rows.cols(), 5);
  for (int i = 0; i < 20; ++i) EXPECT_EQ(static_cast<float>(rows.data<Bf16>()[i]), static_cast<float>(10 + i));
  EXPECT_EQ(to_tensor(stored, DType::f32, 6, 6).rows(), 0);
  EXPECT_THROW(to_tensor(stored, DType::f32, 5, 7), Error);
  EXPECT_THROW(to_tensor(stored, DType::f32, -1, 2), Error);
  EXPECT_THROW(to_tensor(stored, DType::f32, 3, 2), Error);
}

// All 65536 halves and bfloats, at an odd address, and more elements than one thread's chunk.
TEST(Safetensors, ConversionsOfEveryHalfAndBfloat) {
  constexpr std::size_t kRepeats = 3;
  constexpr std::size_t kElements = kRepeats << 16U;
  std::string data;
  for (std::size_t i = 0; i < kElements; ++i) {
    data += static_cast<char>(i & 0xffU);
    data += static_cast<char>(i >> 8U & 0xffU);
  }
  std::size_t compared = 0;
  for (const std::string dtype : {"F16", "BF16"}) {
    std::string header =
        one_tensor(dtype, "[" + std::to_string(kElements) + "]", "[0," + std::to_string(2 * kElements) + "]");
    if (header.size() % 2 == 0) header += ' ';
    const std::string content = file_of(header, data);
    const auto tensors = parse_safetensors(std::as_bytes(std::span(content)), "test");
    ASSERT_EQ(tensors.size(), 1U);
    ASSERT_NE(reinterpret_cast<std::uintptr_t>(tensors[0].data.data()) % 2, 0U);
    const Tensor wide = to_tensor(tensors[0], DType::f32);
    const Tensor narrow = to_tensor(tensors[0], DType::bf16);
    for (std::size_t i = 0; i < kElements; ++i) {
      const auto bits = static_cast<std::uint16_t>(i);
      Bf16 brain;
      brain.bits = bits;
      const float expected = dtype == "F16" ? from_half_bits(bits) : static_cast<float>(brain);
      const float got = wide.data<float>()[i];
      const std::uint16_t expected_narrow = dtype == "F16" ? Bf16(expected).bits : bits;
      const bool same = std::isnan(expected) ? std::isnan(got) : std::memcmp(&expected, &got, 4) == 0;
      const Bf16 got_narrow = narrow.data<Bf16>()[i];
      const bool same_narrow =
          std::isnan(expected) ? std::isnan(static_cast<float>(got_narrow)) : got_narrow.bits == expected_narrow;
      ASSERT_TRUE(same && same_narrow) << dtype << " " << i << ": " << expected << " " << got;
      ++compared;
    }
  }
  EXPECT_EQ(compared, 2 * kElements);
}

// From the definition of binary16, not from from_half_bits.
TEST(Safetensors, HalvesByHand) {
  const std::array<std::pair<std::uint16_t, float>, 8> cases = {{{0x0001, 0x1p-24F},
                                                                 {0x03ff, 0x1.ff8p-15F},
                                                                 {0x0400, 0x1p-14F},
                                                                 {0xc000, -2.0F},
                                                                 {0x7bff, 65504.0F},
                                                                 {0xfc00, -std::numeric_limits<float>::infinity()},
                                                                 {0x8000, -0.0F},
                                                                 {0x3555, 0x1.554p-2F}}};
  std::string data;
  for (const auto& [bits, value] : cases) data.append(reinterpret_cast<const char*>(&bits), 2);
  const std::string content = file_of(one_tensor("F16", "[8]", "[0,16]"), data);
  const auto tensors = parse_safetensors(std::as_bytes(std::span(content)), "test");
  const Tensor values = to_tensor(tensors.at(0), DType::f32);
  for (std::size_t i = 0; i < cases.size(); ++i) {
    EXPECT_EQ(values.data<float>()[i], cases[i].second) << i;
    EXPECT_EQ(std::signbit(values.data<float>()[i]), std::signbit(cases[i].second)) << i;
  }
}

TEST(Safetensors, RoundsF32ToBf16) {
  const std::array<float, 4> values = {1.0F + 0x1p-8F, 1.0F + 0x1.8p-7F, -1.0F - 0x1.1p-8F,
                                       3.0F};  // tie, tie, above a tie, exact
  std::string data(reinterpret_cast<const char*>(values.data()), 16);
  const std::string content = file_of(one_tensor("F32", "[4]", "[0,16]"), data);
  const Tensor rounded = to_tensor(parse_safetensors(std::as_bytes(std::span(content)), "test").at(0), DType::bf16);
  const std::array<float, 4> expected = {1.0F, 1.0F + 0x1p-6F, -1.0F - 0x1p-7F, 3.0F};
  for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(static_cast<float>(rounded.data<Bf16>()[i]), expected[i]) << i;
}

TEST(Safetensors, WhatTheFormatAllows) {
  EXPECT_EQ(fault_of(file_of(kTwo, kTwoData)), "");
  EXPECT_EQ(fault_of(file_of(std::string(kTwo) + "   ", kTwoData)), "");  // padding
  EXPECT_EQ(fault_of_header("{}", 0), "");
  EXPECT_EQ(fault_of_header(R"({"__metadata__":{"format":"pt","w":""}})", 0), "");
  EXPECT_EQ(fault_of_header(one_tensor("F8_E4M3", "[]", "[0,1]"), 1), "");  // a scalar
  // Names in another order than the data, empty tensors at the beginning, a border and the end.
  const std::string header =
      R"({"b":{"dtype":"U8","shape":[4],"data_offsets":[8,12]},"none":{"dtype":"F64","shape":[0,7],"data_offsets":[0,0]},)"
      R"("end":{"dtype":"F32","shape":[3,0],"data_offsets":[12,12]},"mid":{"dtype":"I8","shape":[0],"data_offsets":[8,8]},)"
      R"("a":{"dtype":"I64","shape":[1,1,1],"data_offsets":[0,8]}})";
  const std::string content = file_of(header, "aaaaaaaabbbb");
  const auto tensors = parse_safetensors(std::as_bytes(std::span(content)), "test");
  std::vector<std::string> names;
  for (const StoredTensor& tensor : tensors) names.push_back(tensor.name);
  EXPECT_EQ(names, (std::vector<std::string>{"none", "a", "mid", "b", "end"}));
  EXPECT_EQ(tensors[3].data.size(), 4U);
  EXPECT_EQ(tensors[3].data[0], std::byte{'b'});
  const Tensor empty = to_tensor(tensors[4], DType::f32);
  EXPECT_EQ(empty.rows(), 3);
  EXPECT_EQ(empty.cols(), 0);
}

TEST(Safetensors, TruncatedHeader) {
  EXPECT_THAT(fault_of(""), HasSubstr("truncated header"));
  EXPECT_THAT(fault_of("\x10\0\0"), HasSubstr("truncated header"));
  EXPECT_THAT(fault_of(file_of(kTwo, "").substr(0, 60)),
              AllOf(HasSubstr("truncated header"), HasSubstr("52 are there")));
}

TEST(Safetensors, HeaderLengthBeyondTheFileOrTheFormat) {
  EXPECT_THAT(fault_of(with_length(kTwo, kTwoData, 5000)),
              AllOf(HasSubstr("truncated header"), HasSubstr("5000 bytes")));
  EXPECT_THAT(fault_of(with_length(kTwo, kTwoData, 100'000'001)), HasSubstr("100000001"));
  EXPECT_THAT(fault_of(with_length(kTwo, kTwoData, std::numeric_limits<std::uint64_t>::max())),
              HasSubstr("18446744073709551615"));
}

TEST(Safetensors, NotJson) {
  EXPECT_THAT(fault_of_header(""), HasSubstr("does not begin with '{'"));
  EXPECT_THAT(fault_of_header(" {}"), HasSubstr("does not begin with '{'"));
  EXPECT_THAT(fault_of_header("[]"), HasSubstr("does not begin with '{'"));
  EXPECT_THAT(fault_of_header("{nonsense"), HasSubstr("not valid JSON"));
  EXPECT_THAT(fault_of_header(std::string(kTwo) + "{}"), HasSubstr("not valid JSON"));
  EXPECT_THAT(fault_of_header(std::string(kTwo) + std::string(4, '\0')), HasSubstr("zero byte"));
  EXPECT_THAT(fault_of_header("{\"\xff\":{}}"), HasSubstr("not valid JSON"));
  EXPECT_THAT(fault_of_header(R"({"w":)" + std::string(1'000'000, '[')),
              HasSubstr("'w' is not described by an object"));
}

TEST(Safetensors, DuplicateNames) {
  const std::string tensor = R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  EXPECT_THAT(fault_of_header(R"({"w":)" + tensor + R"(,"w":)" + tensor + "}", 0), HasSubstr("'w' is given twice"));
  EXPECT_THAT(fault_of_header(R"({"w":{"dtype":"U8","shape":[0],"shape":[1],"data_offsets":[0,1]}})", 1),
              AllOf(HasSubstr("tensor 'w'"), HasSubstr("'shape' is given twice")));
  EXPECT_THAT(fault_of_header(R"({"__metadata__":{"a":"1","a":"2"}})", 0),
              AllOf(HasSubstr("__metadata__"), HasSubstr("'a' is given twice")));
  EXPECT_THAT(fault_of_header(R"({"__metadata__":{},"__metadata__":{}})", 0),
              HasSubstr("'__metadata__' is given twice"));
}

TEST(Safetensors, MetadataOtherThanStrings) {
  for (const std::string value : {"1", "null", R"({"a":1})", R"({"a":{}})", R"({"a":["b"]})", "[]", R"("text")"}) {
    EXPECT_THAT(fault_of_header(R"({"__metadata__":)" + value + "}", 0),
                HasSubstr("__metadata__ must map strings to strings"))
        << value;
  }
}

TEST(Safetensors, FieldsOfTheWrongKind) {
  for (const std::string shape :
       {"3", "\"3\"", "[3.0]", "[-3]", "[[3]]", "[true]", "[9223372036854775808]", "[1e3]", "{}", "null"}) {
    EXPECT_THAT(fault_of_header(one_tensor("U8", shape, "[0,3]"), 3),
                AllOf(HasSubstr("tensor 'w'"), HasSubstr("shape must be")))
        << shape;
  }
  for (const std::string offsets :
       {"3", "[0]", "[0,3,3]", "[0,-3]", "[]", "[0,3.0]", "{}", "[\"0\",3]", "[0,18446744073709551616]"}) {
    EXPECT_THAT(fault_of_header(one_tensor("U8", "[3]", offsets), 3),
                AllOf(HasSubstr("tensor 'w'"), HasSubstr("data_offsets must be")))
        << offsets;
  }
  EXPECT_THAT(fault_of_header(R"({"w":{"dtype":8,"shape":[],"data_offsets":[0,1]}})", 1),
              HasSubstr("dtype must be a string"));
  EXPECT_THAT(fault_of_header(R"({"w":{"dtype":"U8","data_offsets":[0,1]}})", 1),
              AllOf(HasSubstr("'w'"), HasSubstr("lacks")));
  EXPECT_THAT(fault_of_header(R"({"w":{"dtype":"U8","shape":[],"data_offsets":[0,1],"stride":[1]}})", 1),
              HasSubstr("unknown field 'stride'"));
  EXPECT_THAT(fault_of_header(R"({"w":7})", 0), HasSubstr("'w' is not described by an object"));
}

// A message goes to a terminal.
TEST(Safetensors, HostileNamesInMessages) {
  const std::string message = fault_of_header(R"({"\u001b[2J\u0000w)" + std::string(1000, 'x') + R"(":7})", 0);
  EXPECT_THAT(message, HasSubstr("'?[2J?wxxx"));
  EXPECT_LT(message.size(), 600U);
}

TEST(Safetensors, Overlap) {
  const std::string header =
      R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[8],"data_offsets":[6,14]}})";
  EXPECT_THAT(fault_of_header(header), AllOf(HasSubstr("'b' overlaps"), HasSubstr("2 bytes")));
  const std::string same =
      R"({"a":{"dtype":"U8","shape":[14],"data_offsets":[0,14]},"b":{"dtype":"U8","shape":[14],"data_offsets":[0,14]}})";
  EXPECT_THAT(fault_of_header(same), HasSubstr("overlaps"));
  const std::string inside =
      R"({"a":{"dtype":"U8","shape":[14],"data_offsets":[0,14]},"b":{"dtype":"U8","shape":[0],"data_offsets":[7,7]}})";
  EXPECT_THAT(fault_of_header(inside), HasSubstr("'b' overlaps"));
}

TEST(Safetensors, Hole) {
  const std::string header =
      R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[8],"data_offsets":[6,14]}})";
  EXPECT_THAT(fault_of_header(header), AllOf(HasSubstr("hole of 2 bytes"), HasSubstr("'b'")));
  EXPECT_THAT(fault_of_header(one_tensor("U8", "[10]", "[4,14]")),
              AllOf(HasSubstr("hole of 4 bytes"), HasSubstr("'w'")));
}

TEST(Safetensors, SizeMismatch) {
  EXPECT_THAT(fault_of_header(one_tensor("F32", "[2,2]", "[0,14]")),
              AllOf(HasSubstr("'w'"), HasSubstr("F32 [2, 2] takes 16 bytes"), HasSubstr("span 14")));
  EXPECT_THAT(fault_of_header(one_tensor("U8", "[0]", "[0,14]")), HasSubstr("takes 0 bytes"));
}

TEST(Safetensors, OverflowingShape) {
  // 2^32 * 2^32 = 2^64 = 0 (mod 2^64): without a check, a tensor of no bytes.
  for (const std::string shape : {"[4294967296,4294967296]", "[4611686018427387904,2]", "[0,4611686018427387904,4]",
                                  "[9223372036854775807,3,0]"}) {
    EXPECT_THAT(fault_of_header(one_tensor("F32", shape, "[0,0]"), 0), AllOf(HasSubstr("'w'"), HasSubstr("overflows")))
        << shape;
  }
}

TEST(Safetensors, TrailingBytes) {
  EXPECT_THAT(fault_of(file_of(kTwo, kTwoData + "xyz")), HasSubstr("3 trailing bytes"));
  EXPECT_THAT(fault_of_header("{}", 1), HasSubstr("1 trailing bytes"));
}

TEST(Safetensors, TruncatedData) {
  EXPECT_THAT(fault_of(file_of(kTwo, kTwoData.substr(1))),
              AllOf(HasSubstr("truncated data"), HasSubstr("'b'"), HasSubstr("14 of 13")));
}

TEST(Safetensors, UnknownAndSubByteDtypes) {
  for (const std::string dtype : {"F31", "bf16", "", "FLOAT"}) {
    EXPECT_THAT(fault_of_header(one_tensor(dtype, "[1]", "[0,1]"), 1),
                AllOf(HasSubstr("'w'"), HasSubstr("unknown dtype '" + dtype + "'")));
  }
  for (const std::string dtype : {"F4", "F6_E2M3", "F6_E3M2"}) {
    EXPECT_THAT(fault_of_header(one_tensor(dtype, "[8]", "[0,4]"), 4),
                AllOf(HasSubstr("'w'"), HasSubstr("sub-byte dtype '" + dtype + "'")));
  }
}

TEST(Safetensors, LyingOffsets) {
  EXPECT_THAT(fault_of_header(one_tensor("U8", "[14]", "[14,0]")),
              AllOf(HasSubstr("'w'"), HasSubstr("before they begin")));
  EXPECT_THAT(fault_of_header(one_tensor("U8", "[4]", "[18446744073709551612,18446744073709551616]")),
              HasSubstr("data_offsets"));
  EXPECT_THAT(fault_of_header(one_tensor("U8", "[14]", "[18446744073709551601,18446744073709551615]")),
              HasSubstr("hole"));
  EXPECT_THAT(fault_of_header(one_tensor("U8", "[1000]", "[0,1000]")),
              AllOf(HasSubstr("truncated data"), HasSubstr("1000 of 14")));
}

TEST(Safetensors, NotARegularFile) {
  const TempFolder folder;
  for (const auto& path : {folder.path(), folder / "absent.safetensors"}) {
    try {
      const SafetensorsFile file(path);
      ADD_FAILURE() << path << " opened";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(path.string()));
    }
  }
  ASSERT_EQ(mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_THROW(MappedFile(folder / "pipe"), Error);
}

TEST(Safetensors, MovedFilesKeepTheirTensors) {
  std::vector<SafetensorsFile> files;
  for (int i = 0; i < 5; ++i) files.emplace_back(kGolden + (i % 2 == 0 ? "model.safetensors" : "golden.safetensors"));
  SafetensorsFile last = std::move(files.back());
  files.erase(files.begin());
  EXPECT_NE(files.front().find("logits"), nullptr);
  EXPECT_EQ(to_tensor(*last.find("lm_head.weight"), DType::f32).data<float>()[0], 0x1.26p-4F);
}

Tensor counted(DType type, std::int64_t n) {
  Tensor values(type, 1, n);
  for (std::int64_t i = 0; i < n; ++i) {
    if (type == DType::f32) {
      values.data<float>()[i] = static_cast<float>(i);
    } else {
      values.data<Bf16>()[i] = Bf16(static_cast<float>(i));
    }
  }
  return values;
}

TEST(SafetensorsWriter, WrittenIsRead) {
  const TempFolder folder;
  for (const DType type : {DType::f32, DType::bf16}) {
    const auto path = folder / "out.safetensors";
    const std::vector<TensorToWrite> tensors = {
        {"z", {7}}, {"none", {0, 3}}, {"quote\"d \xc3\xa9", {2, 2, 2}}, {"a", {}}};
    write_safetensors(path, type, tensors, [&](const TensorToWrite& tensor) {
      std::int64_t n = 1;
      for (const std::int64_t size : tensor.shape) n *= size;
      return counted(type, n);
    });
    EXPECT_FALSE(std::filesystem::exists(path.string() + ".part"));
    const SafetensorsFile file(path);
    EXPECT_EQ(file.header().size() % 64, 0U);
    ASSERT_EQ(file.tensors().size(), 4U);
    for (const TensorToWrite& tensor : tensors) {
      const StoredTensor* const stored = file.find(tensor.name);
      ASSERT_NE(stored, nullptr) << tensor.name;
      EXPECT_EQ(stored->shape, tensor.shape);
      EXPECT_EQ(stored->dtype, type == DType::f32 ? "F32" : "BF16");
      const Tensor values = to_tensor(*stored, DType::f32);
      for (std::int64_t i = 0; i < values.rows() * values.cols(); ++i)
        EXPECT_EQ(values.data<float>()[i], static_cast<float>(i));
    }
  }
}

TEST(SafetensorsWriter, LeavesNothingBehindWhenItFails) {
  const TempFolder folder;
  const auto path = folder / "out.safetensors";
  const std::vector<TensorToWrite> tensors = {{"a", {2}}, {"b", {3}}};
  const auto wrong_size = [](const TensorToWrite&) { return counted(DType::f32, 2); };
  const auto wrong_type = [](const TensorToWrite&) { return counted(DType::bf16, 4); };
  EXPECT_THROW(write_safetensors(path, DType::f32, tensors, wrong_size), Error);
  EXPECT_THROW(write_safetensors(path, DType::f32, tensors, wrong_type), Error);
  EXPECT_THROW(write_safetensors(path, DType::f32, {{"a", {2}}, {"a", {2}}}, wrong_size), Error);
  EXPECT_THROW(write_safetensors(path, DType::f32, {{"a", {-1}}}, wrong_size), Error);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  EXPECT_THROW(write_safetensors(folder / "no/such/folder", DType::f32, {{"a", {2}}}, wrong_size), Error);
}

/// Changes a valid file in one to four ways. Half of the time the header's length is put right again, so that the
/// change reaches the checks behind it.
std::string mutate(const std::string& valid, std::mt19937_64& random) {
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
  const std::array<std::string, 18> tokens = {"0",
                                              "1",
                                              "-1",
                                              "18446744073709551615",
                                              "9223372036854775807",
                                              "4294967296",
                                              "1e9",
                                              "[",
                                              "]",
                                              "{",
                                              "}",
                                              "\"",
                                              ",",
                                              "null",
                                              "\"F32\"",
                                              "\"F4\"",
                                              "[0,0]",
                                              "\"__metadata__\":{},"};
  std::uint64_t length = 0;
  std::memcpy(&length, valid.data(), 8);
  std::string header = valid.substr(8, length);
  std::string data = valid.substr(8 + length);
  for (std::size_t change = 0, changes = 1 + below(4); change < changes; ++change) {
    const std::size_t at = below(header.size() + 1);
    const std::size_t span = std::min(below(24), header.size() - at);
    switch (below(8)) {
      case 0:
        if (at < header.size()) header[at] = static_cast<char>(below(256));
        break;
      case 1:
        header.erase(at, span);
        break;
      case 2:
        header.insert(at, header.substr(below(header.size() + 1), below(80)));
        break;
      case 3:
        header.replace(at, span, tokens[below(tokens.size())]);
        break;
      case 4:
        data.resize(below(2 * data.size() + 2));
        break;
      case 5:
        header.append(below(9), ' ');
        break;
      default: {  // a number by another, the change that reaches deepest
        const std::size_t digit = header.find_first_of("0123456789", at);
        if (digit == std::string::npos) break;
        const std::size_t end = header.find_first_not_of("0123456789", digit);
        header.replace(digit, end - digit, below(2) == 0 ? tokens[below(7)] : std::to_string(below(40)));
      }
    }
    if (header.empty()) header = "{";
  }
  if (below(2) == 0) length = header.size();
  if (below(20) == 0) length = random() >> below(64);
  std::string file = with_length(header, data, length);
  if (below(10) == 0) file.resize(below(file.size() + 1));
  return file;
}

TEST(Safetensors, MutatedFilesOpenOrThrowError) {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},)"
      R"("b":{"dtype":"F32","shape":[3],"data_offsets":[12,24]},"c":{"dtype":"F16","shape":[],"data_offsets":[24,26]},)"
      R"("none":{"dtype":"F32","shape":[0,4],"data_offsets":[26,26]},"d":{"dtype":"I64","shape":[1],"data_offsets":[26,34]}})";
  const std::string valid = file_of(header, std::string(34, '\x3f'));
  ASSERT_EQ(fault_of(valid), "");
  std::mt19937_64 random(20240229);
  constexpr int kMutations = 20'000;
  int opened = 0;
  for (int i = 0; i < kMutations; ++i) {
    const std::string file = mutate(valid, random);
    opened += fuzz::opens(reinterpret_cast<const std::uint8_t*>(file.data()), file.size()) ? 1 : 0;
    LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(file.data()), file.size() / 2);
  }
  EXPECT_GT(opened, kMutations / 100);  // neither all broken at once
  EXPECT_LT(opened, kMutations / 2);    // nor none
}

// Every single byte of a small valid file by every value.
TEST(Safetensors, EverySingleByteChangeOpensOrThrowsError) {
  const std::string valid = file_of(kTwo, kTwoData);
  std::size_t opened = 0;
  for (std::size_t at = 0; at < valid.size(); ++at) {
    for (int value = 0; value < 256; ++value) {
      std::string file = valid;
      file[at] = static_cast<char>(value);
      if (fuzz::opens(reinterpret_cast<const std::uint8_t*>(file.data()), file.size())) ++opened;
    }
  }
  EXPECT_GE(opened,
            256 * kTwoData.size() + (valid.size() - kTwoData.size()));  // all changes of data, and each unchanged file
  EXPECT_LT(opened, 256 * valid.size() / 2);
}

}  // namespace
}  // namespace switchyard
