// What is random about a training step, drawn by place: see ops/noise.rs.
#include "common.cuh"

// y = x, or y += x, with the elements dropped whose draw is below `limit` and the others times `keep`.
template <class T>
__device__ void dropout(const T *x, T *y, uint64_t key, uint64_t first, uint64_t limit, float keep, size_t n, int add) {
  for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += size_t(gridDim.x) * blockDim.x) {
    const float kept = draw(key, first + i) < limit ? 0.0f : load(x + i) * keep;
    store(y + i, add ? load(y + i) + kept : kept);
  }
}

// A block a row of c: x += uniform noise within the row's `most`.
template <class T>
__device__ void add_noise(T *x, const float *most, uint64_t key, uint64_t first, int c) {
  const size_t row = size_t(blockIdx.x) * c;
  for (int i = threadIdx.x; i < c; i += blockDim.x) {
    const float unit = float(draw(key, first + row + i) >> 40) / float(1 << 23) - 1.0f;
    store(x + row + i, load(x + row + i) + unit * most[blockIdx.x]);
  }
}

#define NOISE(T, name)                                                                                                     \
  extern "C" __global__ void dropout_##name(const T *x, T *y, uint64_t key, uint64_t first, uint64_t limit, float keep,    \
                                            size_t n, int add) {                                                          \
    dropout<T>(x, y, key, first, limit, keep, n, add);                                                                    \
  }                                                                                                                       \
  EXPORT(dropout_##name)                                                                                                  \
  extern "C" __global__ void add_noise_##name(T *x, const float *most, uint64_t key, uint64_t first, int c) {             \
    add_noise<T>(x, most, key, first, c);                                                                                 \
  }                                                                                                                       \
  EXPORT(add_noise_##name)
NOISE(float, f32)
NOISE(bf16, bf16)
