#include "pipeline/route_loop.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "parallel/error.h"
#include "parallel/stop_signal.h"
#include "pipeline/analysis/token_phase.h"
#include "pipeline/batching.h"
#include "pipeline/document_tables.h"
#include "pipeline/source_position.h"

namespace switchyard {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// A finished block that waits for its segment's commit, without its tokens.
struct FinishedBlock {
  std::uint64_t corpus = 0;
  std::uint64_t first_row = 0;
  std::uint64_t n_rows = 0;
  std::uint64_t my_first_row = 0;  // of the run
  std::uint64_t windows = 0;
  std::vector<DocumentRow> documents;
  SourcePosition after;
  std::uint64_t skipped = 0;
  std::vector<std::string> skipped_places;
};

/// Where the ranks were, a row for each block: a continued run may be on other nodes.
std::vector<Table> node_tables(const NodeMap& nodes, std::uint64_t n_blocks) {
  std::vector<std::uint32_t> node_of_rank;
  std::vector<std::string> names;
  for (std::uint64_t block = 0; block < n_blocks; ++block) {
    node_of_rank.insert(node_of_rank.end(), nodes.node_of_rank.begin(), nodes.node_of_rank.end());
    names.insert(names.end(), nodes.names.begin(), nodes.names.end());
  }
  return {{"/dispatch/rank_node",
           {"block", "rank"},
           {n_blocks, nodes.node_of_rank.size()},
           std::move(node_of_rank),
           "1",
           "node of each rank, a column of node_name"},
          {"/dispatch/node_name",
           {"block", "node"},
           {n_blocks, nodes.names.size()},
           std::move(names),
           "1",
           "host name of each node"}};
}

/// One run of route_blocks: what its steps share.
class RouteLoop {
 public:
  RouteLoop(Model& model, Recorder& recorder, const RouteOptions& options,
            const std::function<void(const RouteProgress&)>& on_step, const Communicator& comm)
      : model_(model),
        recorder_(recorder),
        options_(options),
        generator_(model, recorder, options.generation, comm),
        rebalancer_(model, options.rebalance, options.nodes, comm),
        generated_(options.generated),
        next_segment_(options.next_segment),
        categories_(options.categories),
        on_step_(on_step),
        comm_(comm) {}

  /// False when a stop signal ended the block early.
  bool route_block(Block block);
  void commit();
  bool commit_is_due() const;
  /// Between a commit and the next block.
  void rebalance_if_due();

  RouteOutcome outcome;

 private:
  using Answers = std::vector<std::vector<std::uint32_t>>;  // token ids by window

  double joules() const {
    return options_.energy == nullptr ? std::numeric_limits<double>::quiet_NaN() : options_.energy->joules();
  }
  bool generates() const { return options_.generation.tokens > 0; }
  void step(const Block& block, std::size_t first, std::size_t last);
  bool answer(const Block& block, std::size_t first, std::size_t last, double steps_before, std::size_t n_steps,
              Answers& answers);
  std::uint64_t add_answers(Block& block, const Answers& mine, std::size_t my_window, std::uint64_t& my_offset);
  void add_seconds(const PhaseSeconds& seconds);
  double share_done(const FinishedBlock& block) const;
  void report(const Block& block, double share_done, std::uint64_t generated) const;

