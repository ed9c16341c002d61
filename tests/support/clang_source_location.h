#pragma once

// For clang-tidy only: clang 14 lacks the builtin that libstdc++'s <source_location> is made of, which then declares
// nothing.
#if defined(__clang__) && !__has_builtin(__builtin_source_location)
namespace std {
struct source_location {
  static constexpr source_location current() { return {}; }
  constexpr const char* file_name() const { return ""; }
  constexpr const char* function_name() const { return ""; }
  constexpr unsigned line() const { return 0; }
};
}  // namespace std
#endif
