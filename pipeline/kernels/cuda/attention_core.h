#pragma once

#include "pipeline/kernels/cuda/warp.h"

/// Causal attention within a window, softmax in f32, two ways: on the matrix units, 16 queries a warp, for bf16; and
/// plainly, a query a warp, for f32 and for head sizes that the first is not built for.
namespace switchyard::cores {

struct AttentionRule {
  int sliding_window;  // 0: none; else keys a query sees, its own included
  float scale;         // of scores
  float softcap;       // scaled scores s become cap * tanh(s / cap); 0: they stay
};

SWITCHYARD_CORE float scaled_score(float product, const AttentionRule& rule) {
  const float score = product * rule.scale;
  return rule.softcap > 0 ? rule.softcap * tanhf(score / rule.softcap) : score;
}

SWITCHYARD_CORE bool sees(int query, int key, const AttentionRule& rule) {
  return key <= query && (rule.sliding_window == 0 || query - key < rule.sliding_window);
}

/// The first key that a query sees.
SWITCHYARD_CORE int first_key(int query, const AttentionRule& rule) {
  return rule.sliding_window == 0 || query < rule.sliding_window ? 0 : query - rule.sliding_window + 1;
}

/// Heads of one token of qkv as the matmul left it: all query heads, all key heads, all value heads.
struct HeadCounts {
  int queries, keys;
  int head_dim;

  SWITCHYARD_CORE int pairs() const { return (queries + 2 * keys) * head_dim / 2; }
};

/// Elements i and i + head_dim / 2 of one head of a token, pair `pair` of HeadCounts::pairs(): rotated by the token's
/// position if they are of queries or keys. qkv: [(queries + 2 keys) * head_dim] f32; cosines, sines: [head_dim / 2] of
/// the position; q: [queries * head_dim], k and v: [keys * head_dim] of this token.
template <typename T>
SWITCHYARD_CORE void split_pair(const float* qkv, const HeadCounts& heads, int pair, const float* cosines,
                                const float* sines, T* q, T* k, T* v) {
  const int half = heads.head_dim / 2;
  const int head = pair / half;
  const int i = pair % half;
  const float* from = qkv + static_cast<std::int64_t>(head) * heads.head_dim + i;
  const bool is_query = head < heads.queries;
  const bool is_value = head >= heads.queries + heads.keys;
  T* to = (is_query ? q : is_value ? v : k) + i;
  to += static_cast<std::int64_t>(is_query   ? head
                                  : is_value ? head - heads.queries - heads.keys
                                             : head - heads.queries) *
        heads.head_dim;
  const float a = from[0];
  const float b = from[half];
  store(to, is_value ? a : a * cosines[i] - b * sines[i]);
  store(to + half, is_value ? b : b * cosines[i] + a * sines[i]);
}

/// One query of one head, plainly. q, out: [head_dim]; k, v: of the window's first token, `stride` elements from token
/// to token; query: its position in the window. head_dim is at most kLanes * kPerLane.
template <int kPerLane, typename T, typename Warp>
SWITCHYARD_CORE void attend_query(Warp warp, const T* q, const T* k, const T* v, std::int64_t stride, int query,
                                  int head_dim, const AttentionRule& rule, T* out) {
  struct Mine {
    float values[kPerLane];  // of columns lane, lane + 32, ...
  };
  typename Warp::template Lanes<Mine> mixed;
  typename Warp::template Lanes<float> score;  // of key key0 + lane
  const auto for_own = [&](int lane, auto work) {
    SWITCHYARD_UNROLL
    for (int i = 0; i < kPerLane; ++i)
      if (i * kLanes + lane < head_dim) work(i, i * kLanes + lane);
  };
  warp.each([&](int lane) { for_own(lane, [&](int i, int /*column*/) { mixed[lane].values[i] = 0; }); });
  float largest = -INFINITY;
  float sum = 0;
  for (int key0 = first_key(query, rule); key0 <= query; key0 += kLanes) {
    warp.each([&](int lane) {
      score[lane] = -INFINITY;
      if (!sees(query, key0 + lane, rule)) return;
      const T* key = k + (key0 + lane) * stride;
      float product = 0;
      for (int i = 0; i < head_dim; ++i) product = fmaf(widen(q[i]), widen(key[i]), product);
      score[lane] = scaled_score(product, rule);
    });
    const float before = largest;
    largest = fmaxf(largest, warp.largest(score));
    const float factor = expf(before - largest);
    warp.each([&](int lane) {
      score[lane] = expf(score[lane] - largest);  // from here on the probability, not yet divided by the sum
      for_own(lane, [&](int i, int /*column*/) { mixed[lane].values[i] *= factor; });
    });
    sum = sum * factor + warp.sum(score);
    for (int j = 0; j < kLanes && key0 + j <= query; ++j) {
      const float probability = warp.broadcast(score, j);
      const T* value = v + (key0 + j) * stride;
      warp.each([&](int lane) {
        for_own(lane, [&](int i, int column) {
          mixed[lane].values[i] = fmaf(probability, widen(value[column]), mixed[lane].values[i]);
        });
      });
    }
  }
  warp.each(
      [&](int lane) { for_own(lane, [&](int i, int column) { store(out + column, mixed[lane].values[i] / sum); }); });
}

// On the matrix units, after FlashAttention-2 (Dao 2023, https://arxiv.org/abs/2307.08691): keys pass by in tiles, the
// softmax is corrected as larger scores come.

inline constexpr int kQueriesOfWarp = 16;
inline constexpr float kMasked = -1e30F;  // a score that no key has; finite, so that differences of two are

/// What a warp holds of 16 queries from key tile to key tile. Index 0 is of rows 0 to 7, 1 of rows 8 to 15.
template <int kHeadDim, typename Warp>
struct QueryTile {
  typename Warp::template Lanes<FragmentA> queries[kHeadDim / 16];
  typename Warp::template Lanes<FragmentC> mixed[kHeadDim / 8];
  typename Warp::template Lanes<float> largest[2], sum[2];
};

SWITCHYARD_CORE std::uint32_t pair_of(const Bf16* at) {
  return at[0].bits | static_cast<std::uint32_t>(at[1].bits) << 16U;
}

/// q: the first of `n` queries, at most 16 of which count, `stride` elements from one to the next.
template <int kHeadDim, typename Warp>
SWITCHYARD_CORE void begin_queries(Warp warp, QueryTile<kHeadDim, Warp>& tile, const Bf16* q, std::int64_t stride,
                                   int n) {
  warp.each([&](int lane) {
    SWITCHYARD_UNROLL
    for (int d = 0; d < kHeadDim / 16; ++d) {
      SWITCHYARD_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i % 2 * 8;
        const int column = d * 16 + lane % 4 * 2 + i / 2 * 8;
        tile.queries[d][lane].pairs[i] = row < n ? pair_of(q + row * stride + column) : 0;
      }
    }
    SWITCHYARD_UNROLL
    for (int d = 0; d < kHeadDim / 8; ++d) tile.mixed[d][lane] = FragmentC{};
    for (int h = 0; h < 2; ++h) {
      tile.largest[h][lane] = kMasked;
      tile.sum[h][lane] = 0;
    }
  });
}

