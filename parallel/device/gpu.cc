#include "parallel/device/gpu.h"

#include <iomanip>
#include <sstream>

namespace switchyard {

std::string describe(const GpuReport& gpu) {
  constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
  std::ostringstream text;
  text << gpu.name << ", " << gpu.multiprocessors << " multiprocessors (" << gpu.capability / 10 << '.'
       << gpu.capability % 10 << "), " << std::fixed << std::setprecision(1)
       << static_cast<double>(gpu.free_bytes) / kGiB << " of " << static_cast<double>(gpu.total_bytes) / kGiB
       << " GiB free";
  return text.str();
}

}  // namespace switchyard
