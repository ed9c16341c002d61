#include <mpi.h>
#include <nccl.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/fake_gpu/fake_gpu.h"

/// Every message is a header {count, type, registered} and the payload, both sent so that the sender waits for the
/// receiver. A communicator spans all processes. Non-blocking ones put a group's work into its streams only when they
/// are asked for their state, as late as NCCL may be.

struct ncclComm {
  MPI_Comm mpi = MPI_COMM_NULL;
  int rank = 0, size = 0;
  bool blocking = true;
  int polls_until_settled = 0;
  std::vector<std::function<void()>> unsettled;  // groups that are not yet in their streams
  std::atomic<ncclResult_t> error = ncclSuccess;
  std::atomic<bool> aborted = false;
  std::atomic<int> running = 0;
  std::map<void*, fake_gpu::Range> registered;  // by handle
};

namespace {

constexpr int kPollsInProgress = 3;
constexpr int kHeaderTag = 1;
constexpr int kPayloadTag = 2;

struct Header {
  std::int64_t count, type, registered;
};

struct Operation {
  bool is_send;
  std::byte* data;
  Header mine, theirs;  // theirs: of a receive, once it has come
  std::size_t bytes;
  int peer;

  std::string text() const {
    return std::string(is_send ? "sends " : "receives ") + std::to_string(mine.count) + " elements " +
           (is_send ? "to rank " : "from rank ") + std::to_string(peer);
  }
};

using Requests = std::vector<MPI_Request>;

thread_local std::string last_error;
thread_local int group_depth = 0;
std::set<void*> allocated;                            // by ncclMemAlloc
std::int64_t registrations = 0;                       // also the next one's handle
thread_local ncclResult_t group_error = ncclSuccess;  // of a call in it: none of it is done then
thread_local std::map<std::pair<ncclComm*, cudaStream_t>, std::vector<Operation>> group;

ncclResult_t refuse(ncclResult_t result, const std::string& why) {
  fake_gpu::complain(why);
  last_error = why;
  if (group_depth > 0) group_error = result;
  return result;
}

std::size_t width_of(ncclDataType_t type) {
  switch (type) {
    case ncclInt8:
    case ncclUint8:
      return 1;
    case ncclFloat16:
    case ncclBfloat16:
      return 2;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64:
      return 8;
    default:
      return 4;
  }
}

bool come_all(const ncclComm& comm, Requests& requests) {
  const auto end = std::chrono::steady_clock::now() + fake_gpu::patience();
  for (;;) {
    int done = 0;
    MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE);
    if (done != 0) return true;
    if (comm.aborted || std::chrono::steady_clock::now() > end) return false;
    std::this_thread::yield();
  }
}

Requests start(const ncclComm& comm, std::vector<Operation>& operations, int tag) {
  Requests requests(operations.size());
  for (std::size_t i = 0; i < operations.size(); ++i) {
    Operation& operation = operations[i];
    const bool header = tag == kHeaderTag;
    Header& words = operation.is_send ? operation.mine : operation.theirs;
    void* data = header ? static_cast<void*>(&words) : operation.data;
    const auto bytes = static_cast<int>(header ? sizeof words : operation.bytes);
    if (operation.is_send) {
      MPI_Issend(data, bytes, MPI_BYTE, operation.peer, tag, comm.mpi, &requests[i]);
    } else {
      MPI_Irecv(data, bytes, MPI_BYTE, operation.peer, tag, comm.mpi, &requests[i]);
    }
  }
  return requests;
}

/// As a device does: the stream stands still until the communicator is aborted.
void fail(ncclComm& comm, ncclResult_t error, const std::string& why) {
  if (!comm.aborted) {
    fake_gpu::complain("NCCL, rank " + std::to_string(comm.rank) + ": " + why);
    comm.error = error;
  }
  while (!comm.aborted) std::this_thread::yield();
}

void execute(ncclComm& comm, std::vector<Operation>& operations) {
  if (comm.aborted || comm.error != ncclSuccess) return;
  const auto wait_for_peers = [&](Requests requests) {
    if (come_all(comm, requests)) return true;
    std::string waiting;
    for (std::size_t i = 0; i < operations.size(); ++i)
      if (requests[i] != MPI_REQUEST_NULL) waiting += (waiting.empty() ? "" : ", ") + operations[i].text();
    fail(comm, ncclRemoteError, "no partner (a group is missing, or a rank never came): " + waiting);
    return false;
  };
  if (!wait_for_peers(start(comm, operations, kHeaderTag))) return;
  for (const Operation& operation : operations) {
    if (operation.is_send) continue;
    if (operation.theirs.count != operation.mine.count || operation.theirs.type != operation.mine.type) {
      fail(comm, ncclInvalidUsage, operation.text() + ", which sends " + std::to_string(operation.theirs.count));
      return;
    }
    if (operation.theirs.registered != operation.mine.registered) {
      fail(comm, ncclInvalidUsage, operation.text() + ": only one side's memory is registered");
      return;
    }
  }
  wait_for_peers(start(comm, operations, kPayloadTag));
}

void launch(ncclComm* comm, cudaStream_t stream, std::vector<Operation> operations) {
  std::vector<fake_gpu::Range> touched;
  for (const Operation& operation : operations) touched.push_back({operation.data, operation.bytes});
  // Never freed: after a failure MPI may still write to the headers.
  auto* kept = new std::vector<Operation>(std::move(operations));
  ++comm->running;
  fake_gpu::enqueue(stream, std::move(touched), [comm, kept] {
    execute(*comm, *kept);
    --comm->running;
  });
}

