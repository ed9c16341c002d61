#include "io/report/report_page.h"

#include <string_view>

#include "io/durable.h"
#include "io/report/page_source.h"

namespace switchyard {
namespace {

/// JSON inside HTML: no "<" may end the script element or begin a comment.
std::string without_tags(std::string_view json) {
  std::string safe;
  safe.reserve(json.size());
  for (const char c : json) {
    if (c == '<')
      safe += "\\u003c";
    else
      safe += c;
  }
  return safe;
}

std::string without_markup(std::string_view text) {
  std::string safe;
  for (const char c : text) {
    switch (c) {
      case '<':
        safe += "&lt;";
        break;
      case '&':
        safe += "&amp;";
        break;
      default:
        safe += c;
    }
  }
  return safe;
}

}  // namespace

void write_report_page(const std::filesystem::path& path, const std::string& title, const std::string& data) {
  std::string page;
  std::string_view left = kPageTemplate;
  // The template names what goes where in double braces.
  for (std::size_t open = left.find("{{"); open != std::string_view::npos; open = left.find("{{")) {
    const std::size_t close = left.find("}}", open);
    const std::string_view name = left.substr(open + 2, close - open - 2);
    page += left.substr(0, open);
    if (name == "title")
      page += without_markup(title);
    else if (name == "data")
      page += without_tags(data);
    else
      page += page_part(name);
    left.remove_prefix(close + 2);
  }
  page += left;
  const std::filesystem::path part = path.string() + ".part";
  make_empty_file(part);
  append_durably(part, page);
  rename_durably(part, path);
}

}  // namespace switchyard
