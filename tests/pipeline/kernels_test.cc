// Every operation against a plain reference in double, at odd sizes; and that a row's bits depend on that row alone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <tuple>
#include <vector>

#include "parallel/error.h"
#include "pipeline/kernels/attention.h"
#include "pipeline/kernels/cpu.h"
#include "pipeline/kernels/gated_ffn.h"
#include "pipeline/kernels/leaf_loops.h"
#include "pipeline/kernels/matmul.h"
#include "pipeline/kernels/router.h"
#include "pipeline/kernels/rows.h"
#include "pipeline/kernels/strips.h"
#include "pipeline/kernels/token_loss.h"

namespace switchyard {
namespace {

using Doubles = std::vector<double>;  // row-major

std::size_t at(std::int64_t row, std::int64_t cols, std::int64_t col) {
  return static_cast<std::size_t>(row * cols + col);
}

double element(TensorView m, std::int64_t r, std::int64_t c) {
  return m.dtype() == DType::f32 ? m.row<float>(r)[static_cast<std::size_t>(c)]
                                 : static_cast<float>(m.row<Bf16>(r)[static_cast<std::size_t>(c)]);
}

Tensor random_matrix(DType type, std::int64_t rows, std::int64_t cols, unsigned seed, float scale = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, scale);
  Tensor m(type, rows, cols);
  for (std::int64_t i = 0; i < rows * cols; ++i) {
    if (type == DType::f32) {
      m.data<float>()[i] = normal(random);
    } else {
      m.data<Bf16>()[i] = Bf16(normal(random));
    }
  }
  return m;
}

Tensor copy_of(TensorView m) {
  Tensor copy(m.dtype(), m.rows(), m.cols());
  if (m.rows() > 0) std::memcpy(copy.bytes(), m.bytes(), static_cast<std::size_t>(m.rows() * m.row_bytes()));
  return copy;
}

Doubles product(TensorView in, TensorView weights) {
  Doubles out;
  for (std::int64_t r = 0; r < in.rows(); ++r) {
    for (std::int64_t c = 0; c < weights.rows(); ++c) {
      double sum = 0;
      for (std::int64_t i = 0; i < in.cols(); ++i) sum += element(in, r, i) * element(weights, c, i);
      out.push_back(sum);
    }
  }
  return out;
}

/// Largest difference; infinite when the number of elements differs or one is NaN.
double error(TensorView got, const Doubles& expected) {
  if (got.rows() * got.cols() != static_cast<std::int64_t>(expected.size())) return INFINITY;
  double largest = 0;
  for (std::int64_t r = 0; r < got.rows(); ++r) {
    for (std::int64_t c = 0; c < got.cols(); ++c) {
      const double e = std::abs(element(got, r, c) - expected[at(r, got.cols(), c)]);
      if (std::isnan(e)) return INFINITY;
      largest = std::max(largest, e);
    }
  }
  return largest;
}

bool same_bits(TensorView a, TensorView b) {
  return a.rows() == b.rows() && a.row_bytes() == b.row_bytes() &&
         (a.rows() == 0 || std::memcmp(a.bytes(), b.bytes(), static_cast<std::size_t>(a.rows() * a.row_bytes())) == 0);
}

/// While it lives, kernels run on two threads, whatever the machine has: many rows are then many on all.
class TwoThreads {
 public:
  TwoThreads() : before_(omp_get_max_threads()) { omp_set_num_threads(2); }
  TwoThreads(const TwoThreads&) = delete;
  TwoThreads& operator=(const TwoThreads&) = delete;
  ~TwoThreads() { omp_set_num_threads(before_); }

