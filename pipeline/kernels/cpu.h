#pragma once

namespace switchyard {

/// Whether this CPU multiplies bf16 in hardware (AMX or AVX512-BF16), as oneDNN may use it.
bool cpu_has_bf16();

}  // namespace switchyard
