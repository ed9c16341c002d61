#include "parallel/exchange_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "parallel/error.h"
#include "parallel/slot_places.h"
#include "tests/support/skewed_ids.h"

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::ElementsAreArray;
using testing_support::skewed_ids;
using Ids = std::vector<std::int32_t>;

/// One slot's row, by everything that an order may depend on.
struct Row {
  int source, target, expert, slot;
};

/// The rank that a slot's copy of its expert is on, by the words of CopyRule.
int target_of(int expert, int token, int source, const LayerPlacement& placement, CopyRule rule) {
  const std::vector<std::int32_t> ranks(placement.ranks_of(expert).begin(), placement.ranks_of(expert).end());
  if (rule == CopyRule::local_first && std::ranges::count(ranks, source) == 1) return source;
  return ranks[static_cast<std::size_t>(token + source) % ranks.size()];
}

std::vector<Row> all_rows(const std::vector<Ids>& ids_of_rank, int top_k, const LayerPlacement& placement,
                          CopyRule rule = CopyRule::by_token) {
  std::vector<Row> rows;
  for (int source = 0; source < static_cast<int>(ids_of_rank.size()); ++source) {
    const Ids& ids = ids_of_rank[static_cast<std::size_t>(source)];
    for (int slot = 0; slot < static_cast<int>(ids.size()); ++slot) {
      const int expert = ids[static_cast<std::size_t>(slot)];
      rows.push_back({source, target_of(expert, slot / top_k, source, placement, rule), expert, slot});
    }
  }
  return rows;
}

template <typename Key>
std::vector<Row> sorted(std::vector<Row> rows, Key key) {
  std::sort(rows.begin(), rows.end(), [&](const Row& a, const Row& b) { return key(a) < key(b); });
  return rows;
}

template <typename Keep>
std::vector<Row> only(std::vector<Row> rows, Keep keep) {
  std::erase_if(rows, [&](const Row& row) { return !keep(row); });
  return rows;
}

/// [n_ranks, n_local] counts of what each source sends to each expert of `rank`.
std::vector<std::int32_t> arriving_on(int rank, const std::vector<Row>& rows, const LayerPlacement& placement) {
  std::vector<std::int32_t> counts;
  for (int source = 0; source < placement.n_ranks(); ++source) {
    for (const std::int32_t expert : placement.experts_of(rank)) {
      counts.push_back(static_cast<std::int32_t>(std::count_if(rows.begin(), rows.end(), [&](const Row& r) {
        return r.source == source && r.target == rank && r.expert == expert;
      })));
    }
  }
  return counts;
}

/// [n_physical] counts of rows by the rank that they go to, then expert.
std::vector<std::int32_t> rows_by_place(const std::vector<Row>& rows, const LayerPlacement& placement) {
  std::vector<std::int32_t> counts;
  for (int rank = 0; rank < placement.n_ranks(); ++rank)
    for (const std::int32_t expert : placement.experts_of(rank))
      counts.push_back(static_cast<std::int32_t>(
          std::ranges::count_if(rows, [&](const Row& r) { return r.target == rank && r.expert == expert; })));
  return counts;
}