 private:
  int before_;
};

std::vector<DType> types() { return cpu_has_bf16() ? std::vector{DType::f32, DType::bf16} : std::vector{DType::f32}; }

struct Size {
  std::int64_t rows, in, out;
};
const Size kSizes[] = {{0, 8, 8},       {1, 1, 1},       {1, 192, 512},    {63, 33, 7},    {64, 48, 96},
                       {65, 56, 48},    {130, 256, 192}, {200, 100, 1300}, {70, 1030, 70}, {1, 288, 32},
                       {300, 800, 352}, {300, 992, 32},  {70, 2720, 1088}};

TEST(Matmul, EqualsTheReference) {
  for (const DType type : types()) {
    for (const Size& size : kSizes) {
      const Tensor in = random_matrix(type, size.rows, size.in, 1);
      const Tensor w = random_matrix(type, size.out, size.in, 2);
      const PackedWeights packed(w);
      Doubles expected = product(in, w);
      const double bound = 1e-5 * std::sqrt(static_cast<double>(size.in)) * 4;  // f32 sums, whatever the operands
      const Tensor got = matmul(in, packed);
      EXPECT_LT(error(got, expected), bound) << size.rows << " " << size.in << " " << size.out;
      Tensor x = copy_of(got);
      add_matmul(x, in, packed);
      for (double& e : expected) e *= 2;
      EXPECT_LT(error(x, expected), 3 * bound);
    }
  }
}

TEST(Matmul, ARowsBitsDependOnThatRowAlone) {
  const TwoThreads threads;
  for (const DType type : types()) {
    for (const Size& size :
         {Size{193, 192, 320}, Size{150, 56, 48}, Size{140, 1024, 600}, Size{130, 3584, 128}, Size{2620, 288, 96}}) {
      const Tensor in = random_matrix(type, size.rows, size.in, 3);
      const PackedWeights packed(random_matrix(type, size.out, size.in, 4));
      const Tensor whole = matmul(in, packed);
      const Tensor x = random_matrix(DType::f32, size.rows, size.out, 5);
      Tensor added = copy_of(x);
      add_matmul(added, in, packed);
      int compared = 0;
      for (const std::int64_t begin : {std::int64_t{0}, std::int64_t{1}, std::int64_t{17}, std::int64_t{63},
                                       std::int64_t{64}, std::int64_t{100}, size.rows - 30}) {
        for (const std::int64_t n : {1, 2, 16, 29}) {
          const TensorView rows = in.rows(begin, begin + n);
          EXPECT_TRUE(same_bits(matmul(rows, packed), whole.rows(begin, begin + n)))
              << begin << " " << n << " K " << size.in;
          Tensor part = copy_of(x.rows(begin, begin + n));
          add_matmul(part, rows, packed);
          EXPECT_TRUE(same_bits(part, added.rows(begin, begin + n))) << begin << " " << n << " K " << size.in;
          ++compared;
        }
      }
      EXPECT_EQ(compared, 28);
    }
  }
}

TEST(Strips, BothPackingsEqualTheReferenceAtOddSizes) {
  for (const auto& [m, n, k] : std::vector<std::array<std::int64_t, 3>>{
           {1, 1, 1}, {64, 32, 256}, {65, 33, 257}, {7, 200, 600}, {130, 31, 32}, {11, 64, 513}}) {
    SCOPED_TRACE(testing::Message() << m << " x " << k << " x " << n);
    const Tensor left = random_matrix(DType::f32, m, k, 1);
    const Tensor weights = random_matrix(DType::f32, n, k, 2);
    Tensor right(DType::f32, k, n);
    for (std::int64_t c = 0; c < n; ++c)
      for (std::int64_t i = 0; i < k; ++i) right.data<float>()[i * n + c] = weights.data<float>()[c * k + i];

    const auto floats = static_cast<std::size_t>(strip_floats(n, k));
    std::vector<float> of_columns(floats, NAN);
    std::vector<float> of_rows(floats, NAN);
    pack_strips_of_columns(weights.data<float>(), n, k, of_columns.data());
    pack_strips_of_rows(right.data<float>(), n, k, of_rows.data());
    EXPECT_EQ(of_columns, of_rows);

    Tensor out(DType::f32, m, n);
    multiply_strips(left.data<float>(), of_columns.data(), m, n, k, out.data<float>());
    EXPECT_LT(error(out, product(left, weights)), 1e-6 * static_cast<double>(k) + 1e-6);
  }
}

TEST(Rows, NormEqualsTheReference) {
  for (const std::int64_t d : {1, 5, 48, 192, 1000}) {
    const Tensor x = random_matrix(DType::f32, 7, d, 5, 3);
    const Tensor w = random_matrix(DType::f32, 1, d, 6);
    Doubles expected;
    for (std::int64_t r = 0; r < 7; ++r) {
      double squares = 0;
      for (std::int64_t c = 0; c < d; ++c) squares += std::pow(element(x, r, c), 2);
      const double scale = 1 / std::sqrt(squares / static_cast<double>(d) + 1e-5);
      for (std::int64_t c = 0; c < d; ++c) expected.push_back(element(x, r, c) * scale * element(w, 0, c));
    }
    EXPECT_LT(error(rms_norm(x, w.row<float>(0), 1e-5F, DType::f32), expected), 1e-5);
    EXPECT_LT(error(rms_norm(x, w.row<float>(0), 1e-5F, DType::bf16), expected), 0.05);
  }
  const Tensor empty(DType::f32, 0, 4);
  EXPECT_EQ(rms_norm(empty, std::vector<float>(4), 1e-5F, DType::bf16).rows(), 0);
}

TEST(Rows, GatherScatterEmbed) {
  const Tensor h = random_matrix(DType::f32, 3, 5, 7);
  const std::vector<std::int32_t> slots = {5, 0, 3, 2, 1, 4};  // of 3 tokens, k = 2
  const Tensor packed = gather_slots(h, slots, 2, DType::f32);
  for (std::int64_t i = 0; i < 6; ++i) {
    EXPECT_TRUE(same_bits(packed.rows(i, i + 1),
                          h.rows(slots[static_cast<std::size_t>(i)] / 2, slots[static_cast<std::size_t>(i)] / 2 + 1)));
  }
  const Tensor grouped = gather(copy_of(packed), slots);
  EXPECT_TRUE(same_bits(grouped.rows(0, 1), packed.rows(5, 6)));
  EXPECT_TRUE(same_bits(scatter(copy_of(grouped), slots), packed));
  const std::vector<std::int32_t> identity = {0, 1, 2, 3, 4, 5};
  EXPECT_TRUE(same_bits(gather(copy_of(packed), identity), packed));
  const Tensor table = random_matrix(DType::bf16, 9, 5, 8);
  const Tensor x = embed(table, std::vector<std::uint32_t>{8, 0, 8}, 1);
  EXPECT_EQ(element(x, 0, 3), element(table, 8, 3));
  EXPECT_EQ(element(x, 1, 4), element(table, 0, 4));
  const Tensor scaled = embed(table, std::vector<std::uint32_t>{8, 0, 8}, 3);
  for (std::int64_t c = 0; c < 5; ++c) EXPECT_EQ(element(scaled, 2, c), 3 * element(x, 2, c));
  Tensor sum = copy_of(x);
  add_rows(sum, scaled);
  for (std::int64_t c = 0; c < 5; ++c) EXPECT_NEAR(element(sum, 1, c), 4 * element(x, 1, c), 1e-5);
}

TEST(Rows, WeightedSumIsOverSlots) {
  Tensor x(DType::f32, 2, 1);
  x.data<float>()[0] = 100;
  x.data<float>()[1] = 200;
  Tensor rows(DType::f32, 4, 1);
  for (int i = 0; i < 4; ++i) rows.data<float>()[i] = static_cast<float>(i + 1);
  // Row 0 is token 1's second slot, row 1 token 0's first, ...
  const std::vector<float> weights = {0.5F, 0.25F, 2, 3};
  add_weighted(x, 0, rows, weights, 2, std::vector<std::int32_t>{3, 0, 2, 1});
  EXPECT_EQ(x.data<float>()[0], 100 + (0.5F * 2 + 0.25F * 4));
  EXPECT_EQ(x.data<float>()[1], 200 + (2 * 3 + 3 * 1));
  Tensor none(DType::f32, 0, 1);
  add_weighted(none, 0, Tensor(DType::f32, 0, 1), {}, 2, {});
  // Token 1 alone.
  add_weighted(x, 1, rows.rows(0, 2), weights, 2, std::vector<std::int32_t>{3, 2});
  EXPECT_EQ(x.data<float>()[0], 100 + (0.5F * 2 + 0.25F * 4));
  EXPECT_EQ(x.data<float>()[1], 200 + (2 * 3 + 3 * 1) + (2 * 2 + 3 * 1));
}

TEST(LeafLoops, ExponentialIsWithinItsBound) {
  double largest = 0;
  std::vector<float> x;
  for (float v = -87; v <= 88; v += 0.0037F) x.push_back(v);
  std::vector<float> y(x.size());
  leaf().exp(x.data(), y.data(), static_cast<std::int64_t>(x.size()));
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double exact = std::exp(static_cast<double>(x[i]));
    largest = std::max(largest, std::abs(y[i] - exact) / exact);
  }
  EXPECT_GT(x.size(), 40000U);
  EXPECT_LT(largest, 2e-7);
  const float beyond[] = {-1000, -INFINITY, 1000, NAN};
  float got[4];
  leaf().exp(beyond, got, 4);
  EXPECT_LT(got[0], 2e-38F);
  EXPECT_LT(got[1], 2e-38F);
  EXPECT_GT(got[2], 1e38F);
  EXPECT_TRUE(std::isnan(got[3]));
}

