# One static library per folder: atoll_library(base SOURCES a.cc HEADERS a.h PUBLIC x PRIVATE y)
# makes target atoll_base (alias atoll::base). PUBLIC and PRIVATE list linked targets; the headers
# are a file set with the repository as base, so that each is also compiled alone
# (target all_verify_interface_header_sets).
function(atoll_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;HEADERS;PUBLIC;PRIVATE" ${ARGN})
  add_library(atoll_${name} STATIC ${ARG_SOURCES})
  add_library(atoll::${name} ALIAS atoll_${name})
  target_sources(atoll_${name} PUBLIC
    FILE_SET HEADERS BASE_DIRS ${PROJECT_SOURCE_DIR} FILES ${ARG_HEADERS})
  target_link_libraries(atoll_${name} PUBLIC ${ARG_PUBLIC} PRIVATE ${ARG_PRIVATE})
  atoll_compile_options(atoll_${name})
endfunction()

# No contraction of a*b+c and no fast-math: the numbers are defined to the bit (docs/numbers.md).
function(atoll_compile_options target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Werror -ffp-contract=off
    # GCC 12 warns falsely about std::string concatenation (GCC bug 105651).
    $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>)
endfunction()

# atoll_test(kernels linear_test LIBRARIES atoll::kernels) builds linear_test.cc of this folder and
# registers its cases with ctest under the label of the folder.
function(atoll_test folder name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "LIBRARIES;SOURCES;LABELS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  add_executable(${folder}_${name} ${name}.cc ${ARG_SOURCES})
  target_include_directories(${folder}_${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(${folder}_${name} PRIVATE ${ARG_LIBRARIES} GTest::gtest GTest::gmock GTest::gtest_main)
  target_compile_definitions(${folder}_${name} PRIVATE ATOLL_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  atoll_compile_options(${folder}_${name})
  gtest_discover_tests(${folder}_${name}
    DISCOVERY_TIMEOUT 60
    TEST_PREFIX ${folder}/
    PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${folder};${ARG_LABELS}")
endfunction()