/// scores [16, kKeys] = mask(scale(q k^T)), query0 and key0 the positions of the tiles' first rows.
template <int kHeadDim, int kKeys, typename Warp>
SWITCHYARD_CORE void score_tile(Warp warp, const QueryTile<kHeadDim, Warp>& tile, const Bf16* k, int stride, int query0,
                                int key0, const AttentionRule& rule, typename Warp::template Lanes<FragmentC>* scores) {
  typename Warp::template Lanes<FragmentB> keys;
  SWITCHYARD_UNROLL
  for (int j = 0; j < kKeys / 8; ++j) {
    warp.each([&](int lane) { scores[j][lane] = FragmentC{}; });
    SWITCHYARD_UNROLL
    for (int d = 0; d < kHeadDim / 16; ++d) {
      warp.each([&](int lane) {
        const Bf16* row = k + (j * 8 + lane / 4) * stride + d * 16 + lane % 4 * 2;
        keys[lane].pairs[0] = pair_of(row);
        keys[lane].pairs[1] = pair_of(row + 8);
      });
      warp.multiply(scores[j], tile.queries[d], keys);
    }
    warp.each([&](int lane) {
      SWITCHYARD_UNROLL
      for (int i = 0; i < 4; ++i) {
        float& score = scores[j][lane].values[i];
        const int query = query0 + lane / 4 + i / 2 * 8;
        const int key = key0 + j * 8 + lane % 4 * 2 + i % 2;
        score = sees(query, key, rule) ? scaled_score(score, rule) : kMasked;
      }
    });
  }
}

