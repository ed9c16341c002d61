#include <cstddef>
#include <cstdint>

#include "tests/fuzz/corpus_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  switchyard::fuzzing::check_json_line({reinterpret_cast<const char*>(data), size});
  return 0;
}