TEST(LeafLoops, IndexOfIsTheLowestOfEqualOnes) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  for (const std::int64_t n : {1, 7, 16, 41}) {
    std::vector<float> x(static_cast<std::size_t>(n), -1);
    EXPECT_EQ(leaf().index_of(x.data(), 2, n), n);
    for (std::int64_t at = n - 1; at >= 0; --at) {  // those behind stay
      x[static_cast<std::size_t>(at)] = 2;
      EXPECT_EQ(leaf().index_of(x.data(), 2, n), at);
    }
    EXPECT_EQ(leaf().index_of(x.data(), kNan, n), n);
  }
}

TEST(LeafLoops, SumOfExpKeepsNan) {
  std::vector<float> x(37, -2);
  EXPECT_NEAR(leaf().sum_of_exp(x.data(), 1, 37), 37 * std::exp(-3.0F), 1e-5);
  x[20] = -std::numeric_limits<float>::infinity();
  EXPECT_NEAR(leaf().sum_of_exp(x.data(), 1, 37), 36 * std::exp(-3.0F), 1e-5);
  x[36] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(leaf().sum_of_exp(x.data(), 1, 37)));
}

TEST(LeafLoops, SoftCapIsWithinItsBound) {
  std::vector<float> x;
  for (float v = -400; v <= 400; v += 0.0173F) x.push_back(v);
  for (float v = 1e-6F; v < 1; v *= 1.01F) x.insert(x.end(), {v, -v});
  std::vector<float> y = x;
  leaf().soft_cap(y.data(), 0.088F, 30, static_cast<std::int64_t>(x.size()));
  double largest = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double exact = 30 * std::tanh(static_cast<double>(x[i]) * static_cast<double>(0.088F) / 30);
    largest = std::max(largest, std::abs(y[i] - exact) / std::abs(exact));
  }
  EXPECT_GT(x.size(), 45000U);
  EXPECT_LT(largest, 5e-7);
  float beyond[] = {-1e30F, -INFINITY, 1e30F, NAN, 0};
  leaf().soft_cap(beyond, 1, 30, 5);
  EXPECT_EQ(beyond[0], -30);
  EXPECT_EQ(beyond[1], -30);
  EXPECT_EQ(beyond[2], 30);
  EXPECT_TRUE(std::isnan(beyond[3]));
  EXPECT_EQ(beyond[4], 0);
}

