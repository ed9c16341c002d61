#include "pipeline/analysis/accumulators.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "parallel/error.h"
#include "pipeline/analysis/live_accumulators.h"
#include "pipeline/analysis/token_phase.h"

namespace switchyard {
namespace {

constexpr AccumulatorShape kShape{3, 5, 2, 50};
constexpr TokenTableChoice kAllTables{};

/// Random tokens with their routing, owned.
struct Sample {
  std::vector<std::uint32_t> token, position, predicted;
  std::vector<std::int64_t> target;
  std::vector<std::uint16_t> group;
  std::vector<float> loss;
  std::vector<std::uint8_t> included;
  std::vector<std::vector<std::uint16_t>> expert;
  std::vector<std::vector<float>> weight, entropy, margin, top, lse;
  std::vector<std::vector<double>> probability_sum;

  Sample(std::size_t windows, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    const auto uniform = [&] { return std::uniform_real_distribution<float>(0, 1)(random); };
    const auto layers = static_cast<std::size_t>(kShape.layers);
    expert.resize(layers);
    weight.resize(layers);
    entropy.resize(layers);
    margin.resize(layers);
    top.resize(layers);
    lse.resize(layers);
    probability_sum.assign(layers, std::vector<double>(5, 0.0));
    for (std::size_t w = 0; w < windows; ++w) {
      const auto length = static_cast<std::uint32_t>(1 + random() % 9);
      const auto of_document = static_cast<std::uint16_t>(random() % kDocumentGroups);
      for (std::uint32_t p = 0; p < length; ++p) {
        group.push_back(of_document);
        token.push_back(static_cast<std::uint32_t>(random() % 50));
        position.push_back(p);
        predicted.push_back(static_cast<std::uint32_t>(random() % 50));
        target.push_back(p + 1 == length ? -1 : static_cast<std::int64_t>(random() % 50));
        loss.push_back(target.back() < 0 ? NAN : 3 * uniform());
        included.push_back(random() % 7 == 0 ? 0 : 1);
        for (std::size_t l = 0; l < layers; ++l) {
          const auto first = static_cast<std::uint16_t>(random() % 5);
          expert[l].push_back(first);
          expert[l].push_back(static_cast<std::uint16_t>((first + 1 + random() % 4) % 5));
          weight[l].push_back(0.5F + uniform() / 2);
          weight[l].push_back(1 - weight[l].back());
          entropy[l].push_back(uniform());
          margin[l].push_back(uniform());
          top[l].push_back(uniform());
          lse[l].push_back(uniform());
        }
      }
    }
  }

