// RMSNorm of each query and key head in place on packed rows, forward and backward; see ops/qk_norm.rs for the formulas.
//
// Rows are (h query heads, k key heads, k value heads) of width d <= 256; `before` holds the first h + k heads of each row as they were. A warp
// takes a head. The gradients of the weights are summed in two stages: each block over its rows, then rms_norm.cu's add_columns over the blocks.
#include "common.cuh"

constexpr int WARPS = 4;

// 1 / sqrt(mean(x²) + eps) of a head, in all lanes.
template <class T>
__device__ inline float reciprocal_rms(const T *x, int d, float eps) {
  float sum = 0;
  for (int i = threadIdx.x % WARP; i < d; i += WARP) sum += load(x + i) * load(x + i);
  return rsqrtf(warp_sum(sum) / d + eps);
}

// grid: rows; block: 32 WARPS
template <class T>
__device__ void qk_norm(T *qkv, T *before, const float *q_norm, const float *k_norm, int h, int k, int d, float eps) {
  const int lane = threadIdx.x % WARP;
  for (int head = threadIdx.x / WARP; head < h + k; head += WARPS) {
    T *const x = qkv + (size_t(blockIdx.x) * (h + 2 * k) + head) * d, *const kept = before + (size_t(blockIdx.x) * (h + k) + head) * d;
    const float *const w = head < h ? q_norm : k_norm;
    const float r = reciprocal_rms(x, d, eps);
    for (int i = lane; i < d; i += WARP) {
      const float value = load(x + i);
      store(kept + i, value);
      store(x + i, value * r * w[i]);
    }
  }
}

// Block i takes rows i, i + gridDim.x, ... and leaves its sums of dy x r, of queries and then of keys, in row i of `partials`: (blocks, d) of
// queries, then (blocks, d) of keys. Null: the weights are frozen. Shared: 2 d floats for each warp.
template <class T>
__device__ void qk_norm_backward(T *dqkv, const T *before, const float *q_norm, const float *k_norm, float *partials, int n, int h, int k, int d,
                                 float eps) {
  SHARED(float, sums);
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  float *const own = sums + warp * 2 * d;
  for (int i = lane; i < 2 * d; i += WARP) own[i] = 0;
  for (int row = blockIdx.x; row < n; row += gridDim.x)
    for (int head = warp; head < h + k; head += WARPS) {
      T *const dy = dqkv + (size_t(row) * (h + 2 * k) + head) * d;
      const T *const x = before + (size_t(row) * (h + k) + head) * d;
      const float *const w = head < h ? q_norm : k_norm;
      float *const dw = own + (head < h ? 0 : d);
      const float r = reciprocal_rms(x, d, eps);
      float dot = 0;
      for (int i = lane; i < d; i += WARP) {
        const float g = load(dy + i), value = load(x + i);
        dw[i] += g * value * r;
        dot += g * w[i] * value;
      }
      const float mean = warp_sum(dot) * r / d;
      for (int i = lane; i < d; i += WARP) store(dy + i, r * (load(dy + i) * w[i] - load(x + i) * r * mean));
    }
  __syncthreads();
  if (!partials) return;
  for (int i = threadIdx.x; i < 2 * d; i += blockDim.x) {
    float sum = 0;
    for (int other = 0; other < WARPS; other++) sum += sums[other * 2 * d + i];
    partials[(size_t(i / d) * gridDim.x + blockIdx.x) * d + i % d] = sum;
  }
}

#define QK_NORM(T, name)                                                                                                                \
  extern "C" __global__ void qk_norm_##name(T *qkv, T *before, const float *q_norm, const float *k_norm, int h, int k, int d, float eps) { \
    qk_norm<T>(qkv, before, q_norm, k_norm, h, k, d, eps);                                                                              \
  }                                                                                                                                     \
  EXPORT(qk_norm_##name)                                                                                                                \
  extern "C" __global__ void qk_norm_backward_##name(T *dqkv, const T *before, const float *q_norm, const float *k_norm, float *partials, \
                                                     int n, int h, int k, int d, float eps) {                                           \
    qk_norm_backward<T>(dqkv, before, q_norm, k_norm, partials, n, h, k, d, eps);                                                       \
  }                                                                                                                                     \
  EXPORT(qk_norm_backward_##name)
QK_NORM(float, f32)
QK_NORM(bf16, bf16)
