#include "parallel/mpi_check.h"

#include <mpi.h>

#include <array>
#include <source_location>
#include <string>
#include <string_view>

#include "parallel/error.h"

namespace switchyard {

void mpi_check(int code, const char* call, std::source_location where) {
  if (code == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(code, text.data(), &length);
  const std::string_view whole_call = call;
  const std::string_view function = whole_call.substr(0, whole_call.find('('));
  const std::string_view path = where.file_name();
  const std::string_view file = path.substr(path.rfind('/') + 1);
  throw Error(std::string(function) + " failed: " + std::string(text.data(), static_cast<std::size_t>(length)),
              std::string(file) + ":" + std::to_string(where.line()));
}

}  // namespace switchyard