  /// Tokens [begin, end), which must not cut a window.
  void observe(LiveAccumulators& live, std::size_t begin, std::size_t end, bool exclude = false) const {
    std::vector<LayerView> views;
    const auto part = [&](const auto& column, std::size_t width = 1) {
      return std::span(column).subspan(begin * width, (end - begin) * width);
    };
    for (std::size_t l = 0; l < expert.size(); ++l)
      views.push_back({part(expert[l], 2), part(weight[l], 2), part(entropy[l]), part(margin[l]), part(top[l]),
                       part(lse[l]), probability_sum[l]});
    live.observe({part(token), part(position), part(group), part(target), part(predicted), part(loss),
                  exclude ? part(included) : std::span<const std::uint8_t>(), views});
  }
  std::size_t window_end(std::size_t from) const {
    std::size_t end = std::min(from + 1, token.size());
    while (end < token.size() && position[end] != 0) ++end;
    return end;
  }
};

/// Everything but moments, which merge up to rounding.
void expect_equal_counts(const Accumulators& a, const Accumulators& b) {
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.windows, b.windows);
  EXPECT_EQ(a.targets, b.targets);
  EXPECT_EQ(a.correct, b.correct);
  EXPECT_EQ(a.slot_count, b.slot_count);
  EXPECT_EQ(a.position_count, b.position_count);
  EXPECT_EQ(a.coactivation, b.coactivation);
  EXPECT_EQ(a.flow, b.flow);
  EXPECT_EQ(a.flow_top1, b.flow_top1);
  EXPECT_EQ(a.repeat_pairs, b.repeat_pairs);
  EXPECT_EQ(a.repeat_top1, b.repeat_top1);
  EXPECT_EQ(a.repeat_any, b.repeat_any);
  EXPECT_EQ(a.entropy_histogram, b.entropy_histogram);
  EXPECT_EQ(a.margin_histogram, b.margin_histogram);
  EXPECT_EQ(a.weight_histogram, b.weight_histogram);
  EXPECT_EQ(a.confident, b.confident);
  EXPECT_EQ(a.token_tables, b.token_tables);
  EXPECT_EQ(a.group_counts, b.group_counts);
  EXPECT_EQ(a.paths.entries().size(), b.paths.entries().size());
}

TEST(DocumentGroups, AreFnv1aFoldedModulo1024) {
  // Low and high halves of the published 64-bit FNV-1a values of "" and "foobar", cbf29ce484222325 and
  // 85944171f73967e8.
  EXPECT_EQ(document_group(""), (0x84222325U ^ 0xcbf29ce4U) % 1024);
  EXPECT_EQ(document_group("foobar"), (0xf73967e8U ^ 0x85944171U) % 1024);
}

TEST(DocumentGroups, NumberedIdsSpreadEvenly) {
  std::vector<std::uint64_t> documents(kDocumentGroups, 0);
  for (int i = 0; i < 100 * kDocumentGroups; ++i) ++documents[document_group("doc-" + std::to_string(i))];
  const auto [least, most] = std::minmax_element(documents.begin(), documents.end());
  EXPECT_GT(*least, 40U);  // Poisson with mean 100: six standard deviations
  EXPECT_LT(*most, 160U);
}

TEST(Accumulators, CountsEqualABruteForce) {
  const Sample sample(400, 1);
  LiveAccumulators live(kShape, kAllTables);
  sample.observe(live, 0, sample.token.size(), true);
  const Accumulators got = live.take(Communicator::self());

  std::uint64_t tokens = 0;
  std::uint64_t pairs = 0;
  std::vector<std::uint64_t> flow(2 * 25, 0);
  std::vector<std::uint64_t> together(3 * 25, 0);
  std::vector<std::uint64_t> repeat(3, 0);
  std::vector<std::uint64_t> by_input(3 * 50 * 5, 0);
  std::vector<std::uint64_t> by_group(3 * kDocumentGroups * 5, 0);
  for (std::size_t t = 0; t < sample.token.size(); ++t) {
    if (sample.included[t] == 0) continue;
    ++tokens;
    const bool pair = t > 0 && sample.position[t] != 0 && sample.included[t - 1] != 0;
    pairs += pair ? 1 : 0;
    for (std::size_t l = 0; l < 3; ++l) {
      const std::uint16_t* e = sample.expert[l].data() + 2 * t;
      for (int i = 0; i < 2; ++i) {
        ++by_input[(l * 50 + sample.token[t]) * 5 + e[i]];
        ++by_group[(l * kDocumentGroups + sample.group[t]) * 5 + e[i]];
        for (int j = 0; j < 2; ++j) {
          ++together[l * 25 + e[i] * 5U + e[j]];
          if (l > 0) ++flow[(l - 1) * 25 + sample.expert[l - 1][2 * t + static_cast<std::size_t>(i)] * 5U + e[j]];
        }
      }
      if (pair && e[0] == e[-2]) ++repeat[l];
    }
  }
  EXPECT_EQ(got.n_tokens(), tokens);
  EXPECT_GT(tokens, 1000U);
  EXPECT_EQ(got.repeat_pairs[0], pairs);
  EXPECT_EQ(got.flow, flow);
  EXPECT_EQ(got.coactivation, together);
  EXPECT_EQ(got.repeat_top1, repeat);
  const auto dense = [](const SparseCounts& table, std::size_t size) {
    std::vector<std::uint64_t> cells(size, 0);
    for (std::size_t i = 0; i < table.cells().size(); ++i) cells.at(table.cells()[i]) = table.counts()[i];
    return cells;
  };
  EXPECT_EQ(dense(got.token_tables[static_cast<std::size_t>(TokenTable::input)], by_input.size()), by_input);
  EXPECT_EQ(dense(got.group_counts, by_group.size()), by_group);
}

TEST(Accumulators, PartsMergeToTheWholeInAnyGrouping) {
  const Sample sample(300, 2);
  LiveAccumulators whole(kShape, kAllTables);
  sample.observe(whole, 0, sample.token.size());
  const Accumulators expected = whole.take(Communicator::self());

  std::vector<Accumulators> parts;
  for (std::size_t begin = 0; begin < sample.token.size();) {
    const std::size_t end = sample.window_end(std::min(begin + 90, sample.token.size() - 1));
    LiveAccumulators live(kShape, kAllTables);
    sample.observe(live, begin, end);
    parts.push_back(live.take(Communicator::self()));
    begin = end;
  }
  ASSERT_GT(parts.size(), 5U);
  Accumulators left(kShape);
  for (const Accumulators& part : parts) left.merge(part);
  Accumulators right(kShape);
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
    Accumulators sum = *part;
    sum.merge(right);
    right = std::move(sum);
  }
  expect_equal_counts(left, expected);
  expect_equal_counts(right, expected);
  for (std::size_t l = 0; l < 3; ++l)
    for (const Accumulators* a : {&left, &right}) {
      EXPECT_EQ(a->entropy[l].n, expected.entropy[l].n);
      EXPECT_NEAR(a->entropy[l].mean, expected.entropy[l].mean, 1e-12);
      EXPECT_NEAR(a->entropy[l].m2, expected.entropy[l].m2, 1e-9);
      EXPECT_EQ(a->entropy[l].min, expected.entropy[l].min);
      EXPECT_EQ(a->entropy[l].max, expected.entropy[l].max);
    }
}

