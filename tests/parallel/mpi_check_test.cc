#include "parallel/mpi_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mpi.h>

#include <source_location>
#include <string>

#include "parallel/communicator.h"
#include "parallel/error.h"
#include "parallel/mpi_handle.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

/// A send to a rank that does not exist: MPI itself must find it and return.
std::string failure_of_send(MPI_Comm comm, unsigned& line) {
  int size = 0;
  SWITCHYARD_MPI(MPI_Comm_size(comm, &size));
  const int value = 0;
  try {
    line = std::source_location::current().line() + 1;
    SWITCHYARD_MPI(MPI_Send(&value, 1, MPI_INT, size, 0, comm));
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

void expect_rank_error(MPI_Comm comm) {
  unsigned line = 0;
  const std::string message = failure_of_send(comm, line);
  EXPECT_THAT(message, HasSubstr("MPI_Send failed: MPI_ERR_RANK"));
  EXPECT_THAT(message, HasSubstr("mpi_check_test.cc:" + std::to_string(line) + ":"));
}

TEST(MpiCheckTest, ARealFailureThrowsWithMpisTextAndThePlace) {
  expect_rank_error(MPI_COMM_WORLD);
  expect_rank_error(MPI_COMM_SELF);
}

TEST(MpiCheckTest, CommunicatorsInheritTheErrorHandler) {
  const Communicator world = Communicator::world();
  const Communicator self = Communicator::self();
  expect_rank_error(world.handle().comm);
  expect_rank_error(self.handle().comm);
  expect_rank_error(world.duplicate().handle().comm);
}

TEST(MpiCheckTest, SuccessIsSilent) {
  int size = 0;
  EXPECT_NO_THROW(SWITCHYARD_MPI(MPI_Comm_size(MPI_COMM_WORLD, &size)));
  EXPECT_GE(size, 1);
}

}  // namespace
}  // namespace switchyard
