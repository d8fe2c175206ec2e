// One token of a few sequences at a time: a layer is five launches, each bound by reading its weights (or its cache) once. What a token's
// position is and which ids come in, kernels read from `feed` (position, ids...) in memory: the launches are the same for every token, and
// can be replayed as one.
//
// Norms are computed by every block of the product that they go into: they cost less than a launch. h = x + pending; where it is stored, block 0
// does that, to another buffer than x.
#include "attend.cuh"

constexpr int BLOCK_WARPS = 8;

// Row `row` of h = x + pending (null: x), normed, into `to`; h into `sum` if that is not null.
template <class T>
__device__ inline void norm_row(const T *x, const T *pending, const float *weight, T *to, T *sum, float eps, int c) {
  __shared__ float scratch[32];
  float squares = 0;
  for (int at = threadIdx.x * 8; at < c; at += blockDim.x * 8) {
    Eight e = load8(x + at);
    if (pending) {
      const Eight b = load8(pending + at);
      for (int i = 0; i < 8; i++) e.x[i] += b.x[i];
    }
    // As it is stored.
    store8(to + at, e);
    e = load8(to + at);
    if (sum) store8(sum + at, e);
    for (int i = 0; i < 8; i++) squares += e.x[i] * e.x[i];
  }
  const float r = rsqrtf(block_sum(squares, scratch) / c + eps);
  for (int at = threadIdx.x * 8; at < c; at += blockDim.x * 8) {
    Eight e = load8(to + at);
    const Eight w = load8(weight + at);
    for (int i = 0; i < 8; i++) e.x[i] *= r * w.x[i];
    store8(to + at, e);
  }
}

// The products of N rows of x (n of them real) with a row of the weight, in every lane; rows are multiples of eight.
template <int N, class T>
__device__ inline void dots(float (&y)[N], const T *x, const T *w, int n, int inner) {
#pragma unroll
  for (int r = 0; r < N; r++) y[r] = 0;
#pragma unroll 4
  for (int at = threadIdx.x % WARP * 8; at < inner; at += WARP * 8) {
    const Eight a = load8(w + at);
#pragma unroll
    for (int r = 0; r < N; r++)
      if (r < n) {
        const Eight b = load8(x + size_t(r) * inner + at);
#pragma unroll
        for (int i = 0; i < 8; i++) y[r] += a.x[i] * b.x[i];
      }
  }
#pragma unroll
  for (int r = 0; r < N; r++) y[r] = warp_sum(y[r]);
}

// y (n, outputs) = x Wᵀ, a warp for each output in turn. With norm weights, x is RMSNorm(x + pending) and h goes to `sum`. GATED: W has twice as
// many rows, gates and ups, and y = silu(gate) up. Shared: n inner elements with norm weights, else none.
template <int N, bool GATED, class T, class Out>
__device__ inline void product(const T *x, const T *pending, const float *norm, T *sum, float eps, const T *w, Out *y, int n, int inner, int outputs) {
  SHARED(T, normed);
  if (norm) {
    for (int r = 0; r < n; r++) {
      const size_t row = size_t(r) * inner;
      norm_row(x + row, pending ? pending + row : nullptr, norm, normed + row, sum && blockIdx.x == 0 ? sum + row : nullptr, eps, inner);
    }
    __syncthreads();
    x = normed;
  }
  const int lane = threadIdx.x % WARP;
  for (int o = blockIdx.x * BLOCK_WARPS + threadIdx.x / WARP; o < outputs; o += gridDim.x * BLOCK_WARPS) {
    float result[N];
    dots<N>(result, x, w + size_t(o) * inner, n, inner);
    if (GATED) {
      float up[N];
      dots<N>(up, x, w + size_t(outputs + o) * inner, n, inner);
#pragma unroll
      for (int r = 0; r < N; r++) {
        // As they are stored elsewhere.
        T rounded[2];
        store(rounded, result[r]), store(rounded + 1, up[r]);
        const float gate = load(rounded);
        result[r] = gate / (1.0f + expf(-gate)) * load(rounded + 1);
      }
    }
#pragma unroll
    for (int r = 0; r < N; r++)
      if (r < n && lane == r) store(y + size_t(r) * outputs + o, result[r]);
  }
}

