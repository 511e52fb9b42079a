// cuda_compute_test.cc, built with ATOLL_ON_DEVICE and linked with the kernels for devices.
