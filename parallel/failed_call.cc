#include "parallel/failed_call.h"

namespace switchyard {

Error failed_call(std::string_view call, const std::string& text, std::source_location where,
                  const std::string& remedy) {
  const std::string_view function = call.substr(0, call.find('('));
  const std::string_view path = where.file_name();
  const std::string_view file = path.substr(path.rfind('/') + 1);
  return Error(std::string(function) + " failed: " + text, std::string(file) + ":" + std::to_string(where.line()),
               remedy);
}

}  // namespace switchyard
