# CUDA, NCCL, cuDNN and CUTLASS, where they are found: targets switchyard_cuda, switchyard_nccl, switchyard_cudnn and switchyard_cutlass. A missing target means that stubs are
# built in their place.
#   SWITCHYARD_CUDA  AUTO: what is there; ON: an error where the compiler is missing; OFF: neither looked for nor used
#   SWITCHYARD_PYPI  a folder of `pip install --target`, whose headers and libraries are taken before the system's
set(SWITCHYARD_CUDA AUTO CACHE STRING "AUTO, ON or OFF")
set_property(CACHE SWITCHYARD_CUDA PROPERTY STRINGS AUTO ON OFF)
set(SWITCHYARD_PYPI "" CACHE PATH "folder of pip install --target: nvidia-cudnn-frontend, nvidia-cutlass, nvidia-nccl-cu13")

if(NOT SWITCHYARD_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)  # named, so that a machine without a GPU builds for those of others
      set(CMAKE_CUDA_ARCHITECTURES "80-real;90a-real;100-real;100-virtual" CACHE STRING "GPU architectures to build for")
    endif()
    if(CCACHE)
      set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
    endif()
    enable_language(CUDA)
    # CMake 3.25 does not know that nvcc takes C++20.
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    set(CMAKE_CUDA_STANDARD 20)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    find_package(CUDAToolkit 12.8 REQUIRED)  # the first to know sm_100
    add_library(switchyard_cuda INTERFACE)
    target_include_directories(switchyard_cuda SYSTEM INTERFACE ${CUDAToolkit_INCLUDE_DIRS})
    target_link_libraries(switchyard_cuda INTERFACE CUDA::cudart_static)
    # Programs that use no GPU do not load its libraries.
    target_link_options(switchyard_cuda INTERFACE LINKER:--as-needed)
  elseif(SWITCHYARD_CUDA STREQUAL "ON")
    message(FATAL_ERROR "SWITCHYARD_CUDA=ON, but no CUDA compiler was found; put nvcc on the PATH, or set CUDACXX")
  endif()
endif()

if(TARGET switchyard_cuda)
  find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${SWITCHYARD_PYPI}/nvidia/nccl ${CUDAToolkit_LIBRARY_ROOT} PATH_SUFFIXES include)
  # NAMES_PER_DIR: the library beside the header, not another version from elsewhere.
  find_library(NCCL_LIBRARY NAMES nccl libnccl.so.2 NAMES_PER_DIR HINTS ${SWITCHYARD_PYPI}/nvidia/nccl ${CUDAToolkit_LIBRARY_DIR}
               PATH_SUFFIXES lib lib64)
  if(NCCL_INCLUDE_DIR AND NCCL_LIBRARY)
    add_library(switchyard_nccl INTERFACE)
    target_include_directories(switchyard_nccl SYSTEM INTERFACE ${NCCL_INCLUDE_DIR})
    target_link_libraries(switchyard_nccl INTERFACE switchyard_cuda ${NCCL_LIBRARY})
  endif()
endif()

# The version that defines PREFIX_MAJOR... and PREFIX_MINOR... of a header say, as 1.32; 0 without the header.
function(switchyard_version_of header prefix suffix result)
  set(version 0)
  if(EXISTS ${header})
    file(STRINGS ${header} lines REGEX "define ${prefix}_(MAJOR|MINOR)${suffix} ")
    string(REGEX REPLACE "[^0-9;]" "" version "${lines}")
    list(JOIN version "." version)
  endif()
  set(${result} ${version} PARENT_SCOPE)
endfunction()

# cuDNN: headers alone, its own and those of cudnn_frontend, of a version that was tried; the library is opened when a program asks for it.
if(TARGET switchyard_cuda)
  find_path(CUDNN_INCLUDE_DIR cudnn.h HINTS ${SWITCHYARD_PYPI}/nvidia/cudnn ${CUDAToolkit_INCLUDE_DIRS} PATH_SUFFIXES include)
  find_path(CUDNN_FRONTEND_INCLUDE_DIR cudnn_frontend_version.h HINTS ${SWITCHYARD_PYPI} PATH_SUFFIXES include)
  switchyard_version_of(${CUDNN_FRONTEND_INCLUDE_DIR}/cudnn_frontend_version.h CUDNN_FRONTEND _VERSION cudnn_frontend_version)
  if(CUDNN_INCLUDE_DIR AND cudnn_frontend_version VERSION_GREATER_EQUAL 1.32)
    add_library(switchyard_cudnn INTERFACE)
    target_include_directories(switchyard_cudnn SYSTEM INTERFACE ${CUDNN_FRONTEND_INCLUDE_DIR} ${CUDNN_INCLUDE_DIR})
    target_compile_definitions(switchyard_cudnn INTERFACE NV_CUDNN_FRONTEND_USE_DYNAMIC_LOADING CUDNN_FRONTEND_SKIP_JSON_LIB)
    target_link_libraries(switchyard_cudnn INTERFACE switchyard_cuda)
  else()
    message(STATUS "no headers of cuDNN and of cudnn_frontend 1.32 or newer: GPUs attend by our own kernel")
  endif()
endif()

# CUTLASS: headers alone, of a version that was tried.
if(TARGET switchyard_cuda)
  find_path(CUTLASS_INCLUDE_DIR cutlass/version.h HINTS ${SWITCHYARD_PYPI}/cutlass_library/source PATH_SUFFIXES include)
  switchyard_version_of(${CUTLASS_INCLUDE_DIR}/cutlass/version.h CUTLASS "" cutlass_version)
  if(cutlass_version VERSION_GREATER_EQUAL 4.2)
    add_library(switchyard_cutlass INTERFACE)
    target_include_directories(switchyard_cutlass SYSTEM INTERFACE ${CUTLASS_INCLUDE_DIR})
    target_link_libraries(switchyard_cutlass INTERFACE switchyard_cuda)
  else()
    message(STATUS "no headers of CUTLASS 4.2 or newer: there is no --grouped-matmul cutlass")
  endif()
endif()

# Which sources of a floor are not built here: those that need CUDA or NCCL where it is missing, else the stubs that stand in for them.
if(TARGET switchyard_cuda)
  set(SWITCHYARD_ABSENT_SOURCES "gpu_stub\\.cc$")
else()
  set(SWITCHYARD_ABSENT_SOURCES "/cuda/")
endif()
if(TARGET switchyard_nccl)
  string(APPEND SWITCHYARD_ABSENT_SOURCES "|nccl_stub\\.cc$")
else()
  string(APPEND SWITCHYARD_ABSENT_SOURCES "|/nccl/|_nccl\\.cc$")
endif()
string(APPEND SWITCHYARD_ABSENT_SOURCES "|cudnn_graph\\.cc$")  # compiled by itself
if(TARGET switchyard_cudnn)
  string(APPEND SWITCHYARD_ABSENT_SOURCES "|cudnn_graph_stub\\.cc$")
endif()
string(APPEND SWITCHYARD_ABSENT_SOURCES "|cutlass_product\\.cu$")  # likewise
if(TARGET switchyard_cutlass)
  string(APPEND SWITCHYARD_ABSENT_SOURCES "|cutlass_product_stub\\.cc$")
endif()
