#pragma once

#include <cstdint>
#include <deque>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/corpus/document_reader.h"
#include "io/tokenizer/tokenizer.h"
#include "parallel/communicator.h"

namespace switchyard {

/// How corpora become blocks. All of it is part of a run's identity: the same options give the same blocks on any
/// number of ranks.
struct BlockOptions {
  std::int64_t context = 0;             // tokens of a window
  std::int64_t block_tokens = 1 << 18;  // a block holds about as many, at most as many
  /// When answers are made: tokens of one at most. Each document is then one window, cut so that context has room for
  /// its answer too. 0: documents are cut into windows.
  std::int64_t answer_tokens = 0;
  bool add_bos = false;             // BOS before each document's text
  std::uint64_t max_documents = 0;  // of each corpus; 0: all
  std::uint64_t max_tokens = 0;     // of each corpus; 0: all
  std::uint64_t sample = 0;         // documents chosen from each corpus; 0: all
  std::uint64_t seed = 0;
  std::uint32_t vocabulary = 0;  // ready tokens must be below
  ReaderOptions reader;
};

/// A document's row of /documents.
struct DocumentRow {
  std::string id;
  std::string category;
  std::uint64_t first_token = 0;  // row of the run's token tables
  std::uint64_t n_tokens = 0;
  bool truncated = false;
  std::uint64_t prompt_tokens = 0;  // when answers are made: of n_tokens, those that are not the answer
  std::string response = {};        // the answer's text, on rank 0, when there is a tokenizer
};

/// Consecutive tokens of one document.
struct Window {
  std::uint64_t document = 0;  // row of /documents
  std::uint64_t first = 0;     // index into Block::tokens
  std::int64_t count = 0;
  std::int64_t next = -1;   // the document's token after the window, -1 at its end
  std::uint16_t group = 0;  // document_group of the document
};

/// A place between two blocks, from which a run goes on.
struct SourcePosition {
  std::uint64_t corpus = 0;
  CorpusCursor chunk;                 // where the chunk begins that holds the next block
  std::uint64_t blocks_of_chunk = 0;  // blocks of that chunk already done
  std::uint64_t block = 0;            // ordinal of the next block in the run
  std::uint64_t documents = 0;        // rows of /documents before the chunk
  std::uint64_t tokens = 0;           // tokens of documents before the chunk
  std::uint64_t generated = 0;        // tokens of answers before the next block; rows are both
  std::uint64_t corpus_tokens = 0;    // the same two, of this corpus alone
  std::uint64_t corpus_documents = 0;
};

struct Block {
  std::uint64_t ordinal = 0;  // in the run
  std::uint64_t corpus = 0;
  std::uint64_t first_row = 0;           // its first token's row of the run, but for answers before it
  std::uint64_t corpus_first_token = 0;  // tokens of the corpus before it
  std::vector<DocumentRow> documents;    // that begin in this block; ids, categories only on rank 0
  std::vector<std::uint32_t> tokens;     // of all windows, in corpus order
  std::vector<Window> windows;
  SourcePosition after;
  bool last_of_corpus = false;
  std::uint64_t skipped = 0;  // bad documents met since the block before (rank 0)
  std::vector<std::string> skipped_places;
};

/// Turns corpora into blocks. Rank 0 reads text in chunks of a fixed number of bytes, every rank tokenizes its share of
/// a chunk, all get the ids; a chunk's windows are then cut into blocks of equal size. Reading runs two chunks ahead of
/// routing and tokenizing one, each on a thread of its own; messages are sent only inside next(), by the calling
/// thread. Holds those chunks whatever the size of a corpus, and a document of up to ReaderOptions::max_document_bytes.
class BlockSource {
 public:
  /// files: of each corpus, on rank 0, which alone reads. tokenizer may be nullptr when all documents bring ready
  /// tokens. `comm` and `tokenizer` outlive the source.
  BlockSource(std::vector<CorpusSpec> corpora, std::vector<CorpusFiles> files, const Tokenizer* tokenizer,
              BlockOptions options, const SourcePosition& start, const Communicator& comm);
  ~BlockSource();
  BlockSource(const BlockSource&) = delete;
  BlockSource& operator=(const BlockSource&) = delete;

  /// Collective. The next block, the same on all ranks, or nothing at the end of the last corpus, or from the first
  /// stop signal on any rank on. Throws Error of a bad document or a token id outside the vocabulary.
  std::optional<Block> next();
  /// Whether a stop signal ended the blocks. The same on all ranks.
  bool stopped() const { return stopped_; }

 private:
  struct Chunk;
  class ChunkReader;
  void begin_corpus(std::uint64_t corpus, const CorpusCursor& start, std::uint64_t documents_done);
  std::uint64_t most_of_document() const;  // tokens that are routed of one
  void start_reading();
  void start_tokenizing();
  void cut_blocks();

  std::vector<CorpusSpec> corpora_;
  std::vector<CorpusFiles> files_;
  const Tokenizer* tokenizer_;
  BlockOptions options_;
  const Communicator& comm_;
  SourcePosition position_;                      // before the chunk that cut_blocks takes next
  std::unique_ptr<ChunkReader> reader_;          // rank 0
  std::future<std::unique_ptr<Chunk>> reading_;  // rank 0
  std::unique_ptr<Chunk> tokenizing_chunk_;
  std::future<std::vector<std::vector<std::uint32_t>>> tokenizing_;  // ids of this rank's share of the documents
  std::deque<Block> blocks_;
  bool ended_ = false;
  bool stopped_ = false;
};

}  // namespace switchyard
