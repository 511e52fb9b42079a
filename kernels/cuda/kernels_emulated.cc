// The kernels for the emulator: the same source, compiled by the C++ compiler.
#include "kernels/cuda/kernels.cu"