// Grid any number of blocks; block 256; shared n · inner elements if there is a norm. Arguments: const T *x, const T *pending, const f32 *norm,
// T *sum, f32 eps, const T *w, y, i32 n, i32 inner, i32 outputs. `few` is for one row, `some` for up to 8; y is T, or f32 of `logits`.
#define PRODUCT(kernel, rows, gated, T, Out)                                                                                          \
  extern "C" __global__ void __launch_bounds__(BLOCK_WARPS * WARP) kernel(const T *x, const T *pending, const float *norm, T *sum, float eps, \
                                                                          const T *w, Out *y, int n, int inner, int outputs) {       \
    product<rows, gated>(x, pending, norm, sum, eps, w, y, n, inner, outputs);                                                         \
  }                                                                                                                                  \
  EXPORT(kernel)
#define PRODUCTS(T, name)                                           \
  PRODUCT(decode_product_one_##name, 1, false, T, T)                \
  PRODUCT(decode_product_some_##name, 8, false, T, T)               \
  PRODUCT(decode_gated_one_##name, 1, true, T, T)                   \
  PRODUCT(decode_gated_some_##name, 8, true, T, T)                  \
  PRODUCT(decode_logits_one_##name, 1, false, T, float)             \
  PRODUCT(decode_logits_some_##name, 8, false, T, float)
PRODUCTS(float, f32)
PRODUCTS(bf16, bf16)

// Rotates the pairs of a head of width d, from `x` to `to`.
template <class T>
__device__ inline void rotate(const T *x, T *to, const float *cos, const float *sin, int d) {
  const int half = d / 2;
  for (int i = threadIdx.x; i < half; i += blockDim.x) {
    const float a = load(x + i), b = load(x + half + i);
    store(to + i, a * cos[i] - b * sin[i]);
    store(to + half + i, b * cos[i] + a * sin[i]);
  }
}

// The cache up to the new position, whose key and value are not there yet.
template <class T>
struct Grown {
  Rows<T> kept;
  const T *last_key, *last_value;
  int last;
  __device__ const T *key(int i) const { return i == last ? last_key : kept.key(i); }
  __device__ const T *value(int i) const { return i == last ? last_value : kept.value(i); }
};

// A block for each query head: rotates query and key, attends to the cache and the new key, and, if it is the first head of its group, puts
// key and value into the cache. feed[0] is the position. qkv (b, (h + 2k) d), not yet rotated; out (b, h d).
template <class T>
__device__ inline void attend_next(const T *qkv, T *keys, T *values, const float *cos, const float *sin, const uint32_t *feed, T *out, int capacity,
                                   int h, int k, int d, float scale) {
  __shared__ __align__(16) T query_turned[MOST_DIMS], key_turned[MOST_DIMS];
  const int head = blockIdx.x, kv = head / (h / k), position = feed[0];
  const size_t sequence = blockIdx.y, width = size_t(h + 2 * k) * d, stride = size_t(k) * d;
  const T *const row = qkv + sequence * width, *const value = row + size_t(h + k + kv) * d;
  const float *const cosines = cos + size_t(position) * (d / 2), *const sines = sin + size_t(position) * (d / 2);
  rotate(row + size_t(head) * d, query_turned, cosines, sines, d);
  rotate(row + size_t(h + kv) * d, key_turned, cosines, sines, d);
  __syncthreads();
  const size_t first = sequence * capacity * stride + size_t(kv) * d;
  if (head % (h / k) == 0) {
    const size_t place = first + position * stride;
    for (int i = threadIdx.x; i < d; i += blockDim.x) keys[place + i] = key_turned[i], values[place + i] = value[i];
  }
  const Grown<T> rows = {{keys + first, values + first, stride}, key_turned, value, position};
  const Run all = {0, position + 1};
  attend<T>(query_turned, rows, 1, [&](int) { return all; }, d, scale, out + (sequence * h + head) * d, nullptr, nullptr);
}

// Grid h, b; block 32 w; shared (d + w (d + 2)) · 4; d <= 256. Arguments: const T *qkv, T *keys, T *values (b, capacity, k d), const f32 *cos,
// const f32 *sin (positions, d/2), const u32 *feed, T *out, i32 capacity, i32 h, i32 k, i32 d, f32 scale.
#define ATTEND_NEXT(T, name)                                                                                                              \
  extern "C" __global__ void decode_attend_##name(const T *qkv, T *keys, T *values, const float *cos, const float *sin, const uint32_t *feed, \
                                                  T *out, int capacity, int h, int k, int d, float scale) {                               \
    attend_next(qkv, keys, values, cos, sin, feed, out, capacity, h, k, d, scale);                                                        \
  }                                                                                                                                       \
  EXPORT(decode_attend_##name)
ATTEND_NEXT(float, f32)
ATTEND_NEXT(bf16, bf16)
