# One static library per folder: atoll_library(base SOURCES a.cc HEADERS a.h PUBLIC x PRIVATE y)
# makes target atoll_base (alias atoll::base). PUBLIC and PRIVATE list linked targets; the headers
# are a file set with the repository as base, so that each is also compiled alone
# (target all_verify_interface_header_sets).
# NO_LOOPS: nothing in it runs often enough for more than -O1 to pay, which compiles in two thirds of
# the time of -O3.
# UNITY: its sources are compiled eight at a time, as one. What CLI11 and nlohmann/json make the
# compiler generate in each is then generated once; two of them must not give one name in an unnamed
# namespace two meanings. -DATOLL_UNITY=OFF compiles each alone.
function(atoll_library name)
  cmake_parse_arguments(ARG "NO_LOOPS;UNITY" "PRECOMPILED" "SOURCES;HEADERS;PUBLIC;PRIVATE" ${ARGN})
  add_library(atoll_${name} STATIC ${ARG_SOURCES})
  add_library(atoll::${name} ALIAS atoll_${name})
  target_sources(atoll_${name} PUBLIC
    FILE_SET HEADERS BASE_DIRS ${PROJECT_SOURCE_DIR} FILES ${ARG_HEADERS})
  target_link_libraries(atoll_${name} PUBLIC ${ARG_PUBLIC} PRIVATE ${ARG_PRIVATE})
  atoll_compile_options(atoll_${name})
  if(ARG_NO_LOOPS)
    atoll_no_loops(atoll_${name})
  endif()
  if(ARG_UNITY AND ATOLL_UNITY)
    set_target_properties(atoll_${name} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8)
    # A class of one file that holds what is in its unnamed namespace.
    target_compile_options(atoll_${name} PRIVATE $<$<CXX_COMPILER_ID:GNU>:-Wno-subobject-linkage>)
  endif()
  if(NOT ARG_PRECOMPILED)
    set(ARG_PRECOMPILED atoll_headers)
  endif()
  atoll_reuse_headers(atoll_${name} ${ARG_PRECOMPILED})
endfunction()

# -fpch-preprocess: without it ccache stores nothing that uses a precompiled header.
# GCC 12's false warnings about inlined std::string and std::vector lie in system headers, where they
# are not shown; in a precompiled header they are.
function(atoll_reuse_headers target from)
  if(ATOLL_PCH)
    target_precompile_headers(${target} REUSE_FROM ${from})
    target_compile_options(${target} PRIVATE $<$<CXX_COMPILER_ID:GNU>:-fpch-preprocess
      -Wno-stringop-overflow -Wno-stringop-overread -Wno-array-bounds>)
  endif()
endfunction()

function(atoll_no_loops target)
  if(CMAKE_BUILD_TYPE STREQUAL "Release")
    target_compile_options(${target} PRIVATE -O1)
  endif()
endfunction()

# No contraction of a*b+c and no fast-math: the numbers are defined to the bit (docs/numbers.md).
function(atoll_compile_options target)
  target_compile_options(${target} PRIVATE -Wall -Wextra $<$<BOOL:${ATOLL_WERROR}>:-Werror> -ffp-contract=off
    # GCC 12 warns falsely about std::string concatenation (GCC bug 105651).
    $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>
    # What is switched off for GCC alone.
    $<$<CXX_COMPILER_ID:Clang>:-Wno-unknown-warning-option>)
  # With a sanitizer's checks in between, GCC takes the value of a set optional for one that was
  # never set, in Boost's headers among others.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_FLAGS MATCHES "-fsanitize")
    target_compile_options(${target} PRIVATE -Wno-maybe-uninitialized)
  endif()
endfunction()

# A test's own code, and what of the headers it tests is compiled in it, counts less than how long it
# takes to compile: half as long without optimisation, and another third less without the checks of
# pointers that the address sanitizer makes as well when they are used.
function(atoll_test_compile_options target)
  atoll_compile_options(${target})
  if(CMAKE_CXX_FLAGS MATCHES "-fsanitize=address")
    target_compile_options(${target} PRIVATE -O0 -fno-sanitize=null,alignment,object-size)
  elseif(CMAKE_CXX_FLAGS MATCHES "-fsanitize")
    target_compile_options(${target} PRIVATE -O0)
  elseif(CMAKE_BUILD_TYPE STREQUAL "Release")
    target_compile_options(${target} PRIVATE -O1)
  endif()