TEST(Accumulators, AbsorbEqualsMerge) {
  const Sample sample(60, 3);
  const std::size_t middle = sample.window_end(sample.token.size() / 2);
  LiveAccumulators whole(kShape, kAllTables);
  sample.observe(whole, 0, sample.token.size());
  LiveAccumulators segment(kShape, kAllTables);
  LiveAccumulators block(kShape, kAllTables);
  sample.observe(block, 0, middle);
  segment.absorb(block);
  sample.observe(block, middle, sample.token.size());
  segment.absorb(block);
  sample.observe(block, 0, middle);
  block.clear();
  segment.absorb(block);
  expect_equal_counts(segment.take(Communicator::self()), whole.take(Communicator::self()));
}

TEST(Accumulators, TablesRoundTrip) {
  std::vector<Accumulators> datasets;
  for (std::uint64_t seed : {4, 5, 6}) {
    const Sample sample(seed == 5 ? 0 : 80, seed);  // one of them is empty
    LiveAccumulators live(kShape, {{true, false, true}});
    sample.observe(live, 0, sample.token.size());
    live.add_documents(seed);
    datasets.push_back(live.take(Communicator::self()));
  }
  const auto tables = to_tables({&datasets[0], &datasets[1], &datasets[2]}, "/accumulators");
  for (const Table& table : tables)
    EXPECT_EQ(std::visit([](const auto& values) { return values.size(); }, table.values), table.size()) << table.path;
  const std::vector<Accumulators> again = from_tables(tables, "/accumulators", kShape);
  ASSERT_EQ(again.size(), 3U);
  for (std::size_t d = 0; d < 3; ++d) {
    expect_equal_counts(again[d], datasets[d]);
    EXPECT_EQ(again[d].documents, datasets[d].documents);
    EXPECT_EQ(again[d].weight_sum, datasets[d].weight_sum);
    EXPECT_EQ(again[d].loss[0].n, datasets[d].loss[0].n);
    if (datasets[d].loss[0].n == 0)
      EXPECT_TRUE(std::isnan(again[d].loss[0].mean));
    else
      EXPECT_EQ(again[d].loss[0].mean, datasets[d].loss[0].mean);
  }
}

