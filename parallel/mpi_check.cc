#include "parallel/mpi_check.h"

#include <mpi.h>

#include <array>
#include <source_location>
#include <string>

#include "parallel/failed_call.h"

namespace switchyard {

void mpi_check(int code, const char* call, std::source_location where) {
  if (code == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(code, text.data(), &length);
  throw failed_call(call, std::string(text.data(), static_cast<std::size_t>(length)), where);
}

}  // namespace switchyard
