#pragma once

#include <boost/program_options.hpp>
#include <map>
#include <optional>
#include <string>

#include "jobs/command.h"

namespace switchyard {

namespace po = boost::program_options;

/// A subcommand's command line, its help and its errors.
class OptionParser {
 public:
  /// usage: "route --model DIR ..."; about: a paragraph; examples: printed below the options.
  OptionParser(std::string command, std::string usage, std::string about, std::string examples);

  po::options_description& options() { return options_; }
  /// What words without "--" mean, e.g. "input" for any number of them.
  void positional(const char* option, int most) { positional_.add(option, most); }

  /// Parses the words, then the file named by --config (INI: option=value, one a line) for what the words left out.
  /// False when --help was asked for and printed. Throws UsageError for an unknown option, a wrong value, or a missing
  /// required one, naming it and `--help`.
  bool parse(const Arguments& arguments);

  bool given(const std::string& name) const { return values_.count(name) > 0 && !values_[name].defaulted(); }
  bool has(const std::string& name) const { return values_.count(name) > 0; }
  template <typename T>
  const T& get(const std::string& name) const {
    return values_[name].as<T>();
  }
  bool flag(const std::string& name) const { return has(name) && get<bool>(name); }
  /// A number above 0, or nothing when it was not given. Throws UsageError when it is another.
  std::optional<double> positive_number(const std::string& name) const;
  /// The effective value of every option, as text, for the record.
  std::map<std::string, std::string> effective() const;

 private:
  [[noreturn]] void fail(const std::string& what) const;

  std::string command_, usage_, about_, examples_;
  po::options_description options_;
  po::positional_options_description positional_;
  po::variables_map values_;
};

}  // namespace switchyard
