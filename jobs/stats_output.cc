#include "jobs/stats_output.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <fstream>
#include <map>

#include "io/stats_file.h"
#include "jobs/version.h"
#include "parallel/error.h"

namespace switchyard {
namespace {

void write_number(std::ostream& out, double value) {
  std::array<char, 32> text{};
  const auto end = std::to_chars(text.data(), text.data() + text.size(), value).ptr;
  out.write(text.data(), end - text.data());
}
void write_number(std::ostream& out, float value) { write_number(out, static_cast<double>(value)); }
template <typename T>
void write_number(std::ostream& out, T value) {
  out << +value;
}

void write_text(std::ostream& out, const std::string& text) {
  if (text.find_first_of(",\"\n\r") == std::string::npos) {
    out << text;
    return;
  }
  out << '"';
  for (const char c : text) out << c << (c == '"' ? "\"" : "");
  out << '"';
}
void write_number(std::ostream& out, const std::string& text) { write_text(out, text); }

/// tidy: a row for each cell, its place in every dimension, then its value.
void write_table(std::ostream& out, const Table& table, const std::map<std::string, std::vector<std::string>>& names) {
  for (const std::string& dimension : table.dimensions) out << dimension << ",";
  out << table.path.substr(table.path.rfind('/') + 1) << "\n";
  std::vector<std::uint64_t> at(table.shape.size(), 0);
  std::visit(
      [&](const auto& values) {
        for (const auto& value : values) {
          for (std::size_t d = 0; d < at.size(); ++d) {
            const auto named = names.find(table.dimensions[d]);
            if (named != names.end() && at[d] < named->second.size())
              write_text(out, named->second[at[d]]);
            else
              out << at[d];
            out << ",";
          }
          write_number(out, value);
          out << "\n";
          for (std::size_t d = at.size(); d-- > 0;) {
            if (++at[d] < table.shape[d]) break;
            at[d] = 0;
          }
        }
      },
      table.values);
}

}  // namespace

void write_stats_tables(const std::filesystem::path& path, std::map<std::string, std::string> facts,
                        const std::vector<std::pair<std::string, std::string>>& groups,
                        const std::vector<Table>& tables) {
  facts["format"] = std::string(kStatsFormat);
  facts["format_version"] = std::to_string(kFormatMajor) + "." + std::to_string(kFormatMinor);
  facts["program"] = std::string("switchyard ") + version() + " (" + git_commit() + ")";
  write_tables(path, facts, {groups.begin(), groups.end()}, tables);
}

void write_csv_tables(const std::filesystem::path& folder, const std::vector<Table>& tables,
                      const std::map<std::string, std::vector<std::string>>& names) {
  std::filesystem::create_directories(folder);
  for (const Table& table : tables) {
    std::string name = table.path.substr(1);
    std::replace(name.begin(), name.end(), '/', '_');
    const std::filesystem::path path = folder / (name + ".csv");
    std::ofstream out(path);
    write_table(out, table, names);
    out.close();
    if (!out) throw Error("cannot write", path.string(), "check that the folder is writable and the disk has room");
  }
}

void write_stats(const std::filesystem::path& path, const Statistics& reduced) {
  write_stats_tables(path, {{"model", reduced.model.name}, {"family", reduced.model.family}},
                     statistics_group_descriptions(), statistics_tables(reduced));
}

void write_csv(const std::filesystem::path& folder, const Statistics& reduced) {
  std::vector<std::string> names;
  for (const Dataset& dataset : reduced.datasets) names.push_back(dataset.name);
  write_csv_tables(folder, statistics_tables(reduced), {{"dataset", names}});
}

}  // namespace switchyard