/// Scores become probabilities, not yet divided by their sum, and what was mixed up to now is made to fit.
template <int kHeadDim, int kKeys, typename Warp>
SWITCHYARD_CORE void soften_tile(Warp warp, QueryTile<kHeadDim, Warp>& tile,
                                 typename Warp::template Lanes<FragmentC>* scores) {
  typename Warp::template Lanes<float> most;
  typename Warp::template Lanes<float> added;
  SWITCHYARD_UNROLL
  for (int h = 0; h < 2; ++h) {
    warp.each([&](int lane) {
      most[lane] = tile.largest[h][lane];
      SWITCHYARD_UNROLL
      for (int j = 0; j < kKeys / 8; ++j)
        most[lane] = fmaxf(most[lane], fmaxf(scores[j][lane].values[2 * h], scores[j][lane].values[2 * h + 1]));
    });
    warp.quad_largest(most);
    warp.each([&](int lane) {
      const float factor = expf(tile.largest[h][lane] - most[lane]);
      tile.largest[h][lane] = most[lane];
      added[lane] = 0;
      SWITCHYARD_UNROLL
      for (int j = 0; j < kKeys / 8; ++j) {
        SWITCHYARD_UNROLL
        for (int i = 2 * h; i < 2 * h + 2; ++i) {
          float& score = scores[j][lane].values[i];
          score = score <= kMasked ? 0.0F : expf(score - most[lane]);
          added[lane] += score;
        }
      }
      tile.sum[h][lane] *= factor;
      SWITCHYARD_UNROLL
      for (int d = 0; d < kHeadDim / 8; ++d) {
        tile.mixed[d][lane].values[2 * h] *= factor;
        tile.mixed[d][lane].values[2 * h + 1] *= factor;
      }
    });
    warp.quad_sum(added);
    warp.each([&](int lane) { tile.sum[h][lane] += added[lane]; });
  }
}

/// mixed += probabilities * v
template <int kHeadDim, int kKeys, typename Warp>
SWITCHYARD_CORE void mix_tile(Warp warp, QueryTile<kHeadDim, Warp>& tile, const Bf16* v, int stride,
                              const typename Warp::template Lanes<FragmentC>* probabilities) {
  typename Warp::template Lanes<FragmentA> left;
  typename Warp::template Lanes<FragmentB> values;
  SWITCHYARD_UNROLL
  for (int step = 0; step < kKeys / 16; ++step) {
    warp.each([&](int lane) {  // two fragments of results, side by side, are one of the left side
      const float* first = probabilities[2 * step][lane].values;
      const float* second = probabilities[2 * step + 1][lane].values;
      left[lane] = FragmentA{{pair_of(first[0], first[1]), pair_of(first[2], first[3]), pair_of(second[0], second[1]),
                              pair_of(second[2], second[3])}};
    });
    SWITCHYARD_UNROLL
    for (int d = 0; d < kHeadDim / 8; ++d) {
      warp.each([&](int lane) {
        const Bf16* at = v + (step * 16 + lane % 4 * 2) * stride + d * 8 + lane / 4;
        values[lane].pairs[0] = at[0].bits | static_cast<std::uint32_t>(at[stride].bits) << 16U;
        values[lane].pairs[1] = at[8 * stride].bits | static_cast<std::uint32_t>(at[9 * stride].bits) << 16U;
      });
      warp.multiply(tile.mixed[d], left, values);
    }
  }
}

/// Lets the queries see kKeys keys. k, v: the tile's first, `stride` elements from one to the next; rows past the
/// window's end are not seen, but must hold numbers.
template <int kHeadDim, int kKeys, typename Warp>
SWITCHYARD_CORE void attend_tile(Warp warp, QueryTile<kHeadDim, Warp>& tile, const Bf16* k, const Bf16* v, int stride,
                                 int query0, int key0, const AttentionRule& rule) {
  typename Warp::template Lanes<FragmentC> scores[kKeys / 8];
  score_tile<kHeadDim, kKeys>(warp, tile, k, stride, query0, key0, rule, scores);
  soften_tile<kHeadDim, kKeys>(warp, tile, scores);
  mix_tile<kHeadDim, kKeys>(warp, tile, v, stride, scores);
}

/// out: as q of begin_queries.
template <int kHeadDim, typename Warp>
SWITCHYARD_CORE void end_queries(Warp warp, const QueryTile<kHeadDim, Warp>& tile, Bf16* out, std::int64_t stride,
                                 int n) {
  warp.each([&](int lane) {
    SWITCHYARD_UNROLL
    for (int d = 0; d < kHeadDim / 8; ++d) {
      SWITCHYARD_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8;
        if (row < n)
          store(out + row * stride + d * 8 + lane % 4 * 2 + i % 2,
                tile.mixed[d][lane].values[i] / tile.sum[i / 2][lane]);
      }
    }
  });
}

}  // namespace switchyard::cores
