/* Preloaded into a rank under test: makes one MPI, HDF5 or disk call of one rank fail, as a broken network or disk would.
   SWITCHYARD_FAULT="NAME:NTH:RANK", e.g. "MPI_Ialltoallv:3:1" or "H5Dwrite:1:0".
   SWITCHYARD_SLOW="MILLISECONDS:FILE": while the file exists, each MPI_Alltoall (one a layer and step) takes that much longer. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <hdf5.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_due(const char* name) {
  static int calls = 0;
  const char* wanted = getenv("SWITCHYARD_FAULT");
  char call[64];
  int nth = 0, victim = 0, rank = 0, ready = 0;
  if (wanted == NULL || sscanf(wanted, "%63[^:]:%d:%d", call, &nth, &victim) != 3 || strcmp(call, name) != 0) return 0;
  if (MPI_Initialized(&ready) != MPI_SUCCESS || !ready) return 0;
  PMPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank == victim && ++calls == nth;
}

static void slow_down(void) {
  const char* wanted = getenv("SWITCHYARD_SLOW");
  int milliseconds = 0, file = 0;
  if (wanted != NULL && sscanf(wanted, "%d:%n", &milliseconds, &file) == 1 && access(wanted + file, F_OK) == 0)
    usleep(1000 * (unsigned)milliseconds);
}

int MPI_Ialltoallv(const void* send, const int* send_counts, const int* send_offsets, MPI_Datatype send_type, void* receive,
                   const int* receive_counts, const int* receive_offsets, MPI_Datatype receive_type, MPI_Comm comm,
                   MPI_Request* request) {
  if (is_due("MPI_Ialltoallv")) return MPI_ERR_OTHER;
  return PMPI_Ialltoallv(send, send_counts, send_offsets, send_type, receive, receive_counts, receive_offsets,
                         receive_type, comm, request);
}

int MPI_Wait(MPI_Request* request, MPI_Status* status) {
  if (is_due("MPI_Wait")) return MPI_ERR_OTHER;
  return PMPI_Wait(request, status);
}

int MPI_Waitall(int count, MPI_Request requests[], MPI_Status statuses[]) {
  if (is_due("MPI_Waitall")) return MPI_ERR_OTHER;
  return PMPI_Waitall(count, requests, statuses);
}

int MPI_Alltoall(const void* send, int send_count, MPI_Datatype send_type, void* receive, int receive_count,
                 MPI_Datatype receive_type, MPI_Comm comm) {
  slow_down();
  if (is_due("MPI_Alltoall")) return MPI_ERR_OTHER;
  return PMPI_Alltoall(send, send_count, send_type, receive, receive_count, receive_type, comm);
}

int MPI_Allreduce(const void* send, void* receive, int count, MPI_Datatype type, MPI_Op op, MPI_Comm comm) {
  if (is_due("MPI_Allreduce")) return MPI_ERR_OTHER;
  return PMPI_Allreduce(send, receive, count, type, op, comm);
}

int MPI_Reduce(const void* send, void* receive, int count, MPI_Datatype type, MPI_Op op, int root, MPI_Comm comm) {
  if (is_due("MPI_Reduce")) return MPI_ERR_OTHER;
  return PMPI_Reduce(send, receive, count, type, op, root, comm);
}

int MPI_Bcast(void* data, int count, MPI_Datatype type, int root, MPI_Comm comm) {
  if (is_due("MPI_Bcast")) return MPI_ERR_OTHER;
  return PMPI_Bcast(data, count, type, root, comm);
}

int MPI_Barrier(MPI_Comm comm) {
  if (is_due("MPI_Barrier")) return MPI_ERR_OTHER;
  return PMPI_Barrier(comm);
}

int MPI_Allgather(const void* send, int send_count, MPI_Datatype send_type, void* receive, int receive_count,
                  MPI_Datatype receive_type, MPI_Comm comm) {
  if (is_due("MPI_Allgather")) return MPI_ERR_OTHER;
  return PMPI_Allgather(send, send_count, send_type, receive, receive_count, receive_type, comm);
}

int MPI_Allgatherv(const void* send, int send_count, MPI_Datatype send_type, void* receive, const int* receive_counts,
                   const int* offsets, MPI_Datatype receive_type, MPI_Comm comm) {
  if (is_due("MPI_Allgatherv")) return MPI_ERR_OTHER;
  return PMPI_Allgatherv(send, send_count, send_type, receive, receive_counts, offsets, receive_type, comm);
}

int MPI_Gatherv(const void* send, int send_count, MPI_Datatype send_type, void* receive, const int* receive_counts,
                const int* offsets, MPI_Datatype receive_type, int root, MPI_Comm comm) {
  if (is_due("MPI_Gatherv")) return MPI_ERR_OTHER;
  return PMPI_Gatherv(send, send_count, send_type, receive, receive_counts, offsets, receive_type, root, comm);
}

int fsync(int file) {
  int (*next)(int);
  *(void**)&next = dlsym(RTLD_NEXT, "fsync");
  if (is_due("fsync")) {
    errno = EIO;
    return -1;
  }
  return next(file);
}

herr_t H5Fflush(hid_t object, H5F_scope_t scope) {
  herr_t (*next)(hid_t, H5F_scope_t);
  *(void**)&next = dlsym(RTLD_NEXT, "H5Fflush");
  if (is_due("H5Fflush")) return -1;
  return next(object, scope);
}

herr_t H5Dwrite(hid_t set, hid_t memory_type, hid_t memory_space, hid_t file_space, hid_t properties, const void* data) {
  herr_t (*next)(hid_t, hid_t, hid_t, hid_t, hid_t, const void*);
  *(void**)&next = dlsym(RTLD_NEXT, "H5Dwrite");
  if (is_due("H5Dwrite")) return -1;
  return next(set, memory_type, memory_space, file_space, properties, data);
}

hid_t H5Dcreate2(hid_t place, const char* name, hid_t type, hid_t space, hid_t links, hid_t creation, hid_t access) {
  hid_t (*next)(hid_t, const char*, hid_t, hid_t, hid_t, hid_t, hid_t);
  *(void**)&next = dlsym(RTLD_NEXT, "H5Dcreate2");
  if (is_due("H5Dcreate2")) return -1;
  return next(place, name, type, space, links, creation, access);
}
