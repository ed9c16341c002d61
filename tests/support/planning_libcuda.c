/* A libcuda.so.1 for machines without a GPU: as much of the driver as cuDNN asks for when it plans graphs for a GPU that is described to it, and compiles
 * their kernels. There is no device; what else is asked for succeeds, and what is loaded has an address that nothing may use. */
#include <stddef.h>

enum { success = 0, no_device = 100, not_found = 500 };

int cuInit(unsigned flags) {
  (void)flags;
  return no_device;
}

int cuDriverGetVersion(int* version) {
  *version = 13000;
  return success;
}

int cuDeviceGetCount(int* count) {
  *count = 0;
  return success;
}

int cuGetProcAddress_v2(const char* name, void** address) {
  (void)name;
  *address = NULL;
  return not_found;
}

static int tell(const char** text) {
  *text = "no GPU";
  return success;
}
int cuGetErrorString(int error, const char** text) { return (void)error, tell(text); }
int cuGetErrorName(int error, const char** text) { return (void)error, tell(text); }

static int load(void** code) {
  static char nothing;
  *code = &nothing;
  return success;
}
#define LOADS(name) \
  int name(void** code) { return load(code); }
LOADS(cuLibraryGetKernel)
LOADS(cuLibraryLoadData)
LOADS(cuLibraryLoadFromFile)
LOADS(cuModuleGetFunction)
LOADS(cuModuleLoadData)
LOADS(cuModuleLoadDataEx)
LOADS(cuModuleLoadFatBinary)

#define SUCCEEDS(name) \
  int name(void) { return success; }
SUCCEEDS(cuCtxGetCurrent)
SUCCEEDS(cuCtxGetDevice)
SUCCEEDS(cuCtxGetLimit)
SUCCEEDS(cuCtxPopCurrent)
SUCCEEDS(cuCtxPushCurrent)
SUCCEEDS(cuDeviceGet)
SUCCEEDS(cuDeviceGetAttribute)
SUCCEEDS(cuDevicePrimaryCtxRelease)
SUCCEEDS(cuDevicePrimaryCtxReset)
SUCCEEDS(cuDevicePrimaryCtxRetain)
SUCCEEDS(cuFuncGetAttribute)
SUCCEEDS(cuFuncSetAttribute)
SUCCEEDS(cuKernelGetAttribute)
SUCCEEDS(cuKernelSetAttribute)
SUCCEEDS(cuLaunchCooperativeKernel)
SUCCEEDS(cuLaunchKernel)
SUCCEEDS(cuLaunchKernelEx)
SUCCEEDS(cuLibraryUnload)
SUCCEEDS(cuLinkAddData)
SUCCEEDS(cuLinkAddData_v2)
SUCCEEDS(cuLinkAddFile_v2)
SUCCEEDS(cuLinkComplete)
SUCCEEDS(cuLinkCreate)
SUCCEEDS(cuLinkCreate_v2)
SUCCEEDS(cuLinkDestroy)
SUCCEEDS(cuMemcpyDtoH_v2)
SUCCEEDS(cuModuleGetGlobal_v2)
SUCCEEDS(cuModuleUnload)
SUCCEEDS(cuOccupancyMaxActiveBlocksPerMultiprocessor)
SUCCEEDS(cuOccupancyMaxPotentialClusterSize)
SUCCEEDS(cuStreamGetCtx)
SUCCEEDS(cuStreamSynchronize)
SUCCEEDS(cuTensorMapEncodeTiled)