TEST(LeafLoops, GeluIsWithinItsBound) {
  std::vector<float> x;
  for (float v = -20; v <= 20; v += 0.00137F) x.push_back(v);
  const std::vector<float> up(x.size(), 2);
  std::vector<float> y(x.size());
  std::vector<Bf16> narrow(x.size());
  leaf().f32.gelu_gate(x.data(), up.data(), y.data(), static_cast<std::int64_t>(x.size()));
  leaf().bf16.gelu_gate(x.data(), up.data(), narrow.data(), static_cast<std::int64_t>(x.size()));
  double largest = 0;
  double largest_narrow = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double v = x[i];
    const double exact = v * std::erfc(-v / std::sqrt(2.0));  // twice gelu
    const double unit = std::max(std::abs(v), 1e-3);
    largest = std::max(largest, std::abs(y[i] - exact) / unit);
    largest_narrow = std::max(largest_narrow, std::abs(static_cast<float>(narrow[i]) - exact) / unit);
  }
  EXPECT_GT(x.size(), 29000U);
  EXPECT_LT(largest, 6e-7);
  EXPECT_LT(largest_narrow, 2.0 / 256);
  const float beyond[] = {-1e30F, 1e30F, NAN, 0};
  float got[4];
  leaf().f32.gelu_gate(beyond, up.data(), got, 4);
  EXPECT_NEAR(got[0], 0, 1e-6);
  EXPECT_EQ(got[1], 2e30F);
  EXPECT_TRUE(std::isnan(got[2]));
  EXPECT_EQ(got[3], 0);
}

TEST(LeafLoops, NarrowingRoundsLikeBf16) {
  std::mt19937 random(1);
  std::vector<float> x;
  for (int i = 0; i < 10007; ++i) x.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(random())));
  x.insert(x.end(), {1.00390625F, 1.01171875F, NAN, -NAN, INFINITY, 3.4e38F, 0.0F, -0.0F});
  std::vector<Bf16> y(x.size());
  leaf().bf16.narrow(x.data(), y.data(), static_cast<std::int64_t>(x.size()));
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    // AVX512-BF16 makes numbers below 2^-126 zero, of either sign.
    const bool tiny = std::fabs(x[i]) < 1.17549435e-38F;
    const bool zeroed = tiny && (y[i].bits & 0x7fffU) == 0;
    const bool both_nan = std::isnan(x[i]) && std::isnan(static_cast<float>(y[i]));
    wrong += y[i].bits == Bf16(x[i]).bits || zeroed || both_nan ? 0 : 1;
  }
  EXPECT_EQ(wrong, 0U);
}

