#include "parallel/error.h"

namespace switchyard {
namespace {

std::string compose(const std::string& what, const std::string& where, const std::string& remedy) {
  std::string text = where.empty() ? what : where + ": " + what;
  if (!remedy.empty()) text += "; " + remedy;
  return text;
}

}  // namespace

Error::Error(const std::string& what, const std::string& where, const std::string& remedy)
    : std::runtime_error(compose(what, where, remedy)) {}

}  // namespace switchyard
