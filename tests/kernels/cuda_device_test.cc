// The tests of cuda_test.cc on a device.
#define ATOLL_ON_DEVICE
#include "tests/kernels/cuda_test.cc"