TEST(Router, EqualsTheReference) {
  for (const int n_experts : {2, 5, 8, 64}) {
    for (const int k : {1, 2, 4}) {
      if (k > n_experts) continue;
      const Tensor h = random_matrix(DType::f32, 33, 50, 9);
      const Tensor w = random_matrix(DType::f32, n_experts, 50, 10, 0.3F);
      const Doubles logits = product(h, w);
      const bool renormalise = n_experts != 8;
      const Routing got = route(h, w, {.top_k = k, .renormalise = renormalise}, "layer 0");
      EXPECT_LT(error(got.logits, logits), 1e-5);
      for (std::int64_t t = 0; t < 33; ++t) {
        const auto i = static_cast<std::size_t>(t);
        Doubles p(&logits[at(t, n_experts, 0)], &logits[at(t, n_experts, 0)] + n_experts);
        double sum = 0;
        for (double& v : p) sum += v = std::exp(v);
        double entropy = 0;
        for (double& v : p) {
          v /= sum;
          entropy -= v * std::log(v);
        }
        std::vector<int> order(p.size());
        std::iota(order.begin(), order.end(), 0);
        std::ranges::stable_sort(
            order, [&](int a, int b) { return p[static_cast<std::size_t>(a)] > p[static_cast<std::size_t>(b)]; });
        double chosen = renormalise ? 0 : 1;
        for (int j = 0; renormalise && j < k; ++j)
          chosen += p[static_cast<std::size_t>(order[static_cast<std::size_t>(j)])];
        for (int j = 0; j < k; ++j) {
          const auto slot = i * static_cast<std::size_t>(k) + static_cast<std::size_t>(j);
          EXPECT_EQ(got.ids[slot], order[static_cast<std::size_t>(j)]);
          EXPECT_NEAR(got.weights[slot], p[static_cast<std::size_t>(got.ids[slot])] / chosen, 1e-5);
        }
        const double next = k < n_experts ? p[static_cast<std::size_t>(order[static_cast<std::size_t>(k)])] : 0;
        const double last = p[static_cast<std::size_t>(order[static_cast<std::size_t>(k - 1)])];
        EXPECT_NEAR(got.figure(RoutingFigure::margin)[i], k < n_experts ? last - next : 0, 1e-5);
        EXPECT_NEAR(got.figure(RoutingFigure::entropy)[i], entropy, 1e-5);
        EXPECT_NEAR(got.figure(RoutingFigure::top_probability)[i], p[static_cast<std::size_t>(order[0])], 1e-5);
        EXPECT_NEAR(got.figure(RoutingFigure::log_sum_exp)[i], std::log(sum), 1e-5);
      }
    }
  }
}

TEST(Router, ZeroLogitsAreUniform) {
  Tensor h(DType::f32, 1, 3);
  Tensor w(DType::f32, 8, 3);
  std::fill_n(h.data<float>(), 3, 0.0F);
  std::fill_n(w.data<float>(), 8 * 3, 1.0F);
  const Routing got = route(h, w, {.top_k = 2}, "layer 0");
  EXPECT_NEAR(got.figure(RoutingFigure::entropy)[0], std::log(8.0), 1e-6);
  EXPECT_NEAR(got.figure(RoutingFigure::log_sum_exp)[0] * got.figure(RoutingFigure::log_sum_exp)[0], 4.3240771,
              1e-5);  // what the z-loss is the mean of
  EXPECT_EQ(got.figure(RoutingFigure::margin)[0], 0);
}

TEST(Router, TiesGoToTheLowerIdAndNaNIsAnError) {
  Tensor h(DType::f32, 2, 1);
  h.data<float>()[0] = 1;
  h.data<float>()[1] = 1;
  Tensor w(DType::f32, 5, 1);
  for (int e = 0; e < 5; ++e) w.data<float>()[e] = e == 3 ? 2.0F : 1.0F;
  const Routing got = route(h, w, {.top_k = 3}, "layer 4");
  EXPECT_THAT(got.ids, ::testing::ElementsAre(3, 0, 1, 3, 0, 1));
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    h.data<float>()[1] = bad;
    try {
      route(h, w, {.top_k = 3}, "layer 4");
      ADD_FAILURE() << "no error for " << bad;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), ::testing::HasSubstr("layer 4, token 1"));
    }
  }
}

