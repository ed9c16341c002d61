#pragma once

#include <cstdint>
#include <vector>

namespace switchyard::testing_support {

/// A fixed hash: the same value on every rank and in every run.
inline std::uint64_t mix(std::uint64_t value) {
  value += 0x9e3779b97f4a7c15U;
  value = (value ^ (value >> 30U)) * 0xbf58476d1ce4e5b9U;
  value = (value ^ (value >> 27U)) * 0x94d049bb133111ebU;
  return value ^ (value >> 31U);
}

/// [n_tokens, top_k] experts, different ones within a token, that favour low ids: the least of three draws. Any rank
/// can make those of any other (`seed` names the rank), and so knows what must arrive.
inline std::vector<std::int32_t> skewed_ids(std::uint64_t seed, int n_tokens, int top_k, int n_experts) {
  std::vector<std::int32_t> ids;
  std::uint64_t state = mix(seed);
  for (int token = 0; token < n_tokens; ++token) {
    std::vector<std::int32_t> chosen;
    while (static_cast<int>(chosen.size()) < top_k) {
      std::int32_t least = n_experts;
      for (int draw = 0; draw < 3; ++draw) {
        state = mix(state);
        const auto id = static_cast<std::int32_t>(state % static_cast<std::uint64_t>(n_experts));
        least = id < least ? id : least;
      }
      bool is_new = true;
      for (const std::int32_t id : chosen) is_new = is_new && id != least;
      if (is_new) chosen.push_back(least);
    }
    ids.insert(ids.end(), chosen.begin(), chosen.end());
  }
  return ids;
}

}  // namespace switchyard::testing_support
