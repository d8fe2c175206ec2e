// AdamW over flat buffers in one launch, and the global norm of a gradient; see ops/adamw.rs for the formulas.
#include "common.cuh"

// Coefficients of one update, in the order of ops/adamw.rs.
struct Coefficients {
  float clip, beta1, beta2, one_minus_beta1, one_minus_beta2, keep, step_size, inverse_sqrt_correction2, eps;
};

// A moment as it will be kept: a bf16 is rounded up or down by the lower half of `bits`; see ops/adamw.rs.
__device__ inline float kept(const float *, float x, uint32_t) { return x; }
__device__ inline float kept(const bf16 *, float x, uint32_t bits) {
  const uint32_t word = __float_as_uint(x);
  const bool finite = (word & 0x7f800000u) != 0x7f800000u;
  return __uint_as_float(finite ? (word + (bits & 0xffffu)) & 0xffff0000u : word);
}

// Ranges lie one after the other, range i up to ends[i]; keeps[i] is 1 - lr · decay of it. copy: null, or the weights rounded to bf16. Buffers
// are aligned to 16 bytes; a thread has four elements at a time, so that enough of memory is under way. place: where they begin in the whole
// buffers, of which they may be a part.
template <class M>
__device__ inline void update(float *p, const float *g, M *m, M *v, bf16 *copy, const uint64_t *ends, const float *keeps, int ranges, size_t n,
                              const Coefficients &k, uint64_t key, size_t place) {
  for (size_t i = (size_t(blockIdx.x) * blockDim.x + threadIdx.x) * 4; i < n; i += size_t(gridDim.x) * blockDim.x * 4) {
    const int count = n - i < 4 ? int(n - i) : 4;
    const Four grads = load_some(g + i, count);
    Four weights = load_some(p + i, count), first = load_some(m + i, count), second = load_some(v + i, count);
    int low = 0, high = ranges - 1;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (i < ends[middle]) high = middle;
      else low = middle + 1;
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
      while (low < ranges - 1 && i + j >= ends[low]) low++;
      const float grad = grads.x[j] * k.clip;
      first.x[j] = k.beta1 * first.x[j] + k.one_minus_beta1 * grad;
      second.x[j] = k.beta2 * second.x[j] + k.one_minus_beta2 * (grad * grad);
      const float denominator = sqrtf(second.x[j]) * k.inverse_sqrt_correction2 + k.eps;
      weights.x[j] = weights.x[j] * keeps[low] - k.step_size * (first.x[j] / denominator);
      const uint64_t bits = sizeof(M) == sizeof(bf16) ? draw(key, place + i + j) : 0;
      first.x[j] = kept(m, first.x[j], uint32_t(bits)), second.x[j] = kept(v, second.x[j], uint32_t(bits >> 32));
    }
    store_some(p + i, weights, count), store_some(m + i, first, count), store_some(v + i, second, count);
    if (copy) store_some(copy + i, weights, count);
  }
}

// partials[block] = sum of the squares of the block's `piece` elements (a multiple of four), in f64.
extern "C" __global__ void sum_of_squares(const float *x, double *partials, size_t n, size_t piece) {
  __shared__ double scratch[32];
  const size_t from = blockIdx.x * piece, to = from + piece < n ? from + piece : n;
  double sum = 0;
#pragma unroll 2
  for (size_t i = from + threadIdx.x * 4; i < to; i += blockDim.x * 4) {
    const Four e = load_some(x + i, to - i < 4 ? int(to - i) : 4);
#pragma unroll
    for (int j = 0; j < 4; j++) sum += double(e.x[j]) * double(e.x[j]);
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}
EXPORT(sum_of_squares)

// total[0] = the sum of all partial sums; one block.
extern "C" __global__ void sum_of_partials(const double *partials, double *total, int n) {
  __shared__ double scratch[32];
  double sum = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += partials[i];
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) total[0] = sum;
}
EXPORT(sum_of_partials)

// One block a piece (first element, elements, whether it decays): sums of squares of gradients, weights, updates and AdamW's steps. rule: keep,
// rate, 1 / (1 - β₁ᵗ), 1 / √(1 - β₂ᵗ), ε; see ops/squares.rs.
template <class M>
__device__ inline void squares_of(const float *w, const float *g, const M *m, const M *v, const int64_t *pieces, const double *rule,
                                  double *sums) {
  __shared__ double scratch[32];
  const int64_t *const piece = pieces + 3 * blockIdx.x;
  const int64_t from = piece[0], to = from + piece[1];
  const double keep = piece[2] ? rule[0] : 1.0;
  double grad = 0, weight = 0, update = 0, adam = 0;
  for (int64_t i = from + threadIdx.x; i < to; i += blockDim.x) {
    const double direction = rule[2] * load(m + i) / (sqrt(double(load(v + i))) * rule[3] + rule[4]), now = w[i], moved = now - (now + rule[1] * direction) / keep;
    grad += double(g[i]) * g[i], weight += now * now, update += moved * moved, adam += direction * direction;
  }
  double all[4] = {grad, weight, update, adam};
  for (int i = 0; i < 4; i++) {
    const double sum = block_sum(all[i], scratch);
    if (threadIdx.x == 0) sums[4 * size_t(blockIdx.x) + i] = sum;
  }
}

// Moments are f32 or bf16.
#define MOMENTS(M, name)                                                                                                                 \
  extern "C" __global__ void adamw_##name(float *p, const float *g, M *m, M *v, bf16 *copy, const uint64_t *ends, const float *keeps,      \
                                          int ranges, size_t n, Coefficients k, uint64_t key, size_t place) {                            \
    update(p, g, m, v, copy, ends, keeps, ranges, n, k, key, place);                                                                     \
  }                                                                                                                                      \
  EXPORT(adamw_##name)                                                                                                                   \
  extern "C" __global__ void squares_##name(const float *w, const float *g, const M *m, const M *v, const int64_t *pieces,               \
                                            const double *rule, double *sums) {                                                          \
    squares_of(w, g, m, v, pieces, rule, sums);                                                                                          \
  }                                                                                                                                      \
  EXPORT(squares_##name)
MOMENTS(float, f32)
MOMENTS(bf16, bf16)
