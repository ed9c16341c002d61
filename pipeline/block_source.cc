#include "pipeline/block_source.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <utility>

#include "parallel/error.h"
#include "parallel/stop_signal.h"
#include "pipeline/analysis/document_groups.h"

namespace switchyard {
namespace {

/// Text bytes of a chunk for each token of a block: a little below what a token of text takes, so that most chunks make
/// one block.
constexpr std::uint64_t kChunkBytesPerToken = 3;
constexpr std::size_t kChunkDocuments = 1 << 16;
constexpr std::uint64_t kNoLimit = std::numeric_limits<std::uint64_t>::max();

/// Appends and reads plain values and strings: what rank 0 sends of a chunk.
class Packer {
 public:
  template <typename T>
  void put(const T& value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  template <typename Container>
  void put_all(const Container& values) {
    put(static_cast<std::uint64_t>(values.size()));
    bytes_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(*values.data()));
  }
  std::string take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

class Unpacker {
 public:
  explicit Unpacker(const std::string& bytes) : at_(bytes.data()) {}
  template <typename T>
  T get() {
    T value;
    std::memcpy(&value, at_, sizeof value);
    at_ += sizeof value;
    return value;
  }
  template <typename Container>
  Container get_all() {
    Container values;
    values.resize(get<std::uint64_t>());
    const std::size_t bytes = values.size() * sizeof(*values.data());
    if (bytes > 0) std::memcpy(values.data(), at_, bytes);
    at_ += bytes;
    return values;
  }

 private:
  const char* at_;
};

std::uint64_t weight_of(const Document& document) {
  return 1 + (document.has_tokens ? document.tokens.size() * kChunkBytesPerToken : document.text.size());
}

}  // namespace

struct BlockSource::Chunk {
  std::vector<Document> documents;
  std::vector<std::uint16_t> groups;  // document_group of each: only rank 0 knows ids
  CorpusCursor begin, end;
  bool last = false;  // of its corpus
  std::uint64_t skipped = 0;
  std::vector<std::string> skipped_places;

  std::string pack() const {
    Packer packer;
    packer.put(begin);
    packer.put(end);
    packer.put(last);
    packer.put_all(groups);
    packer.put(static_cast<std::uint64_t>(documents.size()));
    for (const Document& document : documents) {
      packer.put(document.has_tokens);
      packer.put(document.truncated);
      packer.put_all(document.text);
      packer.put_all(document.tokens);
    }
    return packer.take();
  }
  static Chunk unpack(const std::string& bytes) {
    Unpacker unpacker(bytes);
    Chunk chunk;
    chunk.begin = unpacker.get<CorpusCursor>();
    chunk.end = unpacker.get<CorpusCursor>();
    chunk.last = unpacker.get<bool>();
    chunk.groups = unpacker.get_all<std::vector<std::uint16_t>>();
    chunk.documents.resize(unpacker.get<std::uint64_t>());
    for (Document& document : chunk.documents) {
      document.has_tokens = unpacker.get<bool>();
      document.truncated = unpacker.get<bool>();
      document.text = unpacker.get_all<std::string>();
      document.tokens = unpacker.get_all<std::vector<std::uint32_t>>();
    }
    return chunk;
  }