/// Plays every rank of a world and compares each plan with orders found by sorting. Returns the rows compared.
std::size_t compare_with_sorting(const std::vector<Ids>& ids_of_rank, int top_k, const LayerPlacement& placement,
                                 CopyRule rule = CopyRule::by_token) {
  const std::vector<Row> rows = all_rows(ids_of_rank, top_k, placement, rule);
  std::size_t compared = 0;
  for (int me = 0; me < placement.n_ranks(); ++me) {
    const ExpertIds ids{ids_of_rank[static_cast<std::size_t>(me)], top_k};
    const SlotPlaces places(ids, placement, me);
    const ExchangePlan plan(places.rows(), placement, me, arriving_on(me, rows, placement));
    EXPECT_EQ(plan.rank(), me);
    EXPECT_EQ(plan.n_ranks(), placement.n_ranks());

    const auto packed = sorted(only(rows, [&](const Row& r) { return r.source == me; }),
                               [](const Row& r) { return std::tuple(r.target, r.expert, r.slot); });
    const auto arrived = sorted(only(rows, [&](const Row& r) { return r.target == me; }),
                                [](const Row& r) { return std::tuple(r.source, r.expert, r.slot); });
    const auto grouped = sorted(arrived, [](const Row& r) { return std::tuple(r.expert, r.source, r.slot); });

    EXPECT_EQ(plan.n_send(), static_cast<std::int64_t>(packed.size()));
    EXPECT_EQ(plan.n_receive(), static_cast<std::int64_t>(arrived.size()));
    for (int other = 0; other < placement.n_ranks(); ++other) {
      const auto o = static_cast<std::size_t>(other);
      EXPECT_EQ(plan.send_rows()[o], std::ssize(only(packed, [&](const Row& r) { return r.target == other; })));
      EXPECT_EQ(plan.receive_rows()[o], std::ssize(only(arrived, [&](const Row& r) { return r.source == other; })));
    }
    std::size_t local = 0;
    EXPECT_EQ(plan.rows_per_expert().size(), placement.experts_of(me).size());
    for (const std::int32_t expert : placement.experts_of(me)) {
      EXPECT_EQ(plan.rows_per_expert()[local++],
                std::ssize(only(grouped, [&](const Row& r) { return r.expert == expert; })));
    }
    const std::vector<std::int32_t> pack_order = places.pack_order();
    EXPECT_EQ(std::ssize(pack_order), plan.n_send());
    for (std::size_t i = 0; i < std::min(packed.size(), pack_order.size()); ++i, ++compared) {
      EXPECT_EQ(pack_order[i], packed[i].slot) << "packed row " << i << " of rank " << me;
    }
    EXPECT_THAT(plan.rows_by_place(), ElementsAreArray(rows_by_place(packed, placement)));
    const std::vector<std::int32_t> group_order = plan.group_order();
    EXPECT_EQ(std::ssize(group_order), plan.n_receive());
    EXPECT_EQ(plan.arrives_grouped(), std::ranges::is_sorted(group_order));
    for (std::size_t i = 0; i < std::min(grouped.size(), group_order.size()); ++i, ++compared) {
      const Row& found = arrived.at(static_cast<std::size_t>(group_order[i]));
      EXPECT_EQ(std::tuple(found.source, found.slot), std::tuple(grouped[i].source, grouped[i].slot))
          << "grouped row " << i << " of rank " << me;
    }
  }
  return compared;
}

TEST(ExchangePlanTest, OrdersAreThoseOfSorting) {
  std::size_t compared = 0;
  std::size_t expected = 0;
  for (const int n_ranks : {1, 2, 3, 5}) {
    for (const int n_experts : {5, 8, 37}) {
      for (const int top_k : {1, 2, 4}) {
        std::vector<Ids> ids;
        for (int rank = 0; rank < n_ranks; ++rank) {  // rank 0 brings nothing unless it is alone
          const int n_tokens = n_ranks == 1 ? 23 : 11 * rank;
          ids.push_back(
              skewed_ids(static_cast<std::uint64_t>(100 * n_experts + 10 * top_k + rank), n_tokens, top_k, n_experts));
          expected += 2 * 2 * ids.back().size();  // packed and grouped, two placements
        }
        compared += compare_with_sorting(ids, top_k, ExpertPlacement::contiguous(1, n_experts, n_ranks).layer(0));
        compared += compare_with_sorting(ids, top_k, ExpertPlacement::round_robin(1, n_experts, n_ranks).layer(0));
      }
    }
  }
  EXPECT_EQ(compared, expected);
  EXPECT_GT(compared, 10000U);
}

TEST(ExchangePlanTest, CopiesShareAnExpertsSlotsByTheirRule) {
  const std::vector<std::vector<std::int32_t>> ranks = {{0, 1, 2}, {1}, {0, 3}, {2}, {1, 3}};
  std::vector<Ids> ids;
  std::size_t slots = 0;
  for (const int n_tokens : {31, 0, 17, 40}) {
    ids.push_back(skewed_ids(ids.size(), n_tokens, 2, 5));
    slots += ids.back().size();
  }
  for (const CopyRule rule : {CopyRule::by_token, CopyRule::local_first}) {
    const LayerPlacement placement(ranks, 4, rule);
    EXPECT_EQ(compare_with_sorting(ids, 2, placement, rule), 2U * slots);
  }
}

TEST(ExchangePlanTest, CopiesByHand) {
  // Expert 0 on both ranks, 1 on rank 1. Of rank 1's tokens 0, 1, 2 all chose expert 0, and 1 and 2 expert 1.
  const std::vector<std::vector<std::int32_t>> ranks = {{0, 1}, {1}};
  const Ids ids = {0, 0, 1, 0, 1, 0};
  EXPECT_THAT(SlotPlaces({ids, 1}, LayerPlacement(ranks, 2, CopyRule::by_token), 1).rows(),
              ElementsAre(3, 1, 2));  // tokens 1, 3, 5; 0; 2, 4
  EXPECT_THAT(SlotPlaces({ids, 1}, LayerPlacement(ranks, 2, CopyRule::local_first), 1).rows(), ElementsAre(0, 4, 2));
}