/// A change of phase begins a window, and pairs across it do not count; all else adds up to the whole.
TEST(Accumulators, PhasesAreApart) {
  const Sample sample(300, 5);
  const std::size_t n = sample.token.size();
  std::vector<std::uint8_t> decode;  // of every window, all but its first three tokens
  for (const std::uint32_t position : sample.position) decode.push_back(position < 3 ? 0 : 1);
  std::vector<std::uint8_t> prefill;
  for (const std::uint8_t flag : decode) prefill.push_back(flag == 0 ? 1 : 0);
  LiveAccumulators whole(kShape, kAllTables);
  sample.observe(whole, 0, n);
  const Accumulators all = whole.take(Communicator::self());
  std::vector<PhaseSums> phases;
  for (const auto& [phase, flags] : {std::pair(TokenPhase::prefill, &prefill), {TokenPhase::decode, &decode}}) {
    LiveAccumulators live(kShape, kAllTables);
    std::vector<LayerView> views;
    for (std::size_t l = 0; l < sample.expert.size(); ++l) views.push_back({sample.expert[l], {}, {}, {}, {}, {}, {}});
    live.observe({sample.token, sample.position, sample.group, sample.target, {}, {}, {}, views, *flags});
    phases.push_back({phase, live.take(Communicator::self())});
  }

  std::uint64_t crossings = 0;
  std::uint64_t decode_pairs = 0;
  for (std::size_t t = 0; t < n; ++t) {
    crossings += sample.position[t] == 3 ? 1 : 0;
    decode_pairs += sample.position[t] > 3 ? 1 : 0;
  }
  const Accumulators& first = phases[0].sums;
  const Accumulators& second = phases[1].sums;
  EXPECT_GT(crossings, 100U);
  EXPECT_EQ(first.windows[0], all.windows[0]);
  EXPECT_EQ(second.windows[0], crossings);
  EXPECT_EQ(second.repeat_pairs[0], decode_pairs);
  EXPECT_EQ(first.repeat_pairs[0] + second.repeat_pairs[0] + crossings, all.repeat_pairs[0]);
  Accumulators sum = first;
  sum.merge(second);
  EXPECT_EQ(sum.tokens, all.tokens);
  EXPECT_EQ(sum.slot_count, all.slot_count);
  EXPECT_EQ(sum.coactivation, all.coactivation);
  EXPECT_EQ(sum.flow, all.flow);
  EXPECT_EQ(sum.position_count, all.position_count);
  EXPECT_EQ(sum.group_counts, all.group_counts);
  EXPECT_EQ(sum.token_tables[0], all.token_tables[0]);

  // As a segment keeps them.
  const std::vector<PhaseSums> again = from_phase_tables(phase_tables(phases), kShape);
  ASSERT_EQ(again.size(), 2U);
  EXPECT_EQ(again[1].phase, TokenPhase::decode);
  expect_equal_counts(again[1].sums, second);
  const std::vector<PhaseSums> before = from_phase_tables(to_tables({&first}, "/accumulators"), kShape);
  ASSERT_EQ(before.size(), 1U);
  EXPECT_EQ(before[0].phase, TokenPhase::prefill);
}

TEST(Accumulators, WhatIsNotKnownIsNoZero) {
  const Sample sample(50, 6);
  LiveAccumulators live(kShape, kAllTables);
  std::vector<LayerView> views;
  for (std::size_t l = 0; l < sample.expert.size(); ++l) views.push_back({sample.expert[l], {}, {}, {}, {}, {}, {}});
  const std::vector<std::int64_t> no_target(sample.token.size(), -1);
  live.observe({{}, sample.position, sample.group, no_target, {}, {}, {}, views});
  Accumulators got = live.take(Communicator::self());
  got.merge(Accumulators(kShape));
  EXPECT_EQ(got.n_tokens(), sample.token.size());
  for (const auto* sums : {&got.weight_sum, &got.probability_sum, &got.z_sum})
    for (const double sum : *sums) EXPECT_TRUE(std::isnan(sum));
  for (const auto* moments : {&got.entropy, &got.margin, &got.top_probability, &got.loss})
    for (const Moments& of_layer : *moments) {
      EXPECT_EQ(of_layer.n, 0U);
      EXPECT_TRUE(std::isnan(of_layer.mean));
    }
  for (const auto* histogram : {&got.entropy_histogram, &got.weight_histogram})
    for (const std::uint64_t tokens : *histogram) EXPECT_EQ(tokens, 0U);
  for (const SparseCounts& table : got.token_tables) EXPECT_TRUE(table.cells().empty());
}