/// Attention in double, straight from the definition.
Doubles attention_reference(TensorView qkv, const std::vector<std::int32_t>& offsets, const AttentionShape& shape,
                            double theta) {
  const std::int64_t n = qkv.rows();
  const std::int64_t hd = shape.head_dim;
  const auto rotated = [&](std::int64_t t, std::int64_t position, std::int64_t column, std::int64_t i) {
    const std::int64_t half = hd / 2;
    const double angle =
        static_cast<double>(position) * std::pow(theta, -2.0 * static_cast<double>(i % half) / static_cast<double>(hd));
    const double own = element(qkv, t, column + i);
    const double other = element(qkv, t, column + (i < half ? i + half : i - half));
    return own * std::cos(angle) + (i < half ? -other : other) * std::sin(angle);
  };
  Doubles out(static_cast<std::size_t>(n * shape.n_heads * hd));
  for (std::size_t w = 0; w + 1 < offsets.size(); ++w) {
    for (std::int64_t t = offsets[w]; t < offsets[w + 1]; ++t) {
      for (std::int64_t head = 0; head < shape.n_heads; ++head) {
        const std::int64_t key_column = (shape.n_heads + head / shape.group()) * hd;
        const std::int64_t value_column = key_column + shape.n_kv_heads * hd;
        const std::int64_t oldest = shape.sliding_window > 0 ? t - shape.sliding_window + 1 : 0;
        Doubles p;
        double sum = 0;
        const std::int64_t first = std::max<std::int64_t>(offsets[w], oldest);
        for (std::int64_t s = first; s <= t; ++s) {
          double score = 0;
          for (std::int64_t i = 0; i < hd; ++i) {
            score += rotated(t, t - offsets[w], head * hd, i) * rotated(s, s - offsets[w], key_column, i);
          }
          score *= shape.scale > 0 ? static_cast<double>(shape.scale) : 1 / std::sqrt(static_cast<double>(hd));
          if (shape.softcap > 0) score = shape.softcap * std::tanh(score / shape.softcap);
          p.push_back(std::exp(score));
          sum += p.back();
        }
        for (std::int64_t i = 0; i < hd; ++i) {
          double mixed = 0;
          for (std::int64_t s = first; s <= t; ++s)
            mixed += p[static_cast<std::size_t>(s - first)] / sum * element(qkv, s, value_column + i);
          out[at(t, shape.n_heads * hd, head * hd + i)] = mixed;
        }
      }
    }
  }
  return out;
}

TEST(Attention, EqualsTheReferenceOverUnequalWindows) {
  const std::vector<std::int32_t> offsets = {0, 1, 3, 70, 70 + 64, 70 + 64 + 150};
  for (const DType type : types()) {
    for (const AttentionShape& shape :
         {AttentionShape{4, 2, 12, 0}, AttentionShape{3, 3, 8, 5}, AttentionShape{6, 2, 32, 0},
          AttentionShape{6, 1, 16, 70}, AttentionShape{2, 2, 2, 1}, AttentionShape{4, 2, 12, 0, 0.5F},
          AttentionShape{6, 2, 32, 9, 0.3F, 1.5F}, AttentionShape{4, 1, 8, 0, 0, 2}}) {
      const Tensor qkv = random_matrix(DType::f32, offsets.back(), shape.qkv_columns(), 11);
      RopeTable rope(100, shape.head_dim);
      const Tensor got = attention(split_heads(qkv, offsets, shape, rope, type), offsets, shape);
      EXPECT_LT(error(got, attention_reference(qkv, offsets, shape, 100)), type == DType::f32 ? 1e-5 : 0.04)
          << shape.n_heads << " heads, window " << shape.sliding_window;
      // The third window alone: the same bits, whatever was before and behind it.
      const std::vector<std::int32_t> alone = {0, 67};
      const Tensor one = attention(split_heads(qkv.rows(3, 70), alone, shape, rope, type), alone, shape);
      EXPECT_TRUE(same_bits(one, got.rows(3, 70)));
    }
  }
  RopeTable rope(100, 8);
  const std::vector<std::int32_t> none = {0};
  const AttentionShape shape = {2, 1, 8, 0};
  EXPECT_EQ(attention(split_heads(Tensor(DType::f32, 0, 32), none, shape, rope, DType::f32), none, shape).rows(), 0);
}