TEST(ExchangePlanTest, ARankWithoutExpertsStillSends) {
  const LayerPlacement placement({2, 0, 2, 0, 2}, 4);  // ranks 1 and 3 hold nothing
  std::vector<Ids> ids;
  for (const int n_tokens : {3, 9, 0, 4}) ids.push_back(skewed_ids(ids.size(), n_tokens, 2, 5));
  EXPECT_EQ(compare_with_sorting(ids, 2, placement), 2U * 2U * 16U);
}

TEST(ExchangePlanTest, EveryTokenToOneExpert) {
  const auto placement = ExpertPlacement::contiguous(1, 7, 3).layer(0);
  EXPECT_EQ(compare_with_sorting({Ids(10, 6), Ids(0), Ids(4, 6)}, 1, placement), 2U * 14U);
}

TEST(ExchangePlanTest, ATokenMayNameAnExpertTwice) {
  const auto placement = ExpertPlacement::round_robin(1, 4, 2).layer(0);
  EXPECT_EQ(compare_with_sorting({{3, 3, 1, 1, 3, 0}, {2, 2}}, 2, placement), 2U * 8U);
}

TEST(ExchangePlanTest, NobodyBringsAnything) {
  const auto placement = ExpertPlacement::contiguous(1, 7, 3).layer(0);
  EXPECT_EQ(compare_with_sorting({{}, {}, {}}, 2, placement), 0U);
}

TEST(ExchangePlanTest, ByHand) {
  // Rank 0 holds experts 0 and 2, rank 1 holds 1 and 3. Rank 0 has two tokens of two slots.
  const auto placement = ExpertPlacement::round_robin(1, 4, 2).layer(0);
  const Ids ids = {3, 0, 2, 3};
  const std::vector<std::int32_t> arriving = {1, 1, 2, 1};  // from itself 1 and 1, from rank 1 2 and 1
  const SlotPlaces places({ids, 2}, placement, 0);
  const ExchangePlan plan(places.rows(), placement, 0, arriving);
  EXPECT_THAT(plan.send_rows(), ElementsAre(2, 2));
  EXPECT_THAT(places.pack_order(), ElementsAre(1, 2, 0, 3));
  EXPECT_THAT(plan.receive_rows(), ElementsAre(2, 3));
  EXPECT_THAT(plan.rows_per_expert(), ElementsAre(3, 2));
  EXPECT_THAT(plan.group_order(), ElementsAre(0, 2, 3, 1, 4));
  EXPECT_THAT(places.rows(), ElementsAre(1, 1, 0, 2));
}

TEST(ExchangePlanTest, BadInputIsAnError) {
  const auto placement = ExpertPlacement::contiguous(1, 4, 1).layer(0);
  const auto places_of = [&](Ids ids, int top_k) { SlotPlaces({ids, top_k}, placement, 0); };
  EXPECT_THROW(places_of({4}, 1), Error);
  EXPECT_THROW(places_of({-1}, 1), Error);
  EXPECT_THROW(places_of({0, 1, 2}, 2), Error);
  EXPECT_THROW(places_of({0}, 0), Error);
  const auto plan_of = [&](Ids rows, Ids arriving) { ExchangePlan(rows, placement, 0, arriving); };
  EXPECT_THROW(plan_of({1, 0, 0, 0}, {1, 0, 0}), Error);
  EXPECT_THROW(plan_of({1, 0, 0, 0}, {1, -1, 0, 0}), Error);
  EXPECT_THROW(plan_of({1, 0, 0}, {1, 0, 0, 0}), Error);
  try {
    places_of({0, 1, 2, 9}, 2);
    FAIL() << "expert 9 of 4 was accepted";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("token 1 chose expert 9"));
  }
}

