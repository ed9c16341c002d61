#pragma once

#include <stdexcept>
#include <string>

namespace switchyard {

/// Bad input or a failed foreign call: what happened, where, and what to do about it. Its text is
/// "what" or "where: what", followed by "; remedy" when there is one.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& what, const std::string& where = {}, const std::string& remedy = {});
};

/// A wrong command line or configuration: exit code 2 instead of 1.
class UsageError : public Error {
 public:
  using Error::Error;
};

}  // namespace switchyard