TEST(Accumulators, MissingTableIsNamed) {
  const Accumulators one(kShape);
  auto tables = to_tables({&one}, "/accumulators");
  std::erase_if(tables, [](const Table& table) { return table.path == "/accumulators/flow/count"; });
  try {
    from_tables(tables, "/accumulators", kShape);
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("/accumulators/flow/count"), std::string::npos) << error.what();
  }
}

TEST(Accumulators, AnExpertBeyondTheModelsIsRefused) {
  const Sample sample(20, 8);
  LiveAccumulators live(kShape, kAllTables);
  sample.observe(live, 0, sample.token.size());
  const Accumulators one = live.take(Communicator::self());
  auto tables = to_tables({&one}, "/accumulators");
  for (Table& table : tables)
    if (table.path == "/accumulators/groups/index") std::get<std::vector<std::uint16_t>>(table.values).at(0) = 5;
  EXPECT_THROW(from_tables(tables, "/accumulators", kShape), Error);
}

TEST(Accumulators, OtherShapesDoNotMerge) {
  Accumulators a(kShape);
  EXPECT_THROW(a.merge(Accumulators({3, 6, 2, 50})), Error);
}

/// The rest of `bounded` equals `exact`; its token tables keep at most `capacity` cells of a layer, within their
/// bounds.
void expect_within_bounds(const Accumulators& bounded, Accumulators exact, std::uint64_t capacity) {
  std::uint64_t compared = 0;
  for (std::size_t which = 0; which < kTokenTables; ++which) {
    const TableBound& bound = bounded.token_bounds[which];
    EXPECT_EQ(bound.capacity, capacity);
    const SparseCounts& all = exact.token_tables[which];
    for (std::size_t l = 0; l < 3; ++l) {
      const SparseCounts kept = bounded.token_tables[which].between(l * 250, (l + 1) * 250);
      EXPECT_LE(kept.cells().size(), capacity);
      EXPECT_GT(bound.undercount[l], 0U);
      std::uint64_t slots = 0;
      for (std::size_t i = 0; i < all.cells().size(); ++i) {
        if (all.cells()[i] / 250 != l) continue;
        const SparseCounts cell = kept.between(all.cells()[i], all.cells()[i] + 1);
        const std::uint64_t count = cell.counts().empty() ? 0 : cell.counts()[0];
        EXPECT_LE(count, all.counts()[i]);
        EXPECT_LE(all.counts()[i], count + bound.undercount[l]);
        slots += all.counts()[i];
        ++compared;
      }
      EXPECT_LE(bound.undercount[l], slots / (capacity + 1));
    }
  }
  EXPECT_GT(compared, 2000U);
  exact.token_tables = bounded.token_tables;
  expect_equal_counts(bounded, exact);
}

TEST(Accumulators, LargeTokenTablesKeepTheirBoundHoweverTheyMerge) {
  constexpr TokenTableChoice kBounded{{true, true, true}, 40};
  const Sample sample(600, 9);
  LiveAccumulators whole(kShape, kAllTables);
  sample.observe(whole, 0, sample.token.size());
  const Accumulators exact = whole.take(Communicator::self());

  LiveAccumulators segment(kShape, kBounded);
  LiveAccumulators block(kShape, kBounded);
  Accumulators left(kShape);
  Accumulators right(kShape);
  std::size_t parts = 0;
  for (std::size_t begin = 0; begin < sample.token.size(); ++parts) {
    const std::size_t end = sample.window_end(std::min(begin + 200, sample.token.size() - 1));
    sample.observe(block, begin, end);
    if (parts % 2 == 0) segment.absorb(block);
    if (parts % 4 == 2) {
      Accumulators taken = segment.take(Communicator::self());
      left.merge(taken);
      taken.merge(right);
      right = std::move(taken);
    }
    begin = end;
  }
  segment.absorb(block);
  Accumulators taken = segment.take(Communicator::self());
  left.merge(taken);
  taken.merge(right);
  EXPECT_GT(parts, 10U);
  expect_within_bounds(left, exact, 40);
  expect_within_bounds(taken, exact, 40);

  const std::vector<Accumulators> again = from_tables(to_tables({&left, &exact}, ""), "", kShape);
  EXPECT_EQ(again[0].token_bounds, left.token_bounds);
  EXPECT_EQ(again[1].token_bounds, exact.token_bounds);
  expect_equal_counts(again[0], left);
}

