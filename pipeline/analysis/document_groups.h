#pragma once

#include <cstdint>
#include <string_view>

namespace switchyard {

/// Documents are hashed by id into this many groups, and counts are kept for each: bounded whatever the corpus,
/// mergeable, and fine enough to resample documents, which are the independent pieces of text, where single ones cannot
/// be kept.
inline constexpr int kDocumentGroups = 1024;

/// Group of a document: FNV-1a (Fowler, Noll, Vo; 64 bits) of its id's bytes, its halves folded together by exclusive
/// or, modulo kDocumentGroups.
std::uint16_t document_group(std::string_view id);

}  // namespace switchyard