TEST(Attention, LongWindowsTakeFewerQueriesAtOnce) {
  const std::vector<std::int32_t> offsets = {0, 1500};
  const AttentionShape shape = {8, 1, 4, 0};
  const Tensor qkv = random_matrix(DType::f32, 1500, shape.qkv_columns(), 12);
  RopeTable rope(10000, 4);
  const Tensor got = attention(split_heads(qkv, offsets, shape, rope, DType::f32), offsets, shape);
  // A causal prefix of a window does not know how long the window is, but for rounding.
  const std::vector<std::int32_t> prefix = {0, 200};
  const Tensor part = attention(split_heads(qkv.rows(0, 200), prefix, shape, rope, DType::f32), prefix, shape);
  const Doubles expected(part.data<float>(), part.data<float>() + part.rows() * part.cols());
  EXPECT_LT(error(got.rows(0, 200), expected), 1e-5);
}

/// activation(x) / x
double gate_factor(double x, Activation activation) {
  return activation == Activation::silu ? 1 / (1 + std::exp(-x)) : std::erfc(-x / std::sqrt(2.0)) / 2;
}

Doubles ffn_reference(TensorView rows, TensorView gate, TensorView up, TensorView down, Activation activation) {
  const Doubles g = product(rows, gate);
  const Doubles u = product(rows, up);
  Doubles out;
  for (std::int64_t r = 0; r < rows.rows(); ++r) {
    for (std::int64_t c = 0; c < down.rows(); ++c) {
      double sum = 0;
      for (std::int64_t i = 0; i < gate.rows(); ++i) {
        const double x = g[at(r, gate.rows(), i)];
        sum += x * gate_factor(x, activation) * u[at(r, gate.rows(), i)] * element(down, c, i);
      }
      out.push_back(sum);
    }
  }
  return out;
}

TEST(GatedFfnTest, ExpertsEqualTheReferenceForUnevenRows) {
  for (const DType type : types()) {
    for (const auto& [d, f, activation] : {std::tuple{48, 56, Activation::silu},
                                           {20, 33, Activation::gelu},
                                           {192, 256, Activation::silu},
                                           {16, 700, Activation::silu},
                                           {288, 352, Activation::silu},
                                           {288, 96, Activation::silu},
                                           {1056, 1120, Activation::gelu},
                                           {48, 56, Activation::gelu}}) {
      const std::vector<std::int32_t> counts = {3, 0, 70, 1, 130};
      std::vector<GatedFfn> experts;
      Doubles expected;
      const Tensor rows = random_matrix(type, 204, d, 13);
      std::int64_t row = 0;
      for (unsigned e = 0; e < 5; ++e) {
        const Tensor gate = random_matrix(type, f, d, 20 + e, 0.2F);
        const Tensor up = random_matrix(type, f, d, 30 + e, 0.2F);
        const Tensor down = random_matrix(type, d, f, 40 + e, 0.2F);
        const Doubles part = ffn_reference(rows.rows(row, row + counts[e]), gate, up, down, activation);
        expected.insert(expected.end(), part.begin(), part.end());
        row += counts[e];
        experts.emplace_back(gate, up, down, activation);
      }
      const double deviation = std::sqrt(std::inner_product(expected.begin(), expected.end(), expected.begin(), 0.0) /
                                         static_cast<double>(expected.size()));
      const double bound = (type == DType::f32 ? 1e-4 : 0.06) * deviation;
      const Tensor got = run_experts(rows, counts, experts);
      EXPECT_LT(error(got, expected), bound) << d << " " << f;
      // One expert's rows alone, and without its first ones.
      const std::vector<std::int32_t> fewer = {0, 0, 60, 0, 0};
      EXPECT_TRUE(same_bits(run_experts(rows.rows(13, 73), fewer, experts), got.rows(13, 73)));
      // The same rows in two runs: 1, 0, 33, 0, 64 and then 2, 0, 37, 1, 66 of each expert.
      const std::vector<std::int32_t> runs = {1, 0, 33, 0, 64, 2, 0, 37, 1, 66};
      std::vector<std::int32_t> order;  // a row of the runs -> its row above
      for (std::size_t run = 0; run < 2; ++run)
        for (std::size_t e = 0, begin = 0; e < 5; begin += static_cast<std::size_t>(counts[e++]))
          for (std::int32_t i = 0; i < runs[run * 5 + e]; ++i)
            order.push_back(static_cast<std::int32_t>(begin) + (run == 0 ? 0 : runs[e]) + i);
      const Tensor in_runs = run_experts(gather(random_matrix(type, 204, d, 13), order), runs, experts);
      EXPECT_TRUE(same_bits(in_runs, gather(run_experts(rows, counts, experts), order)));
      // So many that threads take them in pieces: each expert's rows over and over.
      std::vector<std::int32_t> many(5);
      std::vector<std::int32_t> repeated;
      for (std::size_t e = 0, begin = 0; e < 5; begin += static_cast<std::size_t>(counts[e++])) {
        many[e] = 12 * counts[e];
        for (std::int32_t i = 0; i < many[e]; ++i) repeated.push_back(static_cast<std::int32_t>(begin) + i % counts[e]);
      }
      const TwoThreads threads;
      EXPECT_TRUE(same_bits(run_experts(gather(random_matrix(type, 204, d, 13), repeated), many, experts),
                            gather(run_experts(rows, counts, experts), repeated)));
      Tensor x(DType::f32, 70, d);
      std::fill(x.data<float>(), x.data<float>() + 70 * d, 0.0F);
      add_gated_ffn(x, rows.rows(3, 73), experts[2]);
      EXPECT_LT(error(x, Doubles(expected.begin() + 3 * d, expected.begin() + 73 * d)), bound);
      Doubles state = product(rows.rows(3, 73), random_matrix(type, f, d, 22, 0.2F));
      for (double& g : state) g *= gate_factor(g, activation);
      EXPECT_LT(error(gate_activation(rows.rows(3, 73), experts[2]), state), type == DType::f32 ? 1e-4 : 0.02);
      EXPECT_EQ(run_experts(rows.rows(0, 0), std::vector<std::int32_t>(5), experts).rows(), 0);
    }
  }
}

