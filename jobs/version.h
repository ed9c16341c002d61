#pragma once

namespace switchyard {

/// Version of this program, e.g. "0.1.0".
const char* version();
/// Git commit it was built from, with "-dirty" when the tree had changes; "unknown" outside a checkout.
const char* git_commit();

}  // namespace switchyard