ncclResult_t add(ncclComm* comm, cudaStream_t stream, const Operation& operation) {
  if (comm->polls_until_settled > 0) return refuse(ncclInvalidUsage, "a call while the communicator is in progress");
  if (operation.peer < 0 || operation.peer >= comm->size) return refuse(ncclInvalidArgument, "no such peer");
  if (operation.bytes == 0) return refuse(ncclInvalidUsage, "an empty message, which peers may leave out");
  if (!fake_gpu::is_device_memory({operation.data, operation.bytes}))
    return refuse(ncclInvalidArgument, "a buffer that is not device memory of that size");
  if (comm->error != ncclSuccess) return comm->error;
  group[{comm, stream}].push_back(operation);
  if (group_depth > 0) return ncclSuccess;
  ncclGroupStart();
  return ncclGroupEnd();
}

Operation operation(bool is_send, void* data, std::size_t count, ncclDataType_t type, int peer) {
  return {.is_send = is_send,
          .data = static_cast<std::byte*>(data),
          .mine = {static_cast<std::int64_t>(count), type, fake_gpu::is_registered({data, count * width_of(type)})},
          .theirs = {},
          .bytes = count * width_of(type),
          .peer = peer};
}

void settle(ncclComm* comm) {
  if (comm->polls_until_settled == 0 || --comm->polls_until_settled > 0) return;
  for (const auto& put : std::exchange(comm->unsettled, {})) put();
}

}  // namespace

int fake_gpu::count_registrations() { return static_cast<int>(registrations); }

extern "C" {

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    default:
      return "an error of the fake NCCL";
  }
}
const char* ncclGetLastError(ncclComm_t /*comm*/) { return last_error.c_str(); }

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  std::memset(id, 7, sizeof *id);
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int size, ncclUniqueId id, int rank, ncclConfig_t* config) {
  int world_size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &world_size);
  if (size != world_size) return refuse(ncclInvalidUsage, "the fake's communicators span all processes");
  if (id.internal[0] != 7) return refuse(ncclInvalidArgument, "an id that rank 0 did not make");
  auto made = std::make_unique<ncclComm>();
  MPI_Comm_dup(MPI_COMM_WORLD, &made->mpi);
  made->rank = rank;
  made->size = size;
  made->blocking = config == nullptr || config->blocking != 0;
  if (!made->blocking) made->polls_until_settled = kPollsInProgress;
  *comm = made.release();
  return (*comm)->blocking ? ncclSuccess : ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
  settle(comm);
  *error = comm->error;
  if (*error == ncclSuccess && comm->polls_until_settled > 0) *error = ncclInProgress;
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  comm->aborted = true;
  while (comm->running > 0) std::this_thread::yield();
  delete comm;  // but not its MPI communicator, which messages without partners still use
  return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  comm->polls_until_settled = kPollsInProgress;
  return comm->blocking ? ncclSuccess : ncclInProgress;
}

ncclResult_t ncclMemAlloc(void** data, std::size_t bytes) {
  if (cudaMalloc(data, bytes) != cudaSuccess) return ncclUnhandledCudaError;
  allocated.insert(*data);
  return ncclSuccess;
}

ncclResult_t ncclMemFree(void* data) {
  if (allocated.erase(data) == 0) return refuse(ncclInvalidArgument, "memory that ncclMemAlloc did not give is freed");
  return cudaFree(data) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

ncclResult_t ncclCommRegister(const ncclComm_t comm, void* data, std::size_t bytes, void** handle) {
  if (!fake_gpu::is_device_memory({data, bytes}))
    return refuse(ncclInvalidArgument, "what is registered is not device memory of that size");
  if (allocated.count(data) == 0) return refuse(ncclInvalidUsage, "what is registered is not ncclMemAlloc's");
  *handle = reinterpret_cast<void*>(++registrations);
  comm->registered[*handle] = {data, bytes};
  fake_gpu::set_registered({data, bytes}, true);
  return ncclSuccess;
}

ncclResult_t ncclCommDeregister(const ncclComm_t comm, void* handle) {
  const auto found = comm->registered.find(handle);
  if (found == comm->registered.end()) return refuse(ncclInvalidUsage, "what is deregistered is not registered");
  if (fake_gpu::is_touched(found->second))
    return refuse(ncclInvalidUsage, "memory is deregistered while work that touches it is pending");
  fake_gpu::set_registered(found->second, false);
  comm->registered.erase(found);
  return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  if (!comm->registered.empty()) fake_gpu::complain("a communicator ends with memory registered");
  while (comm->running > 0) std::this_thread::yield();
  MPI_Comm_free(&comm->mpi);
  delete comm;
  return ncclSuccess;
}

ncclResult_t ncclSend(const void* data, std::size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return add(comm, stream, operation(true, const_cast<void*>(data), count, type, peer));
}

ncclResult_t ncclRecv(void* data, std::size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return add(comm, stream, operation(false, data, count, type, peer));
}

ncclResult_t ncclGroupStart() {
  ++group_depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  if (--group_depth > 0) return ncclSuccess;
  if (const ncclResult_t error = std::exchange(group_error, ncclSuccess); error != ncclSuccess) {
    group.clear();
    return error;
  }
  ncclResult_t result = ncclSuccess;
  for (auto& [key, operations] : std::exchange(group, {})) {
    auto [comm, stream] = key;
    if (comm->blocking) {
      launch(comm, stream, std::move(operations));
      continue;
    }
    comm->unsettled.emplace_back(
        [comm = comm, stream = stream, held = std::move(operations)] { launch(comm, stream, held); });
    comm->polls_until_settled = kPollsInProgress;
    result = ncclInProgress;
  }
  return result;
}

}  // extern "C"
