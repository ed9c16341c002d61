#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "io/checkpoint.h"
#include "io/corpus/corpus_spec.h"
#include "io/run_folder.h"
#include "io/tokenizer/tokenizer.h"
#include "jobs/binding.h"
#include "jobs/device.h"
#include "jobs/load_model.h"
#include "jobs/options.h"
#include "jobs/progress.h"
#include "parallel/communicator.h"
#include "parallel/expert_placement.h"
#include "pipeline/block_source.h"
#include "pipeline/model/model.h"

namespace switchyard {

/// Keys of --corpus, for the help of a subcommand.
extern const char* const kCorpusKeys;

/// --model, --corpus and how they are read and run: for the subcommands that run a model over corpora. Each adds its
/// own number of sampled documents and tokens of a block.
void add_run_options(OptionParser& parser);

/// A whole number from 1 to 33,554,431, `fallback` when it was not given. Throws UsageError.
std::int64_t positive(const OptionParser& parser, const char* name, std::int64_t fallback);

/// What add_run_options' values say, checked before anything is written.
struct RunInputs {
  /// Collective. Sets OpenMP's threads and takes a GPU. Throws UsageError and Error of options that make no sense,
  /// files that are not there, a column that the first document of a corpus lacks.
  RunInputs(const OptionParser& parser, const Communicator& comm);

  ExpertPlacement placement() const;
  /// Collective. plan_gpu_memory of a run that records nothing; besides: bytes beyond a forward pass's. Nothing on
  /// CPUs.
  void plan_memory(const ExpertPlacement& placement, std::uint64_t besides) const;
  /// Collective. The model, as load_model; says on rank 0, unless quiet, how fast it came to a GPU.
  LoadedModel load(const ExpertPlacement& placement, ExpertTransport& transport) const;
  /// All but sample and block_tokens.
  BlockOptions block_options() const;
  /// What must be equal for a run to go on: model, tokenizer, corpora, how they are cut. On rank 0.
  nlohmann::json identity(const BlockOptions& blocks) const;
  /// run.json of an identity: with the options as they are in effect and the machine. On rank 0.
  std::string run_json(const nlohmann::json& identity) const;
  std::vector<CorpusExtent> extents() const;
  std::string precision_name() const { return device.precision == Precision::f32 ? "f32" : "bf16"; }
  ModelOptions model_options() const { return device.model_options(context); }

  const OptionParser& parser;
  const Communicator& comm;
  Checkpoint checkpoint;
  ModelConfig config;
  ModelFacts facts;
  std::unique_ptr<Tokenizer> tokenizer;  // or none
  std::vector<CorpusSpec> corpora;
  std::vector<CorpusFiles> corpus_files;        // of each corpus; rank 0
  std::vector<CorpusIdentity> corpus_identity;  // rank 0
  ComputeDevice device;
  std::int64_t context, batch_tokens;
  ReaderOptions reader;
  int threads;
  Binding binding;

 private:
  void read_corpora();
};

}  // namespace switchyard
