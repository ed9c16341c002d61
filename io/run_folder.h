#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "io/corpus/corpus_files.h"
#include "io/routing_writer.h"

namespace switchyard {

/// Size and hash of a corpus' files: names and sizes of all, the first bytes of some.
struct CorpusIdentity {
  std::uint64_t files = 0;
  std::uint64_t bytes = 0;
  std::string hash;
};
CorpusIdentity identify(const CorpusSpec& spec, const CorpusFiles& files);

/// Keeps other processes from writing into OUT while it lives; the system lets go of it when the process ends, however
/// it ends.
class RunLock {
 public:
  /// Makes OUT when it is not there. Throws Error when another process holds the lock, or OUT cannot be written.
  explicit RunLock(const std::filesystem::path& out);
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  int descriptor_ = -1;
};

/// Makes OUT the folder of the run that run_json describes, rank 0 only, under its lock: writes run.json, or, when
/// there is one, checks that it is of the same run. run_json: an object whose member "identity" must equal that of the
/// run in OUT; the rest is replaced. Throws Error naming every difference of identity ("context: 256 there, 512 now"),
/// or that OUT cannot be written.
void claim_folder(const std::filesystem::path& out, const std::string& run_json);

/// Opens OUT for writing a record, rank 0 only, under its lock: makes its folders, claims it, repairs what a kill left.
/// Returns the committed segments. Throws as claim_folder.
std::vector<SegmentEntry> open_run_folder(const std::filesystem::path& out, const std::string& run_json);

/// A run's run.json. Throws Error when the folder holds no run.
std::string read_run_json(const std::filesystem::path& out);

}  // namespace switchyard
