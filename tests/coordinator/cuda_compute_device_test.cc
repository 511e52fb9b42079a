// The tests of cuda_compute_test.cc on a device.
#define ATOLL_ON_DEVICE
#include "tests/coordinator/cuda_compute_test.cc"
