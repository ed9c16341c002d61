/// gtest under MPI: every rank runs the same tests; a failure is printed at once with its rank, rank 0 lists all failed
/// tests by rank at the end, and every rank returns the same verdict. A rank that ran no test fails the run. Without
/// mpirun, or with one rank, output is gtest's own. SWITCHYARD_TEST_MPI_THREADS: which threads of the tests call MPI.
/// SWITCHYARD_TEST_NEEDS_GPU: each rank takes a GPU, which ranks may share; without one the exit code is 77.

#include <gtest/gtest.h>

#include <cstdio>
#include <span>
#include <string>

#include "parallel/communicator.h"
#include "parallel/device/gpu.h"
#include "parallel/mpi_environment.h"

namespace {

using switchyard::Communicator;

/// Prints failures as they come, because a failed assertion may leave the other ranks waiting, and remembers their
/// names.
class RankPrinter : public testing::EmptyTestEventListener {
 public:
  RankPrinter(int rank, bool prints) : prefix_("[rank " + std::to_string(rank) + "] "), prints_(prints) {}

  const std::string& failed_tests() const { return failed_tests_; }

 private:
  void OnTestStart(const testing::TestInfo& test) override {
    test_ = std::string(test.test_suite_name()) + "." + test.name();
  }
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed() || !prints_) return;
    const std::string file = result.file_name() == nullptr ? "unknown file" : result.file_name();
    const std::string text =
        prefix_ + test_ + " " + file + ":" + std::to_string(result.line_number()) + "\n" + result.message() + "\n";
    std::fwrite(text.data(), 1, text.size(), stderr);
  }
  void OnTestEnd(const testing::TestInfo& test) override {
    if (test.result()->Failed()) failed_tests_ += prefix_ + "FAILED " + test_ + "\n";
  }

  std::string prefix_;
  bool prints_;
  std::string test_ = "outside of a test";
  std::string failed_tests_;
};

int run_on_all_ranks(const Communicator& comm) {
  auto& listeners = testing::UnitTest::GetInstance()->listeners();
  const bool alone = comm.size() == 1;
  auto* printer = new RankPrinter(comm.rank(), !alone);  // the listeners own it
  if (!alone) {
    delete listeners.Release(listeners.default_result_printer());
    // Caught, an exception would leave the other ranks in their collective; uncaught, it ends all of them.
    GTEST_FLAG_SET(catch_exceptions, false);
  }
  listeners.Append(printer);
  const bool failed_here = RUN_ALL_TESTS() != 0;
  if (GTEST_FLAG_GET(list_tests)) return 0;

  const auto& unit_test = *testing::UnitTest::GetInstance();
  const int ran = unit_test.successful_test_count() + unit_test.failed_test_count();
  std::string verdict = printer->failed_tests();
  if (ran == 0) verdict += "[rank " + std::to_string(comm.rank()) + "] ran no test\n";
  const auto verdicts = comm.gather_v(std::span<const char>(verdict));
  if (comm.rank() == 0) {
    std::fputs(std::string(verdicts.begin(), verdicts.end()).c_str(), stderr);
    std::printf("%d tests ran on each of %d ranks\n", ran, comm.size());
  }
  return comm.any(failed_here || ran == 0) ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
#ifdef SWITCHYARD_TEST_NEEDS_GPU
  if (switchyard::count_gpus() == 0) {
    std::puts("skipped: no GPU");
    return 77;
  }
#endif
  const switchyard::MpiEnvironment mpi(&argc, &argv, switchyard::MpiThreads::SWITCHYARD_TEST_MPI_THREADS);
#ifdef SWITCHYARD_TEST_NEEDS_GPU
  const int gpu = Communicator::world().same_node().rank() % switchyard::count_gpus();
  std::puts(switchyard::describe(switchyard::use_gpu(gpu)).c_str());
#endif
  testing::InitGoogleTest(&argc, argv);
  return run_on_all_ranks(Communicator::world());
}
