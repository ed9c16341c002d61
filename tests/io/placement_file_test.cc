#include "io/placement_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "parallel/error.h"
#include "tests/support/temp_folder.h"

namespace switchyard {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TempFolder;
using testing::write_file;

class PlacementFile : public ::testing::Test {
 protected:
  /// Five experts, two layers unless told, three ranks.
  ExpertPlacement read(const std::string& text, int n_layers = 2) {
    write_file(path_, text);
    return read_placement_file(path_, n_layers, 5, 3);
  }

  /// The message of the Error; empty when the file is taken. Asserts that it names the file.
  std::string fault_of(const std::string& text, int n_layers = 2) {
    try {
      read(text, n_layers);
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(path_.string()));
      return error.what();
    }
    return "";
  }

  TempFolder folder_;
  std::filesystem::path path_ = folder_ / "placement.json";
};

TEST_F(PlacementFile, OneRowPerLayer) {
  const ExpertPlacement placement =
      read(R"({"rank_of_expert": [[2, 0, 2, 1, 0], [2, 2, 2, 2, 0]], "n_ranks": 3, "cost": [1.5, {}]})");
  ASSERT_EQ(placement.n_layers(), 2);
  EXPECT_THAT(placement.layer(0).experts_of(0), ElementsAre(1, 4));
  EXPECT_THAT(placement.layer(0).experts_of(1), ElementsAre(3));
  EXPECT_THAT(placement.layer(0).experts_of(2), ElementsAre(0, 2));
  EXPECT_THAT(placement.layer(1).experts_of(0), ElementsAre(4));
  EXPECT_THAT(placement.layer(1).experts_of(1), ElementsAre());  // a rank may hold nothing
  EXPECT_THAT(placement.layer(1).experts_of(2), ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(placement.layer(1).n_ranks(), 3);
}

TEST_F(PlacementFile, OneRowForAllLayers) {
  const ExpertPlacement placement = read(R"({"rank_of_expert": [[1, 0, 2, 1, 0]]})", 4);
  ASSERT_EQ(placement.n_layers(), 4);
  for (int layer = 0; layer < 4; ++layer) EXPECT_THAT(placement.layer(layer).experts_of(1), ElementsAre(0, 3)) << layer;
}

TEST_F(PlacementFile, ListsOfRanksAreCopies) {
  const std::string text = R"({"n_ranks":3,"rank_of_expert":[[[0,2],0,2,1,[0,1,2]],[2,[0,1],[0,2],2,[0,2]]]})";
  const ExpertPlacement placement = read(text);
  EXPECT_EQ(placement.n_physical(), 8);
  EXPECT_THAT(placement.layer(0).ranks_of(4), ElementsAre(0, 1, 2));
  EXPECT_THAT(placement.layer(1).experts_of(0), ElementsAre(1, 2, 4));
  EXPECT_EQ(to_placement_json(placement), text + "\n");
  EXPECT_EQ(read(R"({"rank_of_expert": [[[2, 0], 0, 2, 1, 1]]})").layer(1).ranks_of(0).front(), 0);  // in any order
  EXPECT_THAT(fault_of(R"({"rank_of_expert": [[[1, 1], 0, 2, 1, 1]]})"),
              HasSubstr("layer 0, expert 0: two copies on rank 1"));
  EXPECT_THAT(fault_of(R"({"rank_of_expert": [[[], 0, 2, 1, 1]]})"), HasSubstr("layer 0, expert 0: an empty list"));
  EXPECT_THAT(fault_of(R"({"rank_of_expert": [[0, 0, 2, 1, [0, 3]]]})"),
              HasSubstr("layer 0, expert 4: rank 3 is outside"));
  EXPECT_THAT(fault_of(R"({"rank_of_expert": [[0, 0, 2, 1, 1], [0, 0, 2, 1, [0, 1]]]})"),
              HasSubstr("layer 1 has 6 copies of experts, layer 0 5"));
}

TEST_F(PlacementFile, WrittenIsRead) {
  const ExpertPlacement first = read(R"({"rank_of_expert": [[2, 0, 2, 1, 0], [2, 2, 2, 2, 0]]})");
  const ExpertPlacement second = read(to_placement_json(first));
  int compared = 0;
  for (int layer = 0; layer < 2; ++layer) {
    for (int expert = 0; expert < 5; ++expert, ++compared) {
      EXPECT_EQ(second.layer(layer).rank_of(expert), first.layer(layer).rank_of(expert));
    }
  }
  EXPECT_EQ(compared, 10);
  EXPECT_THAT(to_placement_json(first), HasSubstr("\"n_ranks\":3"));
}

TEST_F(PlacementFile, RankOutOfRange) {
  EXPECT_THAT(fault_of(R"({"rank_of_expert": [[0,0,0,0,0],[0,0,0,3,0]]})"),
              AllOf(HasSubstr("layer 1, expert 3"), HasSubstr("rank 3"), HasSubstr("0 to 2")));
  EXPECT_THAT(fault_of(R"({"rank_of_expert": [[0,-1,0,0,0]]})"),
              AllOf(HasSubstr("layer 0, expert 1"), HasSubstr("rank -1")));
  EXPECT_THAT(fault_of(R"({"rank_of_expert": [[0,0,4294967296,0,0]]})"),
              AllOf(HasSubstr("expert 2"), HasSubstr("4294967296")));
  EXPECT_THAT(fault_of(R"({"rank_of_expert": [[0,0,18446744073709551615,0,0]]})"),
              AllOf(HasSubstr("expert 2"), HasSubstr("18446744073709551615")));
}

TEST_F(PlacementFile, RankNotAnInteger) {
  for (const std::string value : {"1.0", "\"1\"", "null", "[true]", "true", "18446744073709551616"}) {
    EXPECT_THAT(fault_of(R"({"rank_of_expert": [[0,0,0,0,0],[0,0,)" + value + ",0,0]]}"),
                AllOf(HasSubstr("layer 1, expert 2"), HasSubstr("not an integer")))
        << value;
  }
}

TEST_F(PlacementFile, WrongNumberOfRowsOrExperts) {
  EXPECT_THAT(fault_of(R"({"rank_of_expert": [[0,0,0,0,0],[0,0,0,0]]})"),
              AllOf(HasSubstr("layer 1"), HasSubstr("4 ranks for 5 experts")));
  EXPECT_THAT(fault_of(R"({"rank_of_expert": [[0,0,0,0,0],[0,0,0,0,0]]})", 3),
              AllOf(HasSubstr("2 rows"), HasSubstr("3 MoE layers")));
  EXPECT_THAT(fault_of(R"({"rank_of_expert": []})"), HasSubstr("0 rows"));
  EXPECT_THAT(fault_of(R"({"rank_of_expert": [[0,0,0,0,0], 7]})"),
              AllOf(HasSubstr("layer 1"), HasSubstr("not a list")));
}

TEST_F(PlacementFile, WrongForm) {
  EXPECT_THAT(fault_of("{"), HasSubstr("not valid JSON"));
  EXPECT_THAT(fault_of("[[0,0,0,0,0]]"), HasSubstr("no list 'rank_of_expert'"));
  EXPECT_THAT(fault_of(R"({"rank_of_experts": [[0,0,0,0,0]]})"), HasSubstr("no list 'rank_of_expert'"));
  EXPECT_THAT(fault_of(R"({"rank_of_expert": [[0,0,0,0,0]], "rank_of_expert": [[1,1,1,1,1]]})"),
              HasSubstr("given twice"));
  EXPECT_THAT(fault_of(R"({"rank_of_expert": [[0,0,0,0,0]], "n_ranks": 4})"),
              AllOf(HasSubstr("made for 4 ranks"), HasSubstr("this run has 3")));
  EXPECT_THAT(fault_of(R"({"rank_of_expert": [[0,0,0,0,0]], "n_ranks": "3"})"),
              HasSubstr("'n_ranks' is not an integer"));
  EXPECT_THROW(read_placement_file(folder_ / "absent.json", 1, 5, 3), Error);
}

}  // namespace
}  // namespace switchyard
