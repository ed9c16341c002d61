#include "jobs/options.h"

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <sstream>

#include "parallel/error.h"

namespace switchyard {

OptionParser::OptionParser(std::string command, std::string usage, std::string about, std::string examples)
    : command_(std::move(command)),
      usage_(std::move(usage)),
      about_(std::move(about)),
      examples_(std::move(examples)),
      options_("Options", 110, 60) {
  options_.add_options()("config", po::value<std::string>()->value_name("FILE"),
                         "read options from an INI file too: a line option=value each; the command line wins")(
      "help,h", "print this text");
}

void OptionParser::fail(const std::string& what) const {
  throw UsageError(what, "switchyard " + command_, "see `switchyard " + command_ + " --help`");
}

bool OptionParser::parse(const Arguments& arguments) {
  try {
    po::store(po::command_line_parser(arguments)
                  .options(options_)
                  .positional(positional_)
                  .style(po::command_line_style::default_style & ~po::command_line_style::allow_guessing)
                  .run(),
              values_);
    if (values_.count("help") > 0) {
      std::cout << "usage: switchyard " << usage_ << "\n\n"
                << about_ << "\n\n"
                << options_ << "\n"
                << examples_ << std::flush;
      return false;
    }
    if (values_.count("config") > 0) {
      const auto& path = values_["config"].as<std::string>();
      std::ifstream file(path);
      if (!file) throw UsageError("cannot open the file", path, "check --config");
      po::store(po::parse_config_file(file, options_), values_);
    }
    po::notify(values_);
  } catch (const po::error& error) {
    fail(error.what());
  }
  return true;
}

std::optional<double> OptionParser::positive_number(const std::string& name) const {
  if (!has(name)) return std::nullopt;
  const double value = get<double>(name);
  if (!(value > 0) || !std::isfinite(value)) fail("--" + name + " is not a number above 0");
  return value;
}

std::map<std::string, std::string> OptionParser::effective() const {
  std::map<std::string, std::string> texts;
  for (const auto& [name, value] : values_) {
    std::ostringstream text;
    const boost::any& any = value.value();
    if (const auto* s = boost::any_cast<std::string>(&any))
      text << *s;
    else if (const auto* list = boost::any_cast<std::vector<std::string>>(&any))
      for (std::size_t i = 0; i < list->size(); ++i) text << (i > 0 ? "\n" : "") << (*list)[i];
    else if (const auto* flag = boost::any_cast<bool>(&any))
      text << (*flag ? "yes" : "no");
    else if (const auto* i = boost::any_cast<int>(&any))
      text << *i;
    else if (const auto* l = boost::any_cast<std::int64_t>(&any))
      text << *l;
    else if (const auto* u = boost::any_cast<std::uint64_t>(&any))
      text << *u;
    else if (const auto* d = boost::any_cast<double>(&any))
      text << *d;
    else
      continue;
    texts[name] = text.str();
  }
  return texts;
}

}  // namespace switchyard