TEST(TokenLoss, EqualsTheReferenceAndTiesGoToTheLowerId) {
  const TwoThreads threads;
  for (const DType type : types()) {
    for (const auto& [n, vocabulary, d] :
         {std::tuple{1, 3, 24}, {67, 160, 24}, {130, 1500, 24}, {1100, 352, 288}, {2100, 96, 288}}) {
      const Tensor h = random_matrix(type, n, d, 14, d > 24 ? 0.2F : 1.0F);
      Tensor w = random_matrix(type, vocabulary, d, 15);
      // The last token is the first one's twin.
      std::memcpy(w.bytes() + (vocabulary - 1) * w.row_bytes(), w.bytes(), static_cast<std::size_t>(w.row_bytes()));
      std::vector<std::int64_t> targets;
      for (int t = 0; t < n; ++t) targets.push_back(t % 7 == 3 ? -1 : t * 31 % vocabulary);
      const TokenLosses got = token_loss(h, PackedWeights(w), targets);
      const Doubles logits = product(h, w);
      for (int t = 0; t < n; ++t) {
        const auto i = static_cast<std::size_t>(t);
        const double* row = &logits[at(t, vocabulary, 0)];
        double sum = 0;
        for (int v = 0; v < vocabulary; ++v) sum += std::exp(row[v]);
        if (targets[i] < 0) {
          EXPECT_TRUE(std::isnan(got.loss[i]));
        } else {
          EXPECT_NEAR(got.loss[i], std::log(sum) - row[targets[i]], 1e-4);
        }
        EXPECT_LT(got.predicted[i], static_cast<std::uint32_t>(vocabulary - 1));
        EXPECT_NEAR(row[got.predicted[i]], *std::max_element(row, row + vocabulary), 1e-4);
      }
      // The arg-max as the target: as if it were known.
      const std::vector<std::int64_t> known(got.predicted.begin(), got.predicted.end());
      const std::vector<std::int64_t> own(static_cast<std::size_t>(n), kPredictedTarget);
      EXPECT_EQ(token_loss(h, PackedWeights(w), own).loss, token_loss(h, PackedWeights(w), known).loss);
      // A row alone.
      const TokenLosses last = token_loss(h.rows(n - 1, n), PackedWeights(w), std::span(targets).last(1));
      EXPECT_EQ(std::memcmp(&last.loss[0], &got.loss.back(), sizeof(float)), 0);
    }
  }
  EXPECT_TRUE(
      token_loss(Tensor(DType::f32, 0, 24), PackedWeights(random_matrix(DType::f32, 5, 24, 1)), {}).loss.empty());
}

}  // namespace
}  // namespace switchyard
