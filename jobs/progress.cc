#include "jobs/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <utility>

#include "jobs/format.h"

namespace switchyard {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

constexpr double kBytesPerToken = 3.5;  // of English text; only to weigh corpora against each other
constexpr int kBarCells = 24;

}  // namespace

ProgressBar::ProgressBar(std::vector<CorpusExtent> corpora, bool quiet)
    : corpora_(std::move(corpora)),
      quiet_(quiet),
      terminal_(::isatty(STDERR_FILENO) == 1),
      start_(Clock::now()),
      shown_(start_) {
  double total = 0;
  for (const CorpusExtent& corpus : corpora_) {
    std::vector<std::uint64_t>& begin = file_begin_.emplace_back(1, 0);
    for (const CorpusFile& file : *corpus.files) begin.push_back(begin.back() + file.bytes);
    auto bytes = static_cast<double>(begin.back());
    if (corpus.max_tokens > 0) bytes = std::min(bytes, static_cast<double>(corpus.max_tokens) * kBytesPerToken);
    weight_.push_back(std::max(bytes, 1.0));
    total += weight_.back();
  }
  for (double& w : weight_) w /= total;
}

double ProgressBar::fraction(const RouteProgress& progress) const {
  const CorpusExtent& corpus = corpora_[progress.corpus];
  double here = 1;
  const std::vector<std::uint64_t>& begin = file_begin_[progress.corpus];
  if (progress.cursor && progress.cursor->file + 1 < begin.size()) {
    const std::uint64_t done =
        std::min(begin[progress.cursor->file] + progress.cursor->offset, begin[progress.cursor->file + 1]);
    here = static_cast<double>(done) / static_cast<double>(std::max<std::uint64_t>(begin.back(), 1));
  }
  if (corpus.max_tokens > 0)
    here = std::max(here, static_cast<double>(progress.corpus_tokens) / static_cast<double>(corpus.max_tokens));
  double before = 0;
  for (std::uint64_t c = 0; c < progress.corpus; ++c) before += weight_[c];
  return std::min(1.0, before + here * weight_[progress.corpus]);
}

void ProgressBar::update(const RouteProgress& progress) {
  if (quiet_) return;
  const auto now = Clock::now();
  const double elapsed = seconds_between(start_, now);
  const double done = fraction(progress);
  if (first_fraction_ < 0)
    first_fraction_ = done;  // of a continued run: what earlier sessions did says nothing of this one's speed
  if (seconds_between(shown_, now) < (terminal_ ? 0.25 : 60.0)) return;
  shown_ = now;
  const double share = done - first_fraction_;
  const double eta = share > 0 ? elapsed * (1 - done) / share : std::numeric_limits<double>::quiet_NaN();
  const double rate = static_cast<double>(progress.session_tokens) / elapsed;
  std::string bar(static_cast<std::size_t>(done * kBarCells), '#');
  bar.resize(kBarCells, '.');
  std::fprintf(stderr, "%s%s [%s] %3.0f %%  %s tokens  %s tokens/s  ETA %s", terminal_ ? "\r\033[K" : "",
               corpora_[progress.corpus].name.c_str(), bar.c_str(), done * 100,
               with_commas(progress.session_tokens).c_str(), with_commas(static_cast<std::uint64_t>(rate)).c_str(),
               as_duration(eta).c_str());
  if (!std::isnan(progress.imbalance)) std::fprintf(stderr, "  imbalance %.2f", progress.imbalance);
  if (!terminal_) std::fprintf(stderr, "\n");
  std::fflush(stderr);
}

void ProgressBar::finish() {
  if (!quiet_ && terminal_) std::fprintf(stderr, "\r\033[K");
}

CopyProgress::CopyProgress(std::string what, bool quiet)
    : what_(std::move(what)),
      quiet_(quiet),
      terminal_(::isatty(STDERR_FILENO) == 1),
      start_(Clock::now()),
      shown_(start_) {}

void CopyProgress::update(std::uint64_t copied, std::uint64_t all) {
  const auto now = Clock::now();
  if (quiet_ || seconds_between(shown_, now) < (terminal_ ? 0.25 : 10.0)) return;
  shown_ = now;
  const double rate = static_cast<double>(copied) / seconds_between(start_, now);
  const double left = std::max(0.0, static_cast<double>(all) - static_cast<double>(copied));
  const double eta = copied > 0 ? left / rate : std::numeric_limits<double>::quiet_NaN();
  std::fprintf(stderr, "%s%s: %s of %s  %s/s  ETA %s%s", terminal_ ? "\r\033[K" : "", what_.c_str(),
               as_bytes_text(static_cast<double>(copied)).c_str(), as_bytes_text(static_cast<double>(all)).c_str(),
               as_bytes_text(rate).c_str(), as_duration(eta).c_str(), terminal_ ? "" : "\n");
  std::fflush(stderr);
}

void CopyProgress::finish() const {
  if (!quiet_ && terminal_) std::fprintf(stderr, "\r\033[K");
}

}  // namespace switchyard
