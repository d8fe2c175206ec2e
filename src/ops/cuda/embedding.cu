// Token embedding; backward sums the rows of each token in the order of its places, which the host has sorted: no atomics.
#include "common.cuh"

// grid: tokens
template <class T>
__device__ void embedding(const uint32_t *ids, const T *table, T *out, int c) {
  const size_t from = size_t(ids[blockIdx.x]) * c, to = size_t(blockIdx.x) * c;
  for (int i = threadIdx.x; i < c; i += blockDim.x) out[to + i] = table[from + i];
}

// Block i of x has the distinct id `distinct[i]`, whose places are order[ends[i - 1] .. ends[i]].
template <class T>
__device__ void embedding_backward(const uint32_t *distinct, const uint32_t *ends, const uint32_t *order, const T *dy, float *dtable, int c) {
  const int column = blockIdx.y * blockDim.x + threadIdx.x;
  if (column >= c) return;
  const uint32_t from = blockIdx.x ? ends[blockIdx.x - 1] : 0, to = ends[blockIdx.x];
  float sum = 0;
  for (uint32_t i = from; i < to; i++) sum += load(dy + size_t(order[i]) * c + column);
  dtable[size_t(distinct[blockIdx.x]) * c + column] += sum;
}

#define EMBEDDING(T, name)                                                                                               \
  extern "C" __global__ void embedding_##name(const uint32_t *ids, const T *table, T *out, int c) {                       \
    embedding<T>(ids, table, out, c);                                                                                    \
  }                                                                                                                      \
  EXPORT(embedding_##name)                                                                                               \
  extern "C" __global__ void embedding_backward_##name(const uint32_t *distinct, const uint32_t *ends,                    \
                                                       const uint32_t *order, const T *dy, float *dtable, int c) {        \
    embedding_backward<T>(distinct, ends, order, dy, dtable, c);                                                         \
  }                                                                                                                      \
  EXPORT(embedding_backward_##name)
EMBEDDING(float, f32)
EMBEDDING(bf16, bf16)
