#pragma once

#include <filesystem>
#include <string>

namespace switchyard {

/// Writes the report: one HTML file that needs nothing else, neither files nor network. data: the JSON object that
/// io/report/page draws. Whole or not at all (.part, fsync, rename). Throws Error naming the path.
void write_report_page(const std::filesystem::path& path, const std::string& title, const std::string& data);

}  // namespace switchyard