endfunction()

# With ATOLL_PCH (the default), headers that most files parse are parsed once: in target atoll_headers
# for the libraries, atoll_cli_headers for the subcommands, atoll_test_headers for the tests. They come
# before a file's own includes and so hide missing ones: a build with -DATOLL_PCH=OFF proves that each
# file includes what it uses. GCC refuses them (-Winvalid-pch) where the options of the two targets
# differ.
function(atoll_precompiled_headers target)
  cmake_parse_arguments(ARG "" "" "HEADERS;LIBRARIES" ${ARGN})
  set(source ${CMAKE_CURRENT_BINARY_DIR}/${target}.cc)
  file(CONFIGURE OUTPUT ${source} CONTENT "")
  add_library(${target} OBJECT ${source})
  target_link_libraries(${target} PRIVATE ${ARG_LIBRARIES})
  target_precompile_headers(${target} PRIVATE ${ARG_HEADERS})
  target_compile_options(${target} PRIVATE $<$<CXX_COMPILER_ID:GNU>:-fpch-preprocess>)
endfunction()

# atoll_test(kernels linear_test LIBRARIES atoll::kernels) builds linear_test.cc of this folder and
# registers its cases with ctest, labelled FOLDER-LABELS.
#
# Tests of one folder's code alone also carry the label `unit` and are what the target unit_tests
# builds: the sanitizers run those, without the time that building the whole program takes. Tests
# that need the program or take long say so: LABELS system or LABELS slow; SANITIZED ones of these run
# under the sanitizers all the same. THREADS: threads of Atoll's meet in it in a way that no other test
# shows, so it also runs under the thread sanitizer, which makes it ten times as slow. ONE_PROCESS:
# under the sanitizers, where a process takes seconds to start, one runs all cases, which must not skip
# any.
# READS_TREE: it reads files of this repository, below ATOLL_SOURCE_DIR. Others don't know where they
# lie, so that a compiler's cache serves them to every clone.
function(atoll_test folder name)
  cmake_parse_arguments(ARG "THREADS;ONE_PROCESS;READS_TREE;SANITIZED" "TIMEOUT" "LIBRARIES;SOURCES;LABELS" ${ARGN})
  if(ARG_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "atoll_test(${folder} ${name}): unknown ${ARG_UNPARSED_ARGUMENTS}")
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  set(target ${folder}_${name})
  add_executable(${target} ${name}.cc ${ARG_SOURCES})
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(${target} PRIVATE ${ARG_LIBRARIES} fmt::fmt GTest::gtest GTest::gmock GTest::gtest_main)
  if(ARG_READS_TREE)
    target_compile_definitions(${target} PRIVATE ATOLL_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  endif()
  atoll_test_compile_options(${target})
  atoll_reuse_headers(${target} atoll_test_headers)
  set(is_unit TRUE)
  if(CMAKE_CXX_FLAGS MATCHES "-fsanitize=thread")
    set(is_unit ${ARG_THREADS})
  elseif(NOT ARG_SANITIZED AND ("slow" IN_LIST ARG_LABELS OR "system" IN_LIST ARG_LABELS))
    set(is_unit FALSE)
  endif()
  if(is_unit)
    if(NOT TARGET unit_tests)
      add_custom_target(unit_tests)
    endif()
    add_dependencies(unit_tests ${target})
    list(APPEND ARG_LABELS unit)
  endif()
  # One label such as e2e-system-slow: the discovery of CMake 3.25 can't carry a list.
  list(PREPEND ARG_LABELS ${folder})
  list(JOIN ARG_LABELS "-" label)
  if(ARG_ONE_PROCESS AND CMAKE_CXX_FLAGS MATCHES "-fsanitize")
    add_test(NAME ${folder}/${name} COMMAND ${target})
    set_tests_properties(${folder}/${name} PROPERTIES TIMEOUT 600 LABELS ${label})
  else()
    gtest_discover_tests(${target}
      DISCOVERY_TIMEOUT 60
      TEST_PREFIX ${folder}/
      PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS ${label})
  endif()
endfunction()
