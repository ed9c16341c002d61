# Writes OUTPUT (a .cc) that holds the report page's files: the template, the style, the scripts one after another, and D3.
file(READ ${PAGE}/page.html template)
file(READ ${PAGE}/style.css style)
file(READ ${PAGE}/d3_license.js d3_license)
file(READ ${D3} d3)
set(script "")
foreach(part tables figure charts load entropy comparison tokens paths coactivation repetition documents rank_times cost_model ranks ablation placement placement_check probe weights overview page)
  file(READ ${PAGE}/${part}.js text)
  string(APPEND script "${text}\n")
endforeach()
set(parts "")
foreach(name style script d3 d3_license)
  string(APPEND parts "  if (name == \"${name}\") return R\"switchyard(${${name}})switchyard\";\n")
endforeach()
file(WRITE ${OUTPUT} "#include \"io/report/page_source.h\"

#include \"parallel/error.h\"

namespace switchyard {

const std::string_view kPageTemplate = R\"switchyard(${template})switchyard\";

std::string_view page_part(std::string_view name) {
${parts}  throw Error(\"the report page has no part of this name\", std::string(name));
}

}  // namespace switchyard
")
