#include "pipeline/analysis/experiment.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "io/stats_file.h"
#include "parallel/error.h"
#include "pipeline/analysis/report_data.h"
#include "tests/support/error_text.h"
#include "tests/support/temp_folder.h"

namespace switchyard {
namespace {

Experiment small_probe() {
  Experiment probe;
  probe.kind = "probe";
  probe.settings = {{"tokens", "64"}};
  probe.model = {"mixtral", "small", 3, 16, 100, {0, 2}, 4, 2};
  probe.tables = {{"/probe/norm", {"layer", "expert"}, {2, 4}, std::vector<double>(8, 0.5), "1", "norms"},
                  {"/probe/large", {"cell"}, {200'000}, std::vector<std::uint64_t>(200'000, 1), "1", "cells"}};
  return probe;
}

TEST(Experiment, ComesBackFromItsFile) {
  const testing::TempFolder folder;
  write_experiment(folder / "probe.h5", small_probe(), {{"/probe", "what every expert makes of every token"}}, "me 1");
  EXPECT_EQ(experiment_kind(folder / "probe.h5"), "probe");
  const Experiment read = read_experiment(folder / "probe.h5");
  EXPECT_EQ(read.kind, "probe");
  EXPECT_EQ(read.model, small_probe().model);
  EXPECT_EQ(read.settings.at("tokens"), "64");
  EXPECT_EQ(read.settings.at("program"), "me 1");
  ASSERT_EQ(read.tables.size(), 2U);
  EXPECT_EQ(read.tables[0].path, "/probe/large");
  EXPECT_EQ(std::get<std::vector<double>>(read.tables[1].values), std::vector<double>(8, 0.5));
}

TEST(Experiment, OtherFilesAreNone) {
  const testing::TempFolder folder;
  EXPECT_EQ(experiment_kind(folder / "nothing.h5"), "");
  const std::vector<Table> tables = {{"/a/b", {"c"}, {1}, std::vector<std::uint8_t>{1}, "1", "d"}};
  write_tables(folder / "stats.h5", {{"format", "switchyard-stats"}}, {{"/a", "e"}}, tables);
  EXPECT_EQ(experiment_kind(folder / "stats.h5"), "");
  EXPECT_NE(testing::error_text([&] { read_experiment(folder / "stats.h5"); }).find("stats.h5"), std::string::npos);
}

TEST(Experiment, ThePageHoldsItsTablesButTheLargest) {
  const std::vector<Experiment> experiments = {small_probe()};
  const nlohmann::json page = nlohmann::json::parse(report_data({}, {}, {}, experiments, {}));
  const nlohmann::json& probe = page.at("experiments").at("probe");
  EXPECT_EQ(probe.at("tables").at("/probe/norm").at("values"), std::vector<double>(8, 0.5));
  EXPECT_EQ(probe.at("left_out"), nlohmann::json({"/probe/large"}));
}

}  // namespace
}  // namespace switchyard
