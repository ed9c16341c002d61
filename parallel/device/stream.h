#pragma once

struct CUstream_st;
struct CUevent_st;

namespace switchyard {

/// A point in a stream's work. Waits for nothing when it is destroyed.
class Event {
 public:
  Event(Event&& other) noexcept;
  Event& operator=(Event&&) = delete;
  ~Event();
  /// Whether the work up to here is done. Throws Error when it failed.
  bool is_done() const;
  /// Blocks until it is.
  void wait() const;
  /// Between two of record_time() that have come.
  double seconds_since(const Event& earlier) const;

 private:
  friend class Stream;
  explicit Event(CUevent_st* handle) : handle_(handle) {}
  CUevent_st* handle_;
};

/// Work that a GPU does in order, beside that of other streams. No stream waits for CUDA's default one, where nothing
/// of ours runs.
class Stream {
 public:
  /// Throws Error in a build without CUDA and when no GPU can be used.
  Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  /// Does not wait: work that was begun goes on.
  ~Stream();

  /// What CUDA's calls take.
  CUstream_st* handle() const { return handle_; }
  Event record() const;
  /// One that knows when it came.
  Event record_time() const;
  /// Work begun here from now on comes after the event.
  void wait_for(const Event& event) const;
  /// Blocks until all that was begun here is done. Throws Error when some of it failed.
  void wait() const;

 private:
  Event record(unsigned flags) const;

  CUstream_st* handle_ = nullptr;
};

/// The stream of everything that computes in this process. Tensors in GPU memory belong to it.
const Stream& compute_stream();

}  // namespace switchyard