  Model& model_;
  Recorder& recorder_;
  const RouteOptions& options_;
  Generator generator_;
  Rebalancer rebalancer_;
  std::uint64_t generated_;  // tokens of answers of all blocks done
  std::uint64_t next_segment_;
  Categories categories_;  // rank 0
  const std::function<void(const RouteProgress&)>& on_step_;
  const Communicator& comm_;
  std::vector<FinishedBlock> finished_;
  Clock::time_point last_commit_ = Clock::now();
};

void RouteLoop::step(const Block& block, std::size_t first, std::size_t last) {
  const Batch batch = make_batch(block, first, last);
  const TokenLosses losses = model_.forward(batch, recorder_);
  add_seconds(recorder_.finish_step(batch, make_step_tokens(block, first, last), losses, model_.take_times()));
}

void RouteLoop::add_seconds(const PhaseSeconds& seconds) {
  std::transform(seconds.begin(), seconds.end(), outcome.phases.begin(), outcome.phases.begin(), std::plus<>());
}

/// False when a stop signal came.
bool RouteLoop::answer(const Block& block, std::size_t first, std::size_t last, double steps_before,
                       std::size_t n_steps, Answers& answers) {
  std::uint64_t before = 0;
  for (const auto& one : answers) before += one.size();
  before = static_cast<std::uint64_t>(comm_.sum(static_cast<std::int64_t>(before)));
  auto more = generator_.answer(block, first, last, [&](double share, std::uint64_t generated) {
    if (comm_.rank() == 0) report(block, (steps_before + share) / static_cast<double>(n_steps), before + generated);
  });
  add_seconds(generator_.take_seconds());
  if (!more) return false;
  std::move(more->begin(), more->end(), std::back_inserter(answers));
  return true;
}

/// Adds answers, `mine` from my_window on, to a block's documents. my_offset: rows of the block before this rank's.
/// Returns the block's rows.
std::uint64_t RouteLoop::add_answers(Block& block, const Answers& mine, std::size_t my_window,
                                     std::uint64_t& my_offset) {
  std::vector<std::uint32_t> my_lengths;
  std::vector<std::uint32_t> my_ids;
  for (const std::vector<std::uint32_t>& ids : mine) {
    my_lengths.push_back(static_cast<std::uint32_t>(ids.size()));
    my_ids.insert(my_ids.end(), ids.begin(), ids.end());
  }
  const std::vector<std::uint32_t> lengths = comm_.all_gather_v<std::uint32_t>(my_lengths);  // by window
  const std::vector<std::uint32_t> ids = comm_.gather_v<std::uint32_t>(my_ids);
  std::uint64_t rows = 0;
  std::uint64_t at = 0;
  std::size_t w = 0;
  my_offset = 0;
  for (DocumentRow& document : block.documents) {
    document.first_token = block.first_row + rows;
    if (document.n_tokens > 0) {  // it has a window
      if (w == my_window) my_offset = rows;
      const std::uint64_t length = lengths[w++];
      document.n_tokens += length;
      if (comm_.rank() == 0 && options_.tokenizer != nullptr)
        document.response = options_.tokenizer->decode(std::span(ids).subspan(at, length));
      at += length;
    }
    rows += document.n_tokens;
  }
  if (my_window >= w) my_offset = rows;
  generated_ += at;
  outcome.session_generated += at;
  return rows;
}

bool RouteLoop::route_block(Block block) {
  const std::vector<std::size_t> shares = window_shares(block.windows, comm_.size(), options_.generation.tokens);
  const std::size_t most_windows =
      generates() ? static_cast<std::size_t>(options_.generation.sequences) : block.windows.size() + 1;
  std::size_t n_steps = 0;
  std::vector<std::pair<std::size_t, std::size_t>> mine;
  for (int rank = 0; rank < comm_.size(); ++rank) {
    const auto r = static_cast<std::size_t>(rank);
    auto batches = pack_batches(block.windows, shares[r], shares[r + 1], options_.batch_tokens, most_windows);
    n_steps = std::max(n_steps, batches.size());
    if (rank == comm_.rank()) mine = std::move(batches);
  }
  Answers answers;
  const double joules_before = joules();
  for (std::size_t s = 0; s < n_steps; ++s) {
    const auto [first, last] = s < mine.size() ? mine[s] : std::pair<std::size_t, std::size_t>{0, 0};
    if (!generates())
      step(block, first, last);
    else if (!answer(block, first, last, static_cast<double>(s), n_steps, answers))
      return false;
    const bool last_step = s + 1 == n_steps;
    if (!last_step && comm_.any(stop_signal() != 0)) return false;
    if (!generates() && comm_.rank() == 0) report(block, static_cast<double>(s + 1) / static_cast<double>(n_steps), 0);
  }
  std::array<std::uint64_t, kTokenPhases> n_documents{};
  if (comm_.rank() == 0) n_documents = {block.documents.size(), generates() ? block.windows.size() : 0};
  recorder_.finish_block(block.ordinal, n_documents, joules() - joules_before);
  rebalancer_.count_block();
  const std::size_t my_window = shares[static_cast<std::size_t>(comm_.rank())];
  std::uint64_t offset = my_window < block.windows.size() ? block.windows[my_window].first : block.tokens.size();
  std::uint64_t n_rows = block.tokens.size();
  block.first_row += generated_;
  if (generates()) n_rows = add_answers(block, answers, my_window, offset);
  block.after.generated = generated_;
  outcome.session_tokens += n_rows;
  finished_.push_back({block.corpus, block.first_row, n_rows, block.first_row + offset, block.windows.size(),
                       std::move(block.documents), block.after, block.skipped, std::move(block.skipped_places)});
  return true;
}

void RouteLoop::rebalance_if_due() {
  if (!rebalancer_.due()) return;
  const Rebalanced done = rebalancer_.rebalance();
  RebalanceTotals& totals = outcome.rebalanced;
  ++totals.times;
  totals.moves.experts += done.moves.experts;
  totals.moves.bytes += done.moves.bytes;
  totals.seconds += done.seconds;
  options_.on_rebalance(done);
}

bool RouteLoop::commit_is_due() const {
  if (rebalancer_.due()) return true;  // experts move between segments
  const bool mine = recorder_.row_bytes() >= options_.commit_bytes ||
                    (comm_.rank() == 0 && seconds_since(last_commit_) >= options_.commit_seconds);
  return comm_.any(mine);
}

void RouteLoop::commit() {
  const auto start = Clock::now();
  last_commit_ = start;
  const RecordedBlocks recorded = recorder_.take();
  if (finished_.empty()) return;
  rebalancer_.add(recorded);
  SegmentContents contents;
  const std::uint64_t segment_first = finished_.front().first_row;
  std::uint64_t windows = 0;
  std::uint64_t skipped = 0;
  std::uint64_t documents = 0;
  std::vector<std::string> skipped_places;
  for (std::size_t i = 0; i < finished_.size(); ++i) {
    const FinishedBlock& block = finished_[i];
    contents.n_rows += block.n_rows;
    contents.ranges.push_back({block.my_first_row - segment_first, recorded.rows[i].size()});
    contents.rows.push_back(&recorded.rows[i]);
    windows += block.windows;
    documents += block.documents.size();
    skipped += block.skipped;
    skipped_places.insert(skipped_places.end(), block.skipped_places.begin(), block.skipped_places.end());
  }
  if (comm_.rank() == 0) {
    std::vector<DocumentRow> rows;
    for (FinishedBlock& block : finished_)
      std::move(block.documents.begin(), block.documents.end(), std::back_inserter(rows));
    const AnswerTables answers = !generates()                    ? AnswerTables::none
                                 : options_.tokenizer == nullptr ? AnswerTables::lengths
                                                                 : AnswerTables::text;
    contents.tables = document_tables(finished_.front().corpus, rows, categories_, answers);
    contents.tables.insert(contents.tables.end(), recorded.dispatch.begin(), recorded.dispatch.end());
    for (Table& table : node_tables(options_.nodes, finished_.size())) contents.tables.push_back(std::move(table));
    for (Table& table : phase_tables(recorded.sums)) contents.tables.push_back(std::move(table));
  }
  const SegmentDetails details = {finished_.front().corpus,
                                  finished_.size(),
                                  windows,
                                  documents,
                                  skipped,
                                  std::move(skipped_places),
                                  categories_.take_added(),
                                  finished_.back().after,
                                  comm_.rank() == 0 ? std::optional(share_done(finished_.back())) : std::nullopt};
  commit_segment(options_.out, next_segment_++, options_.model, contents, options_.write, details.to_json(), comm_);
  finished_.clear();
  outcome.commit_seconds += seconds_since(start);
}

double RouteLoop::share_done(const FinishedBlock& block) const {
  const bool ends_corpus = block.after.corpus != block.corpus;
  return options_.share_done(
      {block.corpus, block.after.corpus_tokens, ends_corpus ? std::nullopt : std::optional(block.after.chunk)});
}

void RouteLoop::report(const Block& block, double share_done, std::uint64_t generated) const {
  const auto done = static_cast<std::uint64_t>(share_done * static_cast<double>(block.tokens.size()));
  on_step_({block.corpus, block.corpus_first_token + done,
            block.last_of_corpus ? std::nullopt : std::optional(block.after.chunk),
            outcome.session_tokens + done + generated, recorder_.latest_imbalance()});
}

}  // namespace

