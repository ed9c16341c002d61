#include "pipeline/model/routing.h"

#include "parallel/error.h"

namespace switchyard {

void throw_not_finite(const std::string& where, std::int64_t token) {
  throw Error("a router logit is not a finite number", where + ", token " + std::to_string(token) + " of the batch",
              "check the checkpoint's tensors for NaN, or run with --precision f32");
}

}  // namespace switchyard
