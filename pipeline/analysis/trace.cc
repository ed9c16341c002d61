#include "pipeline/analysis/trace.h"

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "io/routing_reader.h"
#include "io/routing_writer.h"
#include "parallel/error.h"
#include "pipeline/analysis/dispatch_values.h"
#include "pipeline/model/step_times.h"

namespace switchyard {
namespace {

using nlohmann::json;

/// A trace that grows event by event.
class Trace {
 public:
  explicit Trace(std::ostream& out) : out_(out) { out_ << R"({"displayTimeUnit":"ms","traceEvents":[)"; }
  /// Times count from here on: the first zero that is given.
  void begin(double zero) {
    if (!zero_) zero_ = zero;
  }
  void process(std::size_t rank, const std::string& name) {
    write({{"ph", "M"}, {"name", "process_name"}, {"pid", rank}, {"args", {{"name", name}}}});
    write({{"ph", "M"}, {"name", "process_sort_index"}, {"pid", rank}, {"args", {{"sort_index", rank}}}});
  }
  /// begin, end: seconds; after begin().
  void complete(std::size_t rank, const std::string& name, double begin, double end, json about) {
    write({{"ph", "X"},
           {"name", name},
           {"pid", rank},
           {"tid", 0},
           {"ts", (begin - *zero_) * 1e6},
           {"dur", (end - begin) * 1e6},
           {"args", std::move(about)}});
  }
  void end() { out_ << "\n]}\n"; }

 private:
  void write(const json& event) {
    out_ << (first_ ? "\n" : ",\n") << event.dump();
    first_ = false;
  }
  std::ostream& out_;
  std::optional<double> zero_;
  bool first_ = true;
};

/// One segment's steps in the trace.
class SegmentTrace {
 public:
  SegmentTrace(const RoutingReader& segment, Trace& trace)
      : dispatch_(segment),
        trace_(trace),
        layers_(segment.model().moe_layers),
        ends_(dispatch_.values<float>("layer_end")),
        begins_(dispatch_.values<double>("step_begin")),
        slots_(dispatch_.values<std::uint32_t>("expert_slots")),
        placement_(dispatch_.values<std::int32_t>("placement")),
        tokens_(dispatch_.values<std::uint32_t>("step_tokens")),
        block_(dispatch_.values<std::uint64_t>("block")),
        n_ranks_(dispatch_.shape("layer_end")[2]),
        n_physical_(dispatch_.shape("expert_slots")[2]) {}

  std::size_t ranks() const { return n_ranks_; }

  /// step: of the segment; number: of the run.
  void write(std::size_t step, std::uint64_t number) {
    const auto first = begins_.begin() + static_cast<std::ptrdiff_t>(step * n_ranks_);
    trace_.begin(*std::min_element(first, first + static_cast<std::ptrdiff_t>(n_ranks_)));
    for (std::size_t r = 0; r < n_ranks_; ++r) {
      const double begin = begins_[step * n_ranks_ + r];
      trace_.complete(r, "step " + std::to_string(number), begin,
                      begin + static_cast<double>(end_of(step, layers_.size() - 1, r, kLayerParts - 1)),
                      {{"step", number}, {"block", block_[step]}, {"tokens", tokens_[step * n_ranks_ + r]}});
      float from = 0;
      for (std::size_t l = 0; l < layers_.size(); ++l) {
        const float to = end_of(step, l, r, kLayerParts - 1);
        trace_.complete(r, "layer " + std::to_string(layers_[l]), begin + static_cast<double>(from),
                        begin + static_cast<double>(to), {{"layer", layers_[l]}});
        write_parts(step, l, r, begin, from);
        from = to;
      }
    }
  }

 private:
  float end_of(std::size_t step, std::size_t layer, std::size_t rank, std::size_t part) const {
    return ends_[((step * layers_.size() + layer) * n_ranks_ + rank) * kLayerParts + part];
  }

  void write_parts(std::size_t step, std::size_t layer, std::size_t rank, double begin, float from) {
    for (std::size_t p = 0; p < kLayerParts; ++p) {
      const float to = end_of(step, layer, rank, p);
      if (to > from)
        trace_.complete(rank, std::string(kLayerPartNames[p]), begin + static_cast<double>(from),
                        begin + static_cast<double>(to),
                        static_cast<Part>(p) == Part::experts ? load_of(step, layer, rank) : json::object());
      from = to;
    }
  }

  json load_of(std::size_t step, std::size_t layer, std::size_t rank) const {
    std::uint64_t slots = 0;
    int experts = 0;
    for (std::size_t p = 0; p < n_physical_; ++p) {
      if (placement_[layer * n_physical_ + p] != static_cast<std::int32_t>(rank)) continue;
      const std::uint32_t here = slots_[(step * layers_.size() + layer) * n_physical_ + p];
      slots += here;
      experts += here > 0 ? 1 : 0;
    }
    return {{"slots", slots}, {"experts", experts}};
  }

  DispatchValues dispatch_;
  Trace& trace_;
  std::vector<int> layers_;
  const std::vector<float>& ends_;
  const std::vector<double>& begins_;
  const std::vector<std::uint32_t>& slots_;
  const std::vector<std::int32_t>& placement_;
  const std::vector<std::uint32_t>& tokens_;
  const std::vector<std::uint64_t>& block_;
  std::size_t n_ranks_, n_physical_;
};

}  // namespace

StepRange parse_step_range(const std::string& text) {
  StepRange range;
  const char* const end = text.data() + text.size();
  auto [at, error] = std::from_chars(text.data(), end, range.first);
  range.last = range.first;
  if (error == std::errc() && at != end && *at == '-') {
    const auto second = std::from_chars(at + 1, end, range.last);
    at = second.ptr;
    error = second.ec;
  }
  if (error != std::errc() || at != end || range.last < range.first)
    throw UsageError("'" + text + "' is no step and no range of steps", "--steps", "give a number, or two as in 3-9");
  return range;
}

std::uint64_t write_trace(std::ostream& out, const std::filesystem::path& run, StepRange steps) {
  Trace trace(out);
  std::size_t named = 0;     // ranks
  std::uint64_t before = 0;  // steps of earlier segments
  std::uint64_t written = 0;
  for (const SegmentEntry& entry : read_manifest(run)) {
    const RoutingReader segment(run / entry.file);
    if (!segment.contains("/dispatch/layer_end"))
      throw Error("tells no times of layers", (run / entry.file).string(),
                  "route a corpus through a mixture-of-experts model with this version, and trace that run");
    const std::uint64_t n_steps = DispatchValues(segment).shape("block")[0];
    if (before + n_steps > steps.first && before <= steps.last) {
      SegmentTrace of_segment(segment, trace);
      for (; named < of_segment.ranks(); ++named) trace.process(named, "rank " + std::to_string(named));
      for (std::uint64_t s = std::max(before, steps.first); s < before + n_steps && s <= steps.last; ++s, ++written)
        of_segment.write(static_cast<std::size_t>(s - before), s);
    }
    before += n_steps;
  }
  trace.end();
  if (written != steps.last - steps.first + 1)
    throw Error("has " + std::to_string(before) + " steps", run.string(),
                before == 0 ? "wait for its first segment" : "name steps from 0 to " + std::to_string(before - 1));
  return written;
}

}  // namespace switchyard
