// One query a block, over keys wherever they are: for attention in f32, and over a cache in any type.
#pragma once
#include "common.cuh"

constexpr int MOST_DIMS = 256;

// A run of keys.
struct Run {
  int from, to;
};

// Keys and values in rows that are `stride` apart.
template <class T>
struct Rows {
  const T *keys, *values;
  size_t stride;
  __device__ const T *key(int i) const { return keys + i * stride; }
  __device__ const T *value(int i) const { return values + i * stride; }
};

// One query over the keys of `count` runs, run(i) each, of `rows`. Warps take 32 keys in turn, a lane each for the scores; then lanes own
// dimensions. Each warp has its own online softmax; they meet at the end, in order. Shared: the query, and of each warp the maximum, the sum and
// the output: d + warps (d + 2) floats. Null `lse`, `largest` (logit): not wanted.
template <class T, class Kept, class Runs>
__device__ inline void attend(const T *q, const Kept &rows, int count, Runs runs, int d, float scale, T *out, float *lse, float *largest) {
  SHARED(float, query);
  const int warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  for (int i = threadIdx.x; i < d; i += blockDim.x) query[i] = load(q + i);
  __syncthreads();
  float most = -INFINITY, total = 0, sum[MOST_DIMS / WARP] = {};
  for (int i = 0; i < count; i++) {
    const Run run = runs(i);
    for (int first = run.from + warp * WARP; first < run.to; first += warps * WARP) {
      const int n = min(WARP, run.to - first);
      float s = -INFINITY;
      if (lane < n) {
        const T *const key = rows.key(first + lane);
        float dot = 0;
        int j = 0;
        // Rows are multiples of d apart.
        for (; d % 8 == 0 && j < d; j += 8) {
          const Eight e = load8(key + j);
#pragma unroll
          for (int l = 0; l < 8; l++) dot += query[j + l] * e.x[l];
        }
        for (; j < d; j++) dot += query[j] * load(key + j);
        s = dot * scale;
      }
      const float top = fmaxf(most, warp_max(s)), correction = expf(most - top), p = expf(s - top);
      most = top, total = total * correction + warp_sum(p);
#pragma unroll
      for (int j = 0; j < MOST_DIMS / WARP; j++) sum[j] *= correction;
#pragma unroll 4
      for (int j = 0; j < n; j++) {
        const float weight = __shfl_sync(ALL, p, j);
        const T *const value = rows.value(first + j);
#pragma unroll
        for (int l = 0; l < MOST_DIMS / WARP; l++)
          if (l * WARP + lane < d) sum[l] += weight * load(value + l * WARP + lane);
      }
    }
  }
  float *const part = query + d + warp * (d + 2);
  if (lane == 0) part[d] = most, part[d + 1] = total;
#pragma unroll
  for (int i = 0; i < MOST_DIMS / WARP; i++)
    if (i * WARP + lane < d) part[i * WARP + lane] = sum[i];
  __syncthreads();
  const float *const parts = query + d;
  float top = -INFINITY, all = 0;
  for (int w = 0; w < warps; w++) top = fmaxf(top, parts[w * (d + 2) + d]);
  for (int w = 0; w < warps; w++) all += expf(parts[w * (d + 2) + d] - top) * parts[w * (d + 2) + d + 1];
  for (int i = threadIdx.x; i < d; i += blockDim.x) {
    float x = 0;
    for (int w = 0; w < warps; w++) x += expf(parts[w * (d + 2) + d] - top) * parts[w * (d + 2) + i];
    store(out + i, x / all);
  }
  if (threadIdx.x) return;
  if (lse) *lse = top + logf(all);
  if (largest) *largest = top;
}
