#include "io/stats_file.h"

#include "io/durable.h"
#include "io/hdf5/table_file.h"
#include "io/routing_schema.h"
#include "parallel/error.h"

namespace switchyard {
namespace {

void write_part(const std::filesystem::path& part, const std::map<std::string, std::string>& attributes,
                const std::map<std::string, std::string>& group_descriptions, std::span<const Table> tables) {
  hdf5::File file = hdf5::File::create(part);
  file.set_attribute("/", "format_version", std::to_string(kFormatMajor) + "." + std::to_string(kFormatMinor));
  for (const auto& [name, value] : attributes) file.set_attribute("/", name, value);
  std::vector<hdf5::DataSetFacts> facts;
  for (const Table& table : tables) {
    hdf5::write_values(file, table);
    facts.push_back(hdf5::facts_of(table));
  }
  hdf5::describe(file, facts, [&](std::string_view group) {
    const auto found = group_descriptions.find(std::string(group));
    if (found == group_descriptions.end()) throw Error("the group has no description", file.name(group));
    return found->second;
  });
  file.close();
}

}  // namespace

void write_tables(const std::filesystem::path& path, const std::map<std::string, std::string>& attributes,
                  const std::map<std::string, std::string>& group_descriptions, std::span<const Table> tables) {
  if (!attributes.contains("format")) throw Error("no attribute \"format\" is given", path.string());
  const std::filesystem::path part = path.string() + ".part";
  make_empty_file(part);
  try {
    write_part(part, attributes, group_descriptions, tables);
    sync_to_disk(part);
    rename_durably(part, path);
  } catch (const Error&) {
    std::error_code ignored;
    std::filesystem::remove(part, ignored);
    throw;
  }
}

std::vector<Table> read_tables(const std::filesystem::path& path, const std::string& format) {
  const hdf5::File file = hdf5::File::open(path, hdf5::File::Access::read);
  hdf5::require_format(file, format, kFormatMajor);
  std::vector<Table> tables;
  for (const std::string& data_set : hdf5::data_sets_below(file, "/"))
    tables.push_back(hdf5::read_table(file, data_set));
  return tables;
}

}  // namespace switchyard
