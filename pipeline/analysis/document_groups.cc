#include "pipeline/analysis/document_groups.h"

namespace switchyard {

std::uint16_t document_group(std::string_view id) {
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (const char byte : id) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3U;
  return static_cast<std::uint16_t>((hash ^ (hash >> 32U)) % kDocumentGroups);
}

}  // namespace switchyard