  /// Documents [first, second) of each rank: runs about equal in bytes.
  std::pair<std::size_t, std::size_t> share(int rank, int n_ranks) const {
    std::uint64_t total = 0;
    for (const Document& document : documents) total += weight_of(document);
    const auto owner = [&](std::uint64_t before, const Document& document) {
      return static_cast<int>((before + weight_of(document) / 2) * static_cast<std::uint64_t>(n_ranks) /
                              std::max<std::uint64_t>(total, 1));
    };
    std::pair<std::size_t, std::size_t> range = {documents.size(), documents.size()};
    std::uint64_t before = 0;
    for (std::size_t i = 0; i < documents.size(); ++i) {
      const int of = owner(before, documents[i]);
      if (of >= rank) range.first = std::min(range.first, i);
      if (of > rank) range.second = std::min(range.second, i);
      before += weight_of(documents[i]);
    }
    return range;
  }
};

/// Reads chunks of one corpus, with one document in hand to know whether a chunk is the last.
class BlockSource::ChunkReader {
 public:
  ChunkReader(const CorpusSpec& spec, const CorpusFiles& files, const BlockOptions& options, const CorpusCursor& start,
              std::uint64_t documents_done)
      : options_(options), reader_(spec, files, reader_options()), emitted_(documents_done) {
    if (options.sample > 0)
      chosen_ = sample_ordinals(DocumentReader(spec, files, reader_options()), options.sample, options.seed);
    reader_.seek(start);
    advance();
  }

  /// Lets a read() of another thread end soon, whatever it reads: what it returns is not wanted.
  void call_off() { called_off_ = true; }

  std::unique_ptr<Chunk> read() {
    auto whole = std::make_unique<Chunk>();
    Chunk& chunk = *whole;
    chunk.begin = at_;
    const std::uint64_t bytes = kChunkBytesPerToken * static_cast<std::uint64_t>(options_.block_tokens);
    for (std::uint64_t used = 0; held_ && used < bytes && chunk.documents.size() < kChunkDocuments;) {
      used += weight_of(*held_);
      chunk.groups.push_back(document_group(held_->id));
      chunk.documents.push_back(std::move(*held_));
      ++emitted_;
      advance();
    }
    chunk.end = at_;
    chunk.last = !held_;
    chunk.skipped = reader_.skipped() - skipped_reported_;
    skipped_reported_ = reader_.skipped();
    const auto& places = reader_.skipped_places();
    chunk.skipped_places.assign(places.begin() + static_cast<std::ptrdiff_t>(places_reported_), places.end());
    places_reported_ = places.size();
    return whole;
  }

 private:
  /// Reading a line of gigabytes, or choosing a sample, may take minutes: nobody waits for it after a stop signal.
  ReaderOptions reader_options() {
    ReaderOptions options = options_.reader;
    options.called_off = [this] { return called_off_ || stop_signal() != 0; };
    return options;
  }

  void advance() {
    held_.reset();
    if (options_.max_documents > 0 && emitted_ >= options_.max_documents) return;
    do {
      at_ = reader_.cursor();
      held_ = reader_.next();
    } while (held_ && options_.sample > 0 && !std::binary_search(chosen_.begin(), chosen_.end(), held_->ordinal));
  }