TEST(Accumulators, AnExactTableAndABoundedOneMergeToABoundedOne) {
  const Sample sample(600, 10);
  const std::size_t middle = sample.window_end(sample.token.size() / 2);
  LiveAccumulators whole(kShape, kAllTables);
  sample.observe(whole, 0, sample.token.size());
  LiveAccumulators first(kShape, kAllTables);
  LiveAccumulators second(kShape, {{true, true, true}, 40});
  sample.observe(first, 0, middle);
  sample.observe(second, middle, sample.token.size());
  Accumulators merged = first.take(Communicator::self());
  merged.merge(second.take(Communicator::self()));
  expect_within_bounds(merged, whole.take(Communicator::self()), 40);
}

TEST(TokenTableChoice, IsExactWithinItsCells) {
  EXPECT_EQ(TokenTableChoice::within(3 * 50 * 5, kShape).capacity, 0U);
  EXPECT_EQ(LiveAccumulators::table_bytes(kShape, kAllTables), 3U * 3 * 50 * 5 * 4);
  // A model of 60 layers, 152,000 tokens and 256 experts.
  const AccumulatorShape large{60, 256, 8, 152000};
  const TokenTableChoice choice = TokenTableChoice::within(kExactTokenCells, large);
  EXPECT_EQ(choice.capacity, 65535U);
  EXPECT_LE(LiveAccumulators::table_bytes(large, choice), 3 * kExactTokenCells * 4);
}

TEST(Accumulators, RanksReduceBoundedTablesWithinTheirBounds) {
  const Communicator comm = Communicator::world();
  const Sample sample(600, 11);
  LiveAccumulators whole(kShape, kAllTables);
  sample.observe(whole, 0, sample.token.size());
  LiveAccumulators mine(kShape, {{true, true, true}, 40});
  std::size_t begin = 0;
  for (int rank = 0; rank < comm.size(); ++rank) {
    const bool last = rank + 1 == comm.size();
    const std::size_t end =
        last ? sample.token.size() : sample.window_end(begin + 300 * static_cast<std::size_t>(rank));
    if (rank == comm.rank()) sample.observe(mine, begin, end);
    begin = end;
  }
  const Accumulators got = mine.take(comm);
  if (comm.rank() == 0) expect_within_bounds(got, whole.take(Communicator::self()), 40);
}

TEST(Accumulators, RanksReduceToTheSameCounts) {
  const Communicator comm = Communicator::world();
  const Sample sample(200, 7);
  LiveAccumulators whole(kShape, kAllTables);
  sample.observe(whole, 0, sample.token.size());
  const Accumulators expected = whole.take(Communicator::self());

  // Ranks take unequal runs of windows; rank 0 of several takes none.
  LiveAccumulators mine(kShape, kAllTables);
  std::size_t begin = 0;
  for (int rank = comm.size() == 1 ? 0 : 1; rank < comm.size(); ++rank) {
    const bool last = rank + 1 == comm.size();
    const std::size_t end =
        last ? sample.token.size() : sample.window_end(begin + 100 * static_cast<std::size_t>(rank));
    if (rank == comm.rank()) sample.observe(mine, begin, end);
    begin = end;
  }
  const Accumulators got = mine.take(comm);
  if (comm.rank() != 0) return;
  expect_equal_counts(got, expected);
  EXPECT_NEAR(got.entropy[1].mean, expected.entropy[1].mean, 1e-12);
  EXPECT_NEAR(got.weight_sum[3], expected.weight_sum[3], 1e-9);
  for (std::size_t i = 0; i < got.paths.entries().size(); ++i)
    EXPECT_EQ(got.paths.entries()[i].count, expected.paths.entries()[i].count);
}

}  // namespace
}  // namespace switchyard
