// The bias of a linear layer, forward and backward; see ops/bias.rs.
#include "common.cuh"

// y += bias on every row of c. grid: (rows, blocks of columns)
template <class T>
__device__ void add_bias(T *y, const float *bias, int c) {
  const int column = blockIdx.y * blockDim.x + threadIdx.x;
  if (column >= c) return;
  T *const at = y + size_t(blockIdx.x) * c + column;
  store(at, load(at) + bias[column]);
}

// Block i sums rows i, i + gridDim.x, ... into row i of `partials`; rms_norm.cu's add_columns adds those in order. grid: (blocks, blocks of
// columns)
template <class T>
__device__ void sum_rows(const T *dy, float *partials, int n, int c) {
  const int column = blockIdx.y * blockDim.x + threadIdx.x;
  if (column >= c) return;
  float sum = 0;
  for (int row = blockIdx.x; row < n; row += gridDim.x) sum += load(dy + size_t(row) * c + column);
  partials[size_t(blockIdx.x) * c + column] = sum;
}

#define BIAS(T, name)                                                                                                    \
  extern "C" __global__ void add_bias_##name(T *y, const float *bias, int c) { add_bias<T>(y, bias, c); }                 \
  EXPORT(add_bias_##name)                                                                                                \
  extern "C" __global__ void sum_rows_##name(const T *dy, float *partials, int n, int c) { sum_rows<T>(dy, partials, n, c); } \
  EXPORT(sum_rows_##name)
BIAS(float, f32)
BIAS(bf16, bf16)