TEST(ExchangePlanTest, MakeExchangesTheCounts) {
  const Communicator comm = Communicator::world();
  const int n_ranks = comm.size();
  const auto placement = ExpertPlacement::contiguous(1, 7, n_ranks).layer(0);
  std::vector<Ids> ids;
  for (int rank = 0; rank < n_ranks; ++rank) {
    ids.push_back(skewed_ids(static_cast<std::uint64_t>(rank), n_ranks == 1 ? 9 : 13 * rank, 3, 7));
  }
  const ExpertIds mine{ids[static_cast<std::size_t>(comm.rank())], 3};
  const SlotPlaces places(mine, placement, comm.rank());
  const ExchangePlan made = ExchangePlan::make(places.rows(), placement, comm);
  const ExchangePlan known(places.rows(), placement, comm.rank(),
                           arriving_on(comm.rank(), all_rows(ids, 3, placement), placement));
  EXPECT_THAT(made.send_rows(), ElementsAreArray(known.send_rows()));
  EXPECT_THAT(made.receive_rows(), ElementsAreArray(known.receive_rows()));
  EXPECT_THAT(made.rows_per_expert(), ElementsAreArray(known.rows_per_expert()));
  EXPECT_THAT(made.group_order(), ElementsAreArray(known.group_order()));
  EXPECT_EQ(comm.sum(made.n_receive()), comm.sum(made.n_send()));
  EXPECT_GT(comm.sum(made.n_receive()), 0);
}

/// The place of each slot, in slot order.
std::vector<std::int32_t> places_in_order(const SlotPlaces& places) {
  std::vector<std::pair<std::int32_t, std::int32_t>> slots;  // slot, place
  const std::vector<std::int32_t> order = places.pack_order();
  std::size_t row = 0;
  for (std::size_t place = 0; place < places.rows().size(); ++place)
    for (std::int32_t i = 0; i < places.rows()[place]; ++i)
      slots.emplace_back(order.at(row++), static_cast<std::int32_t>(place));
  std::ranges::sort(slots);
  std::vector<std::int32_t> in_order;
  for (const auto& [slot, place] : slots) in_order.push_back(place);
  return in_order;
}

TEST(ExchangePlanTest, PartsSendEverySlotWhereOnePlanDoes) {
  const Communicator comm = Communicator::world();
  const int n_ranks = comm.size();
  std::vector<std::vector<std::int32_t>> ranks_of_expert(7);  // expert 3 is everywhere, others at one rank
  for (int e = 0; e < 7; ++e)
    for (int rank = 0; rank < n_ranks; ++rank)
      if (e == 3 || rank == e % n_ranks) ranks_of_expert[static_cast<std::size_t>(e)].push_back(rank);
  const LayerPlacement placement(ranks_of_expert, n_ranks, CopyRule::by_token);
  for (const int tokens : {0, 1, 2, 13}) {
    const Ids ids = skewed_ids(static_cast<std::uint64_t>(comm.rank()), tokens + comm.rank(), 3, 7);
    const ExpertIds mine{ids, 3};
    const SlotPlaces places(mine, placement, comm.rank());
    const ExchangePlan whole = ExchangePlan::make(places.rows(), placement, comm);
    for (const int n_parts : {1, 2, 3}) {
      Ids rows;
      std::vector<std::int32_t> place_of;
      std::int64_t n_tokens = 0;
      for (int part = 0; part < n_parts; ++part) {
        const auto range = tokens_of_part(mine.n_tokens(), part, n_parts);
        EXPECT_EQ(range.first, n_tokens);
        n_tokens = range.second;
        const SlotPlaces of_part(mine, range, placement, comm.rank());
        rows.insert(rows.end(), of_part.rows().begin(), of_part.rows().end());
        for (const std::int32_t place : places_in_order(of_part)) place_of.push_back(place);
      }
      EXPECT_EQ(n_tokens, mine.n_tokens());
      EXPECT_EQ(place_of, places_in_order(places));

      const std::vector<ExchangePlan> parts = ExchangePlan::make_parts(rows, n_parts, placement, comm);
      ASSERT_EQ(parts.size(), static_cast<std::size_t>(n_parts));
      std::vector<std::int32_t> arriving(whole.arriving().size(), 0);
      std::int64_t n_send = 0;
      for (const ExchangePlan& part : parts) {
        EXPECT_EQ(part.n_send() % 3, 0);
        n_send += part.n_send();
        for (std::size_t i = 0; i < arriving.size(); ++i) arriving[i] += part.arriving()[i];
      }
      EXPECT_EQ(n_send, whole.n_send());
      EXPECT_THAT(whole.arriving(), ElementsAreArray(arriving));
    }
  }
}

TEST(ExchangePlanTest, AnotherWorldsPlacementIsAnError) {
  const Communicator comm = Communicator::world();
  const auto placement = ExpertPlacement::contiguous(1, 9, comm.size() + 1).layer(0);
  EXPECT_THROW(ExchangePlan::make(std::vector<std::int32_t>(9), placement, comm), Error);
}

}  // namespace
}  // namespace switchyard
