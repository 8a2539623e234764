# Decides whether the extension is built with CUDA, and says so.
#
# FOURDTHINKER_CUDA, as a cache entry (-DFOURDTHINKER_CUDA=OFF) or an environment variable:
#   AUTO (default)  CUDA when there is an nvcc that is new enough and works
#   ON              CUDA, or an error that says what is missing
#   OFF             CPU
# NVDEC is compiled in when the headers ffnvcodec/dynlink_*.h are found; its libraries are opened at run time.
set(least_cuda 12.8) # the first that knows sm_100

if(DEFINED CACHE{FOURDTHINKER_CUDA})
  set(wish "${FOURDTHINKER_CUDA}")
elseif(DEFINED ENV{FOURDTHINKER_CUDA})
  set(wish "$ENV{FOURDTHINKER_CUDA}")
endif()
if("${wish}" STREQUAL "")
  set(wish AUTO)
endif()
string(TOUPPER "${wish}" wish)
if(NOT wish MATCHES "^(AUTO|ON|1|OFF|0)$")
  message(FATAL_ERROR "FOURDTHINKER_CUDA is '${wish}': use AUTO, ON or OFF")
endif()

set(FOURD_CUDA OFF)
if(wish MATCHES "^(OFF|0)$")
  set(FOURD_CUDA_WHY "FOURDTHINKER_CUDA is OFF")
else()
  if(DEFINED ENV{CUDACXX})
    set(nvcc "$ENV{CUDACXX}")
  else()
    find_program(nvcc nvcc NO_CACHE HINTS "$ENV{CUDA_HOME}/bin" "$ENV{CUDA_PATH}/bin" PATHS /usr/local/cuda/bin)
  endif()
  set(version "")
  if(nvcc)
    execute_process(COMMAND "${nvcc}" --version OUTPUT_VARIABLE said ERROR_QUIET RESULT_VARIABLE status)
    string(REGEX MATCH "release ([0-9]+\\.[0-9]+)" found "${said}")
    set(version "${CMAKE_MATCH_1}")
  endif()
  if(NOT nvcc)
    set(FOURD_CUDA_WHY "no nvcc was found")
  elseif("${version}" STREQUAL "")
    set(FOURD_CUDA_WHY "${nvcc} does not run")
  elseif(version VERSION_LESS least_cuda)
    set(FOURD_CUDA_WHY "nvcc ${version} is older than ${least_cuda}")
  else()
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100) # the newest as PTX too, for what comes after it
    endif()
    set(ENV{CUDACXX} "${nvcc}")
    include(CheckLanguage)
    if(NOT CMAKE_CUDA_COMPILER)
      unset(CMAKE_CUDA_COMPILER CACHE) # a compiler that did not work yesterday may work today
      check_language(CUDA) # in a project of its own, so that a host compiler that nvcc refuses is no error
    endif()
    if(CMAKE_CUDA_COMPILER)
      enable_language(CUDA)
      set(FOURD_CUDA ON)
    else()
      set(FOURD_CUDA_WHY "nvcc ${version} does not work with this C++ compiler")
    endif()
  endif()
  if(NOT FOURD_CUDA AND wish MATCHES "^(ON|1)$")
    message(FATAL_ERROR "FOURDTHINKER_CUDA is ON, but ${FOURD_CUDA_WHY}; nvcc ${least_cuda} or newer is needed")
  endif()
endif()

set(FOURD_NVDEC OFF)
if(FOURD_CUDA)
  find_path(FOURD_NVDEC_HEADERS ffnvcodec/dynlink_nvcuvid.h NO_CACHE)
  if(FOURD_NVDEC_HEADERS)
    set(FOURD_NVDEC ON)
    message(STATUS "fourdthinker: CUDA build (nvcc ${version}, ${CMAKE_CUDA_ARCHITECTURES}) with NVDEC")
  else()
    message(STATUS "fourdthinker: CUDA build (nvcc ${version}, ${CMAKE_CUDA_ARCHITECTURES}) without NVDEC: "
      "ffnvcodec/dynlink_nvcuvid.h was not found (Debian: libffmpeg-nvenc-dev)")
  endif()
else()
  message(STATUS "fourdthinker: CPU build: ${FOURD_CUDA_WHY}")
endif()
