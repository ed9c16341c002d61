#include "parallel/buffer_pool.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdlib>
#include <vector>

namespace switchyard {
namespace {

std::vector<std::byte*>& freed() {
  static std::vector<std::byte*> all;
  return all;
}

Buffer buffer_of(std::size_t bytes) { return {static_cast<std::byte*>(std::malloc(bytes)), bytes}; }

class BufferPoolTest : public testing::Test {
 protected:
  void SetUp() override { freed().clear(); }
  void TearDown() override {
    pool_.clear();
    for (std::byte* data : freed()) std::free(data);
  }

  BufferPool pool_ = BufferPool(1000, [](std::byte* data) { freed().push_back(data); });
};

TEST_F(BufferPoolTest, GivesTheSmallestThatFitsAndIsHalfUsed) {
  const Buffer small = buffer_of(100);
  const Buffer middle = buffer_of(300);
  const Buffer large = buffer_of(500);
  for (const Buffer buffer : {large, small, middle}) pool_.give(buffer);
  EXPECT_EQ(pool_.take(200).data, middle.data);
  EXPECT_EQ(pool_.take(200).data, nullptr);  // the large one would lie idle by more than a half
  EXPECT_EQ(pool_.take(250).data, large.data);
  EXPECT_EQ(pool_.take(101).data, nullptr);
  EXPECT_EQ(pool_.take(100).data, small.data);
  EXPECT_TRUE(freed().empty());
  for (const Buffer buffer : {small, middle, large}) std::free(buffer.data);
}

TEST_F(BufferPoolTest, FreesTheOldestBeyondItsBound) {
  const Buffer first = buffer_of(400);
  const Buffer second = buffer_of(600);
  const Buffer third = buffer_of(300);
  pool_.give(first);
  pool_.give(second);
  EXPECT_TRUE(freed().empty());
  pool_.give(third);
  EXPECT_EQ(freed(), std::vector<std::byte*>{first.data});
  pool_.clear();
  EXPECT_EQ(freed(), (std::vector<std::byte*>{first.data, second.data, third.data}));
  EXPECT_EQ(pool_.take(300).data, nullptr);
}

}  // namespace
}  // namespace switchyard
