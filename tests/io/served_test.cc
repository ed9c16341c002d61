#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "io/served/json_path.h"
#include "io/served/served_line.h"
#include "io/served/served_reader.h"
#include "tests/support/temp_folder.h"

namespace switchyard {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::string fault_of(const std::string& line, const ServedFormat& format) {
  try {
    parse_served_line(line, format);
  } catch (const LineFault& fault) {
    return fault.what();
  }
  return "none";
}

TEST(JsonPath, AListStandsForItsElementsUnlessOneIsNamed) {
  const json root =
      json::parse(R"({"a": [{"b": 1, "c": {"d": 10}}, {"b": null}, {"b": 3, "c": {"d": 30}}, 5], "e": 7})");
  const auto found = JsonPath("a.b").all(root);
  ASSERT_EQ(found.size(), 2U);
  EXPECT_EQ(*found[0].value, 1);
  EXPECT_EQ(*found[1].value, 3);
  EXPECT_EQ(*JsonPath("a.c.d").beside(root, found[1].elements), 30);
  EXPECT_EQ(*JsonPath("e").beside(root, found[1].elements), 7);
  EXPECT_EQ(JsonPath("a.x").beside(root, found[1].elements), nullptr);
  EXPECT_EQ(*JsonPath("a.0.c.d").all(root).at(0).value, 10);
  EXPECT_TRUE(JsonPath("a.9.c").all(root).empty());
  EXPECT_TRUE(JsonPath("e.f").all(root).empty());
  const std::string deep(1000000, '[');
  EXPECT_TRUE(JsonPath("a").all(json::parse(deep + std::string(deep.size(), ']'))).empty());
}

TEST(ServedLine, Base64IsLittleEndianInt32) {
  ServedFormat format;
  format.experts = 300;
  format.layers = 2;
  format.top_k = 1;
  // 1, 2, 258, 0: 01000000 02000000 02010000 00000000
  const std::string line = R"({"meta_info": {"routed_experts": "AQAAAAIAAAACAQAAAAAAAA=="}})";
  const ServedFormat found = detect_format(line, format);
  EXPECT_EQ(found.fields.routing, "meta_info.routed_experts");
  EXPECT_FALSE(found.has_ids());
  EXPECT_FALSE(found.has_phases());
  const auto documents = parse_served_line(line, found);
  ASSERT_EQ(documents.size(), 1U);
  EXPECT_EQ(documents[0].n_tokens, 2U);
  EXPECT_EQ(documents[0].n_prefill, 2U);
  EXPECT_THAT(documents[0].experts, ElementsAre(1, 2, 258, 0));
  EXPECT_THAT(fault_of(R"({"meta_info": {"routed_experts": "AQ!A"}})", found), HasSubstr("not base64"));
  EXPECT_THAT(fault_of(R"({"meta_info": {"routed_experts": "AQAA"}})", found), HasSubstr("3 bytes"));
  EXPECT_THAT(fault_of(R"({"meta_info": {"routed_experts": "AQAAAA=="}})", found),
              HasSubstr("no multiple of 2 layers x 1"));
  EXPECT_THAT(fault_of(R"({"meta_info": {"routed_experts": "//////////8="}})", found), HasSubstr("expert -1 of 300"));
  EXPECT_THAT(fault_of(R"({"meta_info": {"routed_experts": 3}})", found), HasSubstr("neither a list nor base64"));
  EXPECT_EQ(fault_of(R"({"meta_info": {"routed_experts": ""}})", found), "none");
}

TEST(ServedLine, IdsThatDoNotReachOverThePromptAreLeftOut) {
  ServedFormat format;
  format.experts = 4;
  const std::string line =
      R"({"choices": [{"routed_experts": [[[0]], [[1]], [[2]]], "token_ids": [5, 6, 7]}], "usage": {"prompt_tokens": 2, "completion_tokens": 2}})";
  EXPECT_FALSE(detect_format(line, format).has_ids());
  const ServedFormat found = detect_format(line, format);
  EXPECT_EQ(found.layers, 1);
  EXPECT_EQ(found.top_k, 1);
  const auto documents = parse_served_line(line, found);
  EXPECT_EQ(documents.at(0).n_prefill, 2U);
  EXPECT_THAT(documents.at(0).ids, IsEmpty());
  format.fields.token_ids = "choices.token_ids";
  format.fields.routing = "choices.routed_experts";
  EXPECT_THAT(parse_served_line(line, detect_format(line, format)).at(0).ids, ElementsAre(5, 6, 7));
  EXPECT_THAT(
      fault_of(
          R"({"choices": [{"routed_experts": [[[0]], [[1]], [[2]], [[3]], [[3]]]}], "usage": {"prompt_tokens": 2, "completion_tokens": 2}})",
          found),
      HasSubstr("routing of 5 tokens, but prompt and completion have 4"));
}

TEST(ServedReader, GoesOnWhereACursorSays) {
  const testing::TempFolder folder;
  for (const char* name : {"a.jsonl", "b.jsonl"}) {
    std::ofstream out(folder.path() / name);
    for (int i = 0; i < 150; ++i) out << R"({"routed_experts": [[[)" << i % 7 << "]]]}\n" << (i % 5 == 0 ? "\n" : "");
  }
  const std::vector<std::filesystem::path> files = {folder.path() / "a.jsonl", folder.path() / "b.jsonl"};
  ServedFormat format;
  format.experts = 7;
  format = detect_format(files, format, BadDocument::fail);
  std::vector<std::string> all;
  std::vector<CorpusCursor> behind;
  ServedReader reader(files, format, BadDocument::fail);
  while (const auto line = reader.next()) {
    all.push_back(line->at(0).id);
    behind.push_back(reader.cursor());
  }
  ASSERT_EQ(all.size(), 300U);
  EXPECT_EQ(all[0], "a.jsonl:1");
  EXPECT_EQ(all[1], "a.jsonl:3");
  for (const std::size_t at : {0U, 7U, 149U, 150U, 298U}) {
    ServedReader again(files, format, BadDocument::fail);
    again.seek(behind[at]);
    EXPECT_EQ(again.next()->at(0).id, all[at + 1]);
    EXPECT_EQ(again.cursor(), behind[at + 1]);
  }
}

}  // namespace
}  // namespace switchyard
