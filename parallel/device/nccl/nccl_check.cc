#include "parallel/device/nccl/nccl_check.h"

#include <string>

#include "parallel/failed_call.h"

namespace switchyard {

void nccl_check(ncclResult_t result, const char* call, std::source_location where) {
  if (result == ncclSuccess || result == ncclInProgress) return;
  std::string text = ncclGetErrorString(result);
  const char* details = ncclGetLastError(nullptr);
  if (details != nullptr && *details != '\0') text += std::string(" (") + details + ")";
  throw failed_call(call, text, where, "look at what other ranks say, and run with NCCL_DEBUG=WARN, which tells more");
}

}  // namespace switchyard
