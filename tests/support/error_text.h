#pragma once

#include <string>

#include "parallel/error.h"

namespace switchyard::testing {

/// What the Error says that `action` throws; empty when it throws none.
std::string error_text(const auto& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

}  // namespace switchyard::testing
