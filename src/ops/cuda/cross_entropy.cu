// Cross-entropy over rows of logits that a GEMM has just written; see ops/cross_entropy.rs. The gradient takes the logits' place.
#include "common.cuh"

constexpr uint32_t IGNORE = 0xffffffffu;

// One block a row of v logits. `gradient`: whether the row becomes scale (softmax - onehot). best: null, or whether no other token is
// likelier (of equals the first counts).
template <class T>
__device__ void cross_entropy(T *logits, const uint32_t *targets, float *losses, uint32_t *best, int v, float scale, int gradient) {
  __shared__ float scratch[32];
  const uint32_t target = targets[blockIdx.x];
  T *z = logits + size_t(blockIdx.x) * v;
  if (target == IGNORE) {
    if (gradient)
      for (int i = threadIdx.x; i < v; i += blockDim.x) store(z + i, 0.0f);
    if (threadIdx.x == 0) {
      losses[blockIdx.x] = 0;
      if (best) best[blockIdx.x] = 0;
    }
    return;
  }
  float top = -INFINITY;
  for (int i = threadIdx.x; i < v; i += blockDim.x) top = fmaxf(top, load(z + i));
  top = block_max(top, scratch);
  const float at_target = load(z + target);
  float sum = 0, before = 0;
  for (int i = threadIdx.x; i < v; i += blockDim.x) {
    const float x = load(z + i);
    sum += expf(x - top);
    before += x > at_target || (x == at_target && i < int(target)) ? 1.0f : 0.0f;
  }
  sum = block_sum(sum, scratch);
  if (best) before = block_sum(before, scratch);
  if (threadIdx.x == 0) {
    // A NaN among the logits escapes the maximum but not the sum.
    losses[blockIdx.x] = logf(sum) + top - at_target;
    if (best) best[blockIdx.x] = before == 0.0f;
  }
  if (!gradient) return;
  const float factor = scale / sum;
  __syncthreads();
  for (int i = threadIdx.x; i < v; i += blockDim.x) {
    const float p = factor * expf(load(z + i) - top);
    store(z + i, i == int(target) ? p - scale : p);
  }
}

// One block a row of v logits: the sum of their squares.
template <class T>
__device__ void squares(const T *logits, float *sums, int v) {
  __shared__ float scratch[32];
  const T *const z = logits + size_t(blockIdx.x) * v;
  float sum = 0;
  for (int i = threadIdx.x; i < v; i += blockDim.x) sum += load(z + i) * load(z + i);
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

#define CROSS_ENTROPY(T, name)                                                                                          \
  extern "C" __global__ void cross_entropy_##name(T *logits, const uint32_t *targets, float *losses, uint32_t *best,      \
                                                  int v, float scale, int gradient) {                                   \
    cross_entropy<T>(logits, targets, losses, best, v, scale, gradient);                                                \
  }                                                                                                                     \
  EXPORT(cross_entropy_##name)                                                                                          \
  extern "C" __global__ void logit_squares_##name(const T *logits, float *sums, int v) { squares<T>(logits, sums, v); }  \
  EXPORT(logit_squares_##name)
CROSS_ENTROPY(float, f32)
CROSS_ENTROPY(bf16, bf16)
