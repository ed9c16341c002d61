/// Leaves a small run in a folder, for readers in other languages to open: write_small_run FOLDER LEVEL.

#include <cstdio>

#include "io/routing_schema.h"
#include "io/stats_file.h"
#include "parallel/mpi_environment.h"
#include "tests/io/small_run.h"

int main(int argc, char** argv) {
  using namespace switchyard;
  const MpiEnvironment mpi(&argc, &argv);
  if (argc != 3) {
    std::fputs("usage: write_small_run FOLDER LEVEL\n", stderr);
    return 2;
  }
  const std::filesystem::path out = argv[1];
  testing::write_small_run(out, parse_record_level(argv[2]));
  const std::vector<Table> tables = {
      {"/load/count",
       {"dataset", "layer", "expert"},
       {2, 1, 3},
       std::vector<std::uint64_t>{1, 2, 3, 4, 5, 6},
       "1",
       "slots"},
      {"/entropy/histogram", {"dataset", "bin"}, {2, 2}, std::vector<std::uint64_t>{7, 8, 9, 10}, "1", "tokens"},
      {"/entropy/bin", {"bin"}, {2}, std::vector<double>{0.5, 1.5}, "nats", "middle of the bin"},
      {"/margin/histogram", {"dataset", "bin"}, {2, 3}, std::vector<std::uint64_t>{1, 1, 1, 2, 2, 2}, "1", "tokens"},
      {"/datasets/name", {"dataset"}, {2}, std::vector<std::string>{"wiki", "größe"}, "1", "name"},
      {"/sparse/indptr", {"row"}, {3}, std::vector<std::uint64_t>{0, 0, 0}, "1", "starts"},
      {"/sparse/index", {"nonzero"}, {0}, std::vector<std::uint32_t>{}, "1", "columns"}};
  write_tables(out / "stats.h5", {{"format", std::string(kStatsFormat)}},
               {{"/load", "load"},
                {"/entropy", "entropy"},
                {"/margin", "margin"},
                {"/datasets", "data sets"},
                {"/sparse", "CSR"}},
               tables);
}
