#pragma once

#include <string_view>

namespace switchyard {

/// io/report/page/page.html, in which {{NAME}} stands for page_part(NAME), the title or the data.
extern const std::string_view kPageTemplate;
/// "style", "script", "d3" or "d3_license"; throws Error for another name.
std::string_view page_part(std::string_view name);

}  // namespace switchyard
