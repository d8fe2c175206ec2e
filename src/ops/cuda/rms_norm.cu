// RMSNorm of h = x + delta, forward and backward; see ops/rms_norm.rs for the formulas.
//
// Rows are walked by blocks of 256 threads, eight neighbours a thread where c is a multiple of eight. Statistics are f32, of h as it is
// stored. The weight's gradient is summed in two stages: each block over its rows, then a thread for each column over the blocks.
#include "common.cuh"

// f(column, eight or fewer elements) over a row of c, by all threads of the block.
template <class F>
__device__ inline void each_eight(int c, F f) {
  for (int at = threadIdx.x * 8; at < c; at += blockDim.x * 8) f(at);
}

// y = h r w, of one row.
template <class T>
__device__ void scale_row(const T *h, const float *w, T *y, float r, int c) {
  each_eight(c, [&](int at) {
    Eight e = load8(h + at);
    const Eight weight = load8(w + at);
    for (int i = 0; i < 8; i++) e.x[i] *= r * weight.x[i];
    store8(y + at, e);
  });
}

// delta may be null: then h is x, and is not written.
template <class T>
__device__ void forward(const T *x, const T *delta, const float *w, T *h, T *y, float *rstd, int c, float eps) {
  __shared__ float scratch[32];
  const size_t row = size_t(blockIdx.x) * c;
  float sum = 0;
  each_eight(c, [&](int at) {
    Eight e = load8(x + row + at);
    if (delta) {
      const Eight d = load8(delta + row + at);
      for (int i = 0; i < 8; i++) e.x[i] += d.x[i];
      store8(h + row + at, e);
      e = load8(h + row + at);
    }
    for (int i = 0; i < 8; i++) sum += e.x[i] * e.x[i];
  });
  const float r = rsqrtf(block_sum(sum, scratch) / c + eps);
  if (threadIdx.x == 0) rstd[blockIdx.x] = r;
  scale_row((delta ? h : x) + row, w, y + row, r, c);
}

template <class T>
__device__ void recompute(const T *h, const float *rstd, const float *w, T *y, int c) {
  const size_t row = size_t(blockIdx.x) * c;
  scale_row(h + row, w, y + row, rstd[blockIdx.x], c);
}

// Block i takes rows i, i + gridDim.x, ... and leaves its sum of dy ĥ in row i of `partials` (null: the weight is frozen). dres may be null.
template <class T>
__device__ void backward(const T *dy, const T *h, const float *rstd, const float *w, const T *dres, T *dh, float *partials, int n, int c) {
  __shared__ float scratch[32];
  SHARED(float, dw);
  each_eight(c, [&](int at) {
    for (int i = 0; i < 8; i++) dw[at + i] = 0;
  });
  for (int line = blockIdx.x; line < n; line += gridDim.x) {
    const size_t row = size_t(line) * c;
    const float r = rstd[line];
    float sum = 0;
    each_eight(c, [&](int at) {
      const Eight g = load8(dy + row + at), x = load8(h + row + at), weight = load8(w + at);
      for (int i = 0; i < 8; i++) {
        sum += g.x[i] * weight.x[i] * x.x[i];
        dw[at + i] += g.x[i] * x.x[i] * r;
      }
    });
    const float mean = block_sum(sum, scratch) * r / c;
    each_eight(c, [&](int at) {
      const Eight g = load8(dy + row + at), x = load8(h + row + at), weight = load8(w + at);
      Eight e;
      for (int i = 0; i < 8; i++) e.x[i] = r * (g.x[i] * weight.x[i] - x.x[i] * r * mean);
      if (dres) {
        const Eight past = load8(dres + row + at);
        for (int i = 0; i < 8; i++) e.x[i] += past.x[i];
      }
      store8(dh + row + at, e);
    });
  }
  if (!partials) return;
  each_eight(c, [&](int at) {
    for (int i = 0; i < 8; i++) partials[size_t(blockIdx.x) * c + at + i] = dw[at + i];
  });
}

#define NORM(T, name)                                                                                                     \
  extern "C" __global__ void rms_norm_##name(const T *x, const T *delta, const float *w, T *h, T *y, float *rstd, int c,   \
                                             float eps) {                                                                 \
    forward<T>(x, delta, w, h, y, rstd, c, eps);                                                                          \
  }                                                                                                                       \
  EXPORT(rms_norm_##name)                                                                                                 \
  extern "C" __global__ void rms_norm_recompute_##name(const T *h, const float *rstd, const float *w, T *y, int c) {       \
    recompute<T>(h, rstd, w, y, c);                                                                                       \
  }                                                                                                                       \
  EXPORT(rms_norm_recompute_##name)                                                                                       \
  extern "C" __global__ void rms_norm_backward_##name(const T *dy, const T *h, const float *rstd, const float *w,          \
                                                      const T *dres, T *dh, float *partials, int n, int c) {              \
    backward<T>(dy, h, rstd, w, dres, dh, partials, n, c);                                                                \
  }                                                                                                                       \
  EXPORT(rms_norm_backward_##name)
NORM(float, f32)
NORM(bf16, bf16)

// dw[column] += the sum of `rows` partial sums, in their order.
extern "C" __global__ void add_columns(const float *partials, float *dw, int rows, int c) {
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= c) return;
  float sum = 0;
  for (int row = 0; row < rows; row++) sum += partials[size_t(row) * c + column];
  dw[column] += sum;
}
EXPORT(add_columns)