  const BlockOptions& options_;
  std::atomic<bool> called_off_ = false;
  DocumentReader reader_;
  std::vector<std::uint64_t> chosen_;  // ordinals, ascending
  std::optional<Document> held_;
  CorpusCursor at_;  // where held_ begins, or the end
  std::uint64_t emitted_;
  std::uint64_t skipped_reported_ = 0;
  std::size_t places_reported_ = 0;
};

BlockSource::BlockSource(std::vector<CorpusSpec> corpora, std::vector<CorpusFiles> files, const Tokenizer* tokenizer,
                         BlockOptions options, const SourcePosition& start, const Communicator& comm)
    : corpora_(std::move(corpora)),
      files_(std::move(files)),
      tokenizer_(tokenizer),
      options_(std::move(options)),
      comm_(comm),
      position_(start) {
  if (position_.corpus >= corpora_.size()) {
    ended_ = true;
    return;
  }
  begin_corpus(position_.corpus, position_.chunk, position_.corpus_documents);
}

// Waits for the threads: their futures come from std::async.
BlockSource::~BlockSource() {
  if (reader_) reader_->call_off();
}

void BlockSource::begin_corpus(std::uint64_t corpus, const CorpusCursor& start, std::uint64_t documents_done) {
  if (comm_.rank() == 0)
    reader_ = std::make_unique<ChunkReader>(corpora_[corpus], files_[corpus], options_, start, documents_done);
  start_reading();
  start_tokenizing();
}

std::uint64_t BlockSource::most_of_document() const {
  return options_.answer_tokens > 0 ? static_cast<std::uint64_t>(options_.context - options_.answer_tokens)
                                    : std::numeric_limits<std::uint32_t>::max();
}

void BlockSource::start_reading() {
  if (comm_.rank() == 0) reading_ = std::async(std::launch::async, [this] { return reader_->read(); });
}

void BlockSource::start_tokenizing() {
  if (comm_.rank() == 0) tokenizing_chunk_ = reading_.get();
  if (comm_.size() > 1) {
    const std::string packed = comm_.broadcast(comm_.rank() == 0 ? tokenizing_chunk_->pack() : std::string());
    if (comm_.rank() != 0) tokenizing_chunk_ = std::make_unique<Chunk>(Chunk::unpack(packed));
  }
  if (!tokenizing_chunk_->last) start_reading();
  tokenizing_ = std::async(std::launch::async, [this, chunk = tokenizing_chunk_.get()] {
    // Of a document of megabytes --max-tokens may want little.
    const std::uint64_t enough = std::min(most_of_document(), options_.max_tokens > 0 ? options_.max_tokens : kNoLimit);
    const auto [begin, end] = chunk->share(comm_.rank(), comm_.size());
    std::vector<std::vector<std::uint32_t>> ids;
    for (std::size_t i = begin; i < end; ++i) {
      Document& document = chunk->documents[i];
      if (document.has_tokens) {
        ids.push_back(std::move(document.tokens));
        continue;
      }
      if (tokenizer_ == nullptr)
        throw Error("the model folder has no tokenizer.model, and the document has no ready `tokens`",
                    "corpus document " + std::to_string(document.ordinal),
                    "copy tokenizer.model into the model folder, or route a JSONL corpus of token ids");
      std::vector<std::uint32_t> encoded = tokenizer_->encode(document.text, enough);
      if (options_.add_bos && tokenizer_->bos_id() >= 0)
        encoded.insert(encoded.begin(), static_cast<std::uint32_t>(tokenizer_->bos_id()));
      ids.push_back(std::move(encoded));
    }
    return ids;
  });
}

std::optional<Block> BlockSource::next() {
  while (blocks_.empty() && !ended_) cut_blocks();
  // A chunk that was read after a stop signal may lack documents: no block of it may be routed.
  stopped_ = stopped_ || comm_.any(stop_signal() != 0);
  if (stopped_ || blocks_.empty()) return std::nullopt;
  Block block = std::move(blocks_.front());
  blocks_.pop_front();
  return block;
}

void BlockSource::cut_blocks() {
  const auto answer = static_cast<std::uint64_t>(options_.answer_tokens);
  const std::uint64_t most = most_of_document();
  std::vector<std::uint32_t> my_lengths;
  std::vector<std::uint32_t> my_ids;
  for (const std::vector<std::uint32_t>& ids : tokenizing_.get()) {
    my_lengths.push_back(static_cast<std::uint32_t>(ids.size()));
    my_ids.insert(my_ids.end(), ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(std::min(ids.size(), most)));
  }
  const std::vector<std::uint32_t> lengths = comm_.all_gather_v<std::uint32_t>(my_lengths);
  const std::vector<std::uint32_t> ids = comm_.all_gather_v<std::uint32_t>(my_ids);
  std::unique_ptr<Chunk> chunk = std::move(tokenizing_chunk_);

  for (const std::uint32_t id : ids)
    if (id >= options_.vocabulary)
      throw Error("token id " + std::to_string(id) + " is outside the model's vocabulary of " +
                      std::to_string(options_.vocabulary),
                  "corpus " + corpora_[position_.corpus].name, "use the tokenizer that belongs to the model");

  // --max-tokens ends the corpus inside a document.
  std::uint64_t total = ids.size();
  bool last = chunk->last;
  if (options_.max_tokens > 0 && position_.corpus_tokens + total >= options_.max_tokens) {
    total = options_.max_tokens - position_.corpus_tokens;
    last = true;
  }

  std::size_t n_documents = 0;
  for (std::uint64_t sum = 0; n_documents < lengths.size() && (sum < total || total == ids.size()); ++n_documents)
    sum += std::min<std::uint64_t>(lengths[n_documents], most);

  // Answers count for a block's size: they are most of the work.
  const std::uint64_t work = total + n_documents * answer;
  const auto n_blocks = std::max<std::uint64_t>(1, (work + static_cast<std::uint64_t>(options_.block_tokens) - 1) /
                                                       static_cast<std::uint64_t>(options_.block_tokens));
  std::vector<Block> cut(n_blocks);
  std::uint64_t at = 0;
  std::uint64_t documents = 0;
  const auto block_at = [&](std::uint64_t token) {
    return work == 0 ? 0 : std::min(n_blocks - 1, (token + documents * answer) * n_blocks / work);
  };
  for (std::size_t d = 0; d < n_documents; ++d) {
    const std::uint64_t length = std::min({std::uint64_t{lengths[d]}, most, total - at});
    const bool truncated = chunk->documents[d].truncated || length < lengths[d];
    const std::uint64_t row = position_.documents + documents;
    cut[block_at(at)].documents.push_back({std::move(chunk->documents[d].id),
                                           std::move(chunk->documents[d].category),
                                           position_.tokens + at,
                                           length,
                                           truncated,
                                           length,
                                           {}});
    for (std::uint64_t begin = 0; begin < length; begin += static_cast<std::uint64_t>(options_.context)) {
      const std::uint64_t count = std::min<std::uint64_t>(static_cast<std::uint64_t>(options_.context), length - begin);
      const std::uint64_t first = at + begin;
      Block& block = cut[block_at(first)];
      const std::int64_t next = begin + count < length ? static_cast<std::int64_t>(ids[first + count]) : -1;
      block.windows.push_back({row, block.tokens.size(), static_cast<std::int64_t>(count), next, chunk->groups[d]});
      block.tokens.insert(block.tokens.end(), ids.begin() + static_cast<std::ptrdiff_t>(first),
                          ids.begin() + static_cast<std::ptrdiff_t>(first + count));
    }
    at += length;
    ++documents;
  }

  SourcePosition after = position_;
  std::uint64_t first_row = position_.tokens;
  for (std::uint64_t i = 0; i < n_blocks; ++i) {
    Block& block = cut[i];
    block.ordinal = position_.block - position_.blocks_of_chunk + i;
    block.corpus = position_.corpus;
    block.first_row = first_row;
    block.corpus_first_token = position_.corpus_tokens + (first_row - position_.tokens);
    first_row += block.tokens.size();
    after.block = block.ordinal + 1;
    after.blocks_of_chunk = i + 1;
    if (i + 1 == n_blocks) {
      after.chunk = chunk->end;
      after.blocks_of_chunk = 0;
      after.documents += documents;
      after.corpus_documents += documents;
      after.tokens += total;
      after.corpus_tokens += total;
      block.last_of_corpus = last;
      block.skipped = chunk->skipped;
      block.skipped_places = std::move(chunk->skipped_places);
      if (last) {
        ++after.corpus;
        after.chunk = {};
        after.corpus_tokens = 0;
        after.corpus_documents = 0;
      }
    }
    block.after = after;
    if (i >= position_.blocks_of_chunk) blocks_.push_back(std::move(block));
  }
  position_ = after;
  if (!last) {
    start_tokenizing();
  } else if (position_.corpus < corpora_.size()) {
    if (reading_.valid()) {  // it uses the reader that begin_corpus replaces
      reader_->call_off();
      reading_.wait();
    }
    begin_corpus(position_.corpus, {}, 0);
  } else {
    ended_ = true;
  }
}

}  // namespace switchyard