SegmentDetails SegmentDetails::parse(const std::string& json_text) {
  const json j = json::parse(json_text);
  SegmentDetails details;
  details.corpus = j.at("corpus");
  details.blocks = j.at("blocks");
  details.windows = j.at("windows");
  details.documents = j.at("documents");
  details.skipped = j.at("skipped");
  details.skipped_places = j.at("skipped_places").get<std::vector<std::string>>();
  details.new_categories = j.at("new_categories").get<std::vector<std::string>>();
  details.next = source_position(j.at("next"));
  if (j.contains("share")) details.share = j.at("share").get<double>();
  return details;
}

std::string SegmentDetails::to_json() const {
  json j = {{"corpus", corpus},
            {"first_block", next.block - blocks},
            {"blocks", blocks},
            {"windows", windows},
            {"documents", documents},
            {"skipped", skipped},
            {"skipped_places", skipped_places},
            {"new_categories", new_categories},
            {"next", as_json(next)}};
  if (share) j["share"] = *share;
  return j.dump();
}

RouteOutcome route_blocks(BlockSource& source, Model& model, Recorder& recorder, const RouteOptions& options,
                          const std::function<void(const RouteProgress&)>& on_step, const Communicator& comm) {
  RouteLoop loop(model, recorder, options, on_step, comm);
  const auto start = Clock::now();
  const auto next_block = [&] {
    const auto asked = Clock::now();
    std::optional<Block> block = source.next();
    loop.outcome.source_seconds += seconds_since(asked);
    return block;
  };
  while (std::optional<Block> block = next_block()) {
    loop.rebalance_if_due();
    const bool last_of_corpus = block->last_of_corpus;
    loop.outcome.stopped = !loop.route_block(std::move(*block)) || comm.any(stop_signal() != 0);
    if (loop.outcome.stopped || last_of_corpus || loop.commit_is_due()) loop.commit();
    if (loop.outcome.stopped) break;
  }
  if (source.stopped()) {
    loop.outcome.stopped = true;
    loop.commit();
  }
  loop.outcome.seconds = seconds_since(start);
  return loop.outcome;
}

}  // namespace switchyard
