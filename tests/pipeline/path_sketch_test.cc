#include "pipeline/analysis/path_sketch.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace switchyard {
namespace {

using Path = std::vector<std::uint16_t>;

/// Skewed paths of 3 layers over 16 experts, and their true counts.
std::vector<Path> skewed_paths(std::size_t n, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::geometric_distribution<int> expert(0.35);
  std::vector<Path> paths;
  for (std::size_t i = 0; i < n; ++i) {
    Path path;
    for (int l = 0; l < 3; ++l) path.push_back(static_cast<std::uint16_t>(expert(random) % 16));
    paths.push_back(path);
  }
  return paths;
}

void expect_bounds(const PathSketch& sketch, const std::vector<Path>& seen) {
  std::map<Path, std::uint64_t> truth;
  for (const Path& path : seen) ++truth[path];
  std::map<Path, std::uint64_t> kept;
  for (const auto& entry : sketch.entries()) kept[entry.experts] = entry.count;
  EXPECT_LE(sketch.undercount(), seen.size() / (sketch.capacity() + 1));
  for (const auto& [path, count] : truth) {
    const std::uint64_t estimate = kept.contains(path) ? kept[path] : 0;
    EXPECT_LE(estimate, count);
    EXPECT_LE(count, estimate + sketch.undercount());
  }
}

TEST(PathSketch, ExactWhileItHoldsAllPaths) {
  PathSketch sketch(2, 10);
  sketch.add(Path{1, 2});
  sketch.add(Path{3, 2}, 4);
  sketch.add(Path{1, 2});
  const auto entries = sketch.entries();
  ASSERT_EQ(entries.size(), 2U);
  EXPECT_EQ(entries[0].experts, (Path{3, 2}));
  EXPECT_EQ(entries[0].count, 4U);
  EXPECT_EQ(entries[1].count, 2U);
  EXPECT_EQ(sketch.undercount(), 0U);
}

TEST(PathSketch, KeepsItsBoundWhenPathsOverflow) {
  const std::vector<Path> paths = skewed_paths(50000, 1);
  PathSketch sketch(3, 40);
  for (const Path& path : paths) sketch.add(path);
  sketch.compact();
  EXPECT_LE(sketch.entries().size(), 40U);
  EXPECT_GT(sketch.undercount(), 0U);
  expect_bounds(sketch, paths);
  // The most frequent path of all survives.
  EXPECT_EQ(sketch.entries()[0].experts, (Path{0, 0, 0}));
}

TEST(PathSketch, MergedPartsKeepTheBound) {
  const std::vector<Path> paths = skewed_paths(60000, 2);
  PathSketch whole(3, 50);
  for (std::size_t part = 0; part < 7; ++part) {
    PathSketch sketch(3, 50);
    for (std::size_t i = part; i < paths.size(); i += 7) sketch.add(paths[i]);
    sketch.compact();
    whole.merge(sketch);
  }
  whole.compact();
  EXPECT_GT(whole.undercount(), 0U);
  expect_bounds(whole, paths);
}

TEST(PathSketch, MergingExactPartsIsExact) {
  const std::vector<Path> paths = skewed_paths(5000, 3);
  PathSketch all(3, 10000);
  PathSketch a(3, 10000);
  PathSketch b(3, 10000);
  for (std::size_t i = 0; i < paths.size(); ++i) {
    all.add(paths[i]);
    (i % 3 == 0 ? a : b).add(paths[i]);
  }
  b.merge(a);
  ASSERT_EQ(all.entries().size(), b.entries().size());
  for (std::size_t i = 0; i < all.entries().size(); ++i) {
    EXPECT_EQ(all.entries()[i].experts, b.entries()[i].experts);
    EXPECT_EQ(all.entries()[i].count, b.entries()[i].count);
  }
}

}  // namespace
}  // namespace switchyard
