#include "parallel/communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "parallel/error.h"

namespace switchyard {
namespace {

/// More than one piece of what the communicator sends at once, and not a multiple of it.
constexpr std::size_t kSeveralPieces = (std::size_t{2} << 24U) + 12345;

class CommunicatorTest : public testing::Test {
 protected:
  Communicator comm_ = Communicator::world();
  int rank_ = comm_.rank();
  int size_ = comm_.size();
};

/// Rank r brings r values (so rank 0 none): r * 100 + i.
std::vector<std::int32_t> values_of(int rank) {
  std::vector<std::int32_t> values;
  for (int i = 0; i < rank; ++i) values.push_back(rank * 100 + i);
  return values;
}

std::vector<std::int32_t> values_of_all(int n_ranks) {
  std::vector<std::int32_t> all;
  for (int rank = 0; rank < n_ranks; ++rank) {
    for (const std::int32_t value : values_of(rank)) all.push_back(value);
  }
  return all;
}

char letter(std::uint64_t seed, std::size_t i) { return static_cast<char>('a' + (i * 31 + i / 4099 + seed * 7) % 26); }

std::string letters(std::uint64_t seed, std::size_t length) {
  std::string text(length, ' ');
  for (std::size_t i = 0; i < length; ++i) text[i] = letter(seed, i);
  return text;
}

TEST_F(CommunicatorTest, RanksCountUp) {
  EXPECT_GE(rank_, 0);
  EXPECT_LT(rank_, size_);
  const auto ranks = comm_.all_gather(rank_);
  ASSERT_EQ(ranks.size(), static_cast<std::size_t>(size_));
  for (int r = 0; r < size_; ++r) EXPECT_EQ(ranks[static_cast<std::size_t>(r)], r);
}

TEST_F(CommunicatorTest, RanksOfOneMachineShareANode) {
  const Communicator node = comm_.same_node();
  EXPECT_EQ(node.size(), size_);
  EXPECT_EQ(node.rank(), rank_);
}

TEST_F(CommunicatorTest, GathersStringsOfAnyLength) {
  const std::vector<std::string> all = comm_.all_gather(letters(1, static_cast<std::size_t>(rank_) * 1000));
  ASSERT_EQ(all.size(), static_cast<std::size_t>(size_));
  for (std::size_t r = 0; r < all.size(); ++r) EXPECT_EQ(all[r], letters(1, r * 1000));
}

TEST_F(CommunicatorTest, SelfIsAlone) {
  const Communicator self = Communicator::self();
  EXPECT_EQ(self.size(), 1);
  EXPECT_EQ(self.sum(std::int64_t{rank_ + 1}), rank_ + 1);
}

TEST_F(CommunicatorTest, DuplicateAndMoveKeepTheRanks) {
  Communicator copy = comm_.duplicate();
  Communicator moved = std::move(copy);
  copy = Communicator::self();  // NOLINT(bugprone-use-after-move)
  moved.barrier();
  EXPECT_EQ(moved.rank(), rank_);
  EXPECT_EQ(moved.size(), size_);
  EXPECT_EQ(copy.size(), 1);
}

TEST_F(CommunicatorTest, Reductions) {
  constexpr std::int64_t kPastInt = std::int64_t{1} << 40;
  EXPECT_EQ(comm_.sum(kPastInt + rank_), size_ * kPastInt + size_ * (size_ - 1) / 2);
  EXPECT_EQ(comm_.max(kPastInt - rank_), kPastInt);
  EXPECT_EQ(comm_.min(kPastInt - rank_), kPastInt - (size_ - 1));
  EXPECT_EQ(comm_.sum(0.25 * (rank_ + 1)), 0.25 * size_ * (size_ + 1) / 2);
  EXPECT_EQ(comm_.max(-1.5 * rank_), 0.0);
  EXPECT_FALSE(comm_.any(false));
  EXPECT_TRUE(comm_.any(rank_ == size_ - 1));
}

TEST_F(CommunicatorTest, SumToRoot) {
  const int root = size_ - 1;
  std::vector<std::uint64_t> counts = {std::uint64_t{1} << 50U, static_cast<std::uint64_t>(rank_), 0};
  std::vector<double> sums = {0.5, 1.0 * rank_};
  comm_.sum_to_root(std::span(counts), root);
  comm_.sum_to_root(std::span(sums), root);
  comm_.sum_to_root(std::span<double>(), root);
  if (rank_ != root) return;
  const auto n = static_cast<std::uint64_t>(size_);
  EXPECT_THAT(counts, testing::ElementsAre(n << 50U, n * (n - 1) / 2, 0U));
  EXPECT_THAT(sums, testing::ElementsAre(0.5 * size_, 0.5 * size_ * (size_ - 1)));
}

TEST_F(CommunicatorTest, SumToRootInPieces) {
  std::vector<std::uint64_t> data(kSeveralPieces / 8);
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = i + static_cast<std::uint64_t>(rank_);
  comm_.sum_to_root(std::span(data));
  if (rank_ != 0) return;
  const auto n = static_cast<std::uint64_t>(size_);
  std::size_t right = 0;
  for (std::size_t i = 0; i < data.size(); ++i) right += data[i] == n * i + n * (n - 1) / 2 ? 1 : 0;
  EXPECT_EQ(right, data.size());
}

TEST_F(CommunicatorTest, BroadcastFromAnyRoot) {
  for (int root = 0; root < size_; ++root) {
    const bool mine = rank_ == root;
    EXPECT_EQ(comm_.broadcast(mine ? std::string("from ") + std::to_string(root) : std::string("old"), root),
              "from " + std::to_string(root));
    EXPECT_EQ(comm_.broadcast(mine ? values_of(root) : std::vector<std::int32_t>{7, 7}, root), values_of(root));
  }
  EXPECT_EQ(comm_.broadcast(rank_ == 0 ? std::string() : std::string("old")), "");
}

TEST_F(CommunicatorTest, BroadcastInPieces) {
  const std::string text = comm_.broadcast(rank_ == size_ - 1 ? letters(5, kSeveralPieces) : std::string(), size_ - 1);
  EXPECT_EQ(text.size(), kSeveralPieces);
  EXPECT_TRUE(text == letters(5, kSeveralPieces));
}

TEST_F(CommunicatorTest, GathersOfUnequalLengths) {
  const auto mine = values_of(rank_);
  const std::span<const std::int32_t> view = mine;
  EXPECT_EQ(comm_.all_gather_v(view), values_of_all(size_));
  for (int root = 0; root < size_; ++root) {
    EXPECT_EQ(comm_.gather_v(view, root), rank_ == root ? values_of_all(size_) : std::vector<std::int32_t>());
  }
  EXPECT_TRUE(comm_.all_gather_v(std::span<const double>()).empty());
}

TEST_F(CommunicatorTest, AllGatherOfStructs) {
  struct Pair {
    std::int64_t first;
    char second;
  };
  const auto pairs = comm_.all_gather(Pair{rank_ * 3, static_cast<char>('a' + rank_)});
  ASSERT_EQ(pairs.size(), static_cast<std::size_t>(size_));
  EXPECT_EQ(pairs.back().first, (size_ - 1) * 3);
  EXPECT_EQ(pairs.back().second, 'a' + size_ - 1);
}

TEST_F(CommunicatorTest, GathersInPieces) {
  // Rank 0 alone fills more than a piece; the others' parts lie across later borders.
  const std::size_t length = rank_ == 0 ? kSeveralPieces : kSeveralPieces / 3 + static_cast<std::size_t>(rank_);
  const std::string mine = letters(static_cast<std::uint64_t>(rank_), length);
  const int root = size_ - 1;
  const auto gathered = comm_.gather_v(std::span<const char>(mine), root);
  const auto everywhere = comm_.all_gather_v(std::span<const char>(mine));
  EXPECT_EQ(gathered.empty(), rank_ != root);
  if (rank_ == root) {
    EXPECT_TRUE(gathered == everywhere);
  }
  std::size_t position = 0;
  for (int r = 0; r < size_; ++r) {
    const std::size_t expected = r == 0 ? kSeveralPieces : kSeveralPieces / 3 + static_cast<std::size_t>(r);
    ASSERT_LE(position + expected, everywhere.size());
    std::size_t right = 0;
    for (std::size_t i = 0; i < expected; ++i) {
      right += everywhere[position + i] == letter(static_cast<std::uint64_t>(r), i) ? 1 : 0;
    }
    EXPECT_EQ(right, expected) << "of rank " << r;
    position += expected;
  }
  EXPECT_EQ(position, everywhere.size());
}

TEST_F(CommunicatorTest, AllToAll) {
  const auto n = static_cast<std::size_t>(size_);
  std::vector<std::int32_t> send;
  for (int to = 0; to < size_; ++to) {
    send.push_back(rank_ * 10 + to);
    send.push_back(-to);
  }
  std::vector<std::int32_t> receive(2 * n);
  comm_.all_to_all(send, receive);
  for (int from = 0; from < size_; ++from) {
    EXPECT_EQ(receive[2 * static_cast<std::size_t>(from)], from * 10 + rank_);
    EXPECT_EQ(receive[2 * static_cast<std::size_t>(from) + 1], -rank_);
  }
  std::vector<std::int32_t> short_by_one(2 * n - 1);
  EXPECT_THROW(comm_.all_to_all(send, short_by_one), Error);
}

TEST_F(CommunicatorTest, AllToAllOfUnequalLengths) {
  // Rank s sends s * t values to rank t: nothing from or to rank 0.
  const auto list = [](int from, int to) {
    std::vector<std::int16_t> values;
    for (int i = 0; i < from * to; ++i) values.push_back(static_cast<std::int16_t>(1000 * from + 100 * to + i));
    return values;
  };
  std::vector<std::vector<std::int16_t>> send;
  std::vector<std::vector<std::int16_t>> expected;
  for (int other = 0; other < size_; ++other) {
    send.push_back(list(rank_, other));
    expected.push_back(list(other, rank_));
  }
  EXPECT_EQ(comm_.all_to_all_v(send), expected);
  send.emplace_back();
  EXPECT_THROW(comm_.all_to_all_v(send), Error);
}

TEST_F(CommunicatorTest, AllToAllInPieces) {
  // A ring: each rank sends to the next one only.
  const auto next = static_cast<std::size_t>((rank_ + 1) % size_);
  const auto previous = static_cast<std::size_t>((rank_ + size_ - 1) % size_);
  std::vector<std::vector<char>> send(static_cast<std::size_t>(size_));
  const std::string text = letters(static_cast<std::uint64_t>(rank_), kSeveralPieces);
  send[next].assign(text.begin(), text.end());
  const auto received = comm_.all_to_all_v(send);
  ASSERT_EQ(received.size(), static_cast<std::size_t>(size_));
  for (std::size_t r = 0; r < received.size(); ++r) {
    if (r != previous) {
      EXPECT_TRUE(received[r].empty());
      continue;
    }
    const std::string expected = letters(previous, kSeveralPieces);
    EXPECT_TRUE(std::string(received[r].begin(), received[r].end()) == expected);
  }
}

TEST_F(CommunicatorTest, ExchangesSeveralMessagesOfAPairInTheirOrder) {
  // Two messages to every rank, also to itself: a long one, and a short one, which could overtake it.
  const auto text = [](int from, int to, std::size_t length) {
    return letters(static_cast<std::uint64_t>(10 * from + to), length);
  };
  std::vector<std::string> sent;
  std::vector<std::string> received;
  for (int other = 0; other < size_; ++other)
    for (const std::size_t length : {kSeveralPieces / 4, std::size_t{0}, std::size_t{3}}) {
      sent.push_back(text(rank_, other, length));
      received.emplace_back(length, ' ');
    }
  std::vector<Communicator::Outgoing> out;
  std::vector<Communicator::Incoming> in;
  for (std::size_t m = 0; m < sent.size(); ++m) {
    const int other = static_cast<int>(m / 3);
    out.push_back({other, std::as_bytes(std::span(sent[m]))});
    in.push_back({other, std::as_writable_bytes(std::span(received[m]))});
  }
  comm_.exchange(out, in);
  for (std::size_t m = 0; m < received.size(); ++m)
    EXPECT_TRUE(received[m] == text(static_cast<int>(m / 3), rank_, received[m].size())) << m;
  comm_.exchange({}, {});
}

#ifndef NDEBUG
TEST_F(CommunicatorTest, DebugBuildsFindUnequalArguments) {
  if (size_ == 1) GTEST_SKIP() << "needs two ranks";
  std::vector<double> data(static_cast<std::size_t>(rank_ + 1));
  EXPECT_THROW(comm_.sum_to_root(std::span(data)), Error);
  EXPECT_THROW(comm_.broadcast(std::string(), rank_ == 0 ? 0 : 1), Error);
}
#endif

}  // namespace
}  // namespace switchyard
