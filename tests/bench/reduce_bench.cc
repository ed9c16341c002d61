// How near reduce comes to a plain parallel read of the same data sets. usage: [mpirun -n R] reduce_bench RUN [TURNS]
//
// In each turn every rank reads the row data sets of every R-th segment with H5Dread, in the file's own types, 65,536
// rows at a time, and looks at nothing; then reduce_runs sums the rows anew. The same again with the sums that segments
// keep, /accumulators and /dispatch. Medians over turns, after one that warms the page cache.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "io/hdf5/file.h"
#include "io/hdf5/table_file.h"
#include "io/routing_reader.h"
#include "io/routing_writer.h"
#include "parallel/communicator.h"
#include "parallel/mpi_environment.h"
#include "pipeline/reduce.h"

namespace switchyard {
namespace {

constexpr std::uint64_t kRowsAtOnce = 1 << 16;

struct Read {
  double bytes = 0;
  double token_layers = 0;
};

Read read_plainly(const std::filesystem::path& segment) {
  Read read;
  const RoutingReader reader(segment);
  const hdf5::File file = hdf5::File::open(segment, hdf5::File::Access::read);
  std::vector<std::byte> buffer;
  for (const RowColumn& column : row_columns(reader.model(), reader.level())) {
    const hdf5::DataSet data_set = file.open_data_set(column.path);
    const hdf5::Type type(H5Dget_type(data_set.id()));
    const hdf5::Space in_file(H5Dget_space(data_set.id()));
    const bool wide = !column.second_dimension.empty();
    for (std::uint64_t first = 0; first < reader.n_rows(); first += kRowsAtOnce) {
      const std::uint64_t count = std::min(kRowsAtOnce, reader.n_rows() - first);
      const std::array<hsize_t, 2> start = {first, 0};
      const std::array<hsize_t, 2> extent = {count, column.width};
      H5Sselect_hyperslab(in_file.id(), H5S_SELECT_SET, start.data(), nullptr, extent.data(), nullptr);
      const hdf5::Space in_memory =
          hdf5::space_of(wide ? std::vector<std::uint64_t>{count, column.width} : std::vector<std::uint64_t>{count});
      buffer.resize(count * column.width * size_of(column.stored));
      if (H5Dread(data_set.id(), type.id(), in_memory.id(), in_file.id(), H5P_DEFAULT, buffer.data()) < 0) std::abort();
      read.bytes += static_cast<double>(buffer.size());
    }
  }
  read.token_layers = static_cast<double>(reader.n_rows()) * reader.model().n_moe_layers();
  return read;
}

Read read_sums_plainly(const std::filesystem::path& segment) {
  Read read;
  const hdf5::File file = hdf5::File::open(segment, hdf5::File::Access::read);
  std::vector<std::byte> buffer;
  for (const char* group : {"/accumulators", "/dispatch"})
    for (const std::string& path : hdf5::data_sets_below(file, group)) {
      const hdf5::DataSet data_set = file.open_data_set(path);
      const hdf5::Type type(H5Dget_type(data_set.id()));
      if (H5Tget_class(type.id()) == H5T_STRING) continue;
      const hdf5::Space space(H5Dget_space(data_set.id()));
      buffer.resize(static_cast<std::size_t>(H5Sget_simple_extent_npoints(space.id())) * H5Tget_size(type.id()));
      if (!buffer.empty() && H5Dread(data_set.id(), type.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT, buffer.data()) < 0)
        std::abort();
      read.bytes += static_cast<double>(buffer.size());
    }
  return read;
}

Read read_share(const std::filesystem::path& run, const std::vector<SegmentEntry>& segments,
                Read (*read_segment)(const std::filesystem::path&), const Communicator& comm) {
  Read all;
  for (std::size_t s = static_cast<std::size_t>(comm.rank()); s < segments.size();
       s += static_cast<std::size_t>(comm.size())) {
    const Read of_segment = read_segment(run / segments[s].file);
    all.bytes += of_segment.bytes;
    all.token_layers += of_segment.token_layers;
  }
  return {comm.sum(all.bytes), comm.sum(all.token_layers)};
}

double seconds_of(const std::function<void()>& work, const Communicator& comm) {
  comm.barrier();
  const auto start = std::chrono::steady_clock::now();
  work();
  return comm.max(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void run(const std::filesystem::path& folder, int turns) {
  const Communicator comm = Communicator::world();
  const std::vector<SegmentEntry> segments = read_manifest(folder);
  const auto ignore = [](std::size_t, std::size_t) {};
  Read rows;
  Read sums;
  std::array<std::vector<double>, 4> seconds;
  for (int turn = 0; turn <= turns; ++turn) {
    const std::array<double, 4> taken = {
        seconds_of([&] { rows = read_share(folder, segments, read_plainly, comm); }, comm),
        seconds_of([&] { reduce_runs({folder}, {.recompute = true}, ignore, comm); }, comm),
        seconds_of([&] { sums = read_share(folder, segments, read_sums_plainly, comm); }, comm),
        seconds_of([&] { reduce_runs({folder}, {}, ignore, comm); }, comm)};
    for (std::size_t i = 0; turn > 0 && i < taken.size(); ++i) seconds[i].push_back(taken[i]);
  }
  if (comm.rank() != 0) return;
  std::printf("%d ranks, %zu segments, %.0f M token-layer rows\n", comm.size(), segments.size(),
              rows.token_layers / 1e6);
  constexpr std::array<const char*, 4> kNames = {"plain read of rows", "reduce --recompute", "plain read of sums",
                                                 "reduce"};
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    const double s = median(seconds[i]);
    std::printf("%-20s %7.3f s  %6.2f GB/s  %5.1f %% of the plain read\n", kNames[i], s,
                (i < 2 ? rows : sums).bytes / s / 1e9, 100 * median(seconds[i / 2 * 2]) / s);
  }
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  const switchyard::MpiEnvironment mpi(&argc, &argv);
  if (argc < 2) {
    std::fprintf(stderr, "usage: reduce_bench RUN [TURNS]\n");
    return 2;
  }
  switchyard::run(argv[1], argc > 2 ? std::max(1, std::atoi(argv[2])) : 5);
}
