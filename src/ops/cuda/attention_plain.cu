// Attention with one query a block: f32 (for comparisons), and any type over a cache. What is computed, and how tensors lie: attention.cu.
#include "attend.cuh"

// Grid t, h, b; block 128; shared (5d + 8) · 4; d <= 256. Arguments: const f32 *qkv, const u32 *starts, f32 *out, f32 *lse, f32 *tops (null, or
// the largest logit of each query), i32 t, i32 h, i32 k, i32 d, f32 scale.
extern "C" __global__ void attention_forward_f32(const float *qkv, const uint32_t *starts, float *out, float *lse, float *tops, int t, int h,
                                                 int k, int d, float scale) {
  const int query = blockIdx.x, head = blockIdx.y;
  const size_t sequence = blockIdx.z, width = size_t(h + 2 * k) * d, row = sequence * t + query, place = (sequence * h + head) * t + query;
  const float *const keys = qkv + sequence * t * width + size_t(h + head / (h / k)) * d;
  const Run all = {starts ? int(starts[row]) : 0, query + 1};
  const Rows<float> rows = {keys, keys + size_t(k) * d, width};
  attend(qkv + row * width + size_t(head) * d, rows, 1, [&](int) { return all; }, d, scale, out + (row * h + head) * d, lse + place,
         tops ? tops + place : nullptr);
}
EXPORT(attention_forward_f32)

// Grid t, h, 1; block 128; shared as above. Arguments: const f32 *qkv, const u32 *tiles, const u32 *steps (see attention.cu's Line; a tile for
// each query, a step for each node), f32 *out, i32 t, i32 h, i32 k, i32 d, f32 scale.
extern "C" __global__ void attention_prefix_tree_f32(const float *qkv, const uint32_t *tiles, const uint32_t *steps, float *out, int t, int h, int k,
                                                int d, float scale) {
  const uint32_t *const tile = tiles + 4 * blockIdx.x, *const mine = steps + 2 * tile[2];
  const int query = tile[0], head = blockIdx.y, nodes = tile[3] - tile[2];
  const size_t width = size_t(h + 2 * k) * d;
  const float *const keys = qkv + size_t(h + head / (h / k)) * d;
  const auto run = [&](int i) { return Run{int(mine[2 * i]), min(int(mine[2 * i + 1]), query + 1)}; };
  const Rows<float> rows = {keys, keys + size_t(k) * d, width};
  attend(qkv + query * width + size_t(head) * d, rows, nodes, run, d, scale, out + (size_t(query) * h + head) * d, nullptr, nullptr);
}
EXPORT(attention_prefix_tree_f32)

// Grid t, h, b; block 32 w for any number w of warps up to 32 (4, or 8 for long caches); shared (d + w (d + 2)) · 4; d <= 256.
// Queries stand at positions start..start + t; keys and values (b, capacity, k d) hold at least start + t rows of each sequence, un-repeated.
// Arguments: const bf16 *q, const bf16 *keys, const bf16 *values, bf16 *out, i32 t, i32 start, i32 window (the last keys that a
// query sees), i32 capacity, i32 h, i32 k, i32 d, f32 scale.
template <class T>
__device__ inline void cached(const T *q, const T *keys, const T *values, T *out, int t, int start, int window, int capacity, int h, int k,
                              int d, float scale) {
  const int head = blockIdx.y;
  const size_t sequence = blockIdx.z, stride = size_t(k) * d, place = ((sequence * t + blockIdx.x) * h + head) * d;
  const size_t from = sequence * capacity * stride + size_t(head / (h / k)) * d;
  const int end = start + int(blockIdx.x) + 1;
  const Run all = {max(0, end - window), end};
  const Rows<T> rows = {keys + from, values + from, stride};
  attend(q + place, rows, 1, [&](int) { return all; }, d, scale, out + place, nullptr, nullptr);
}
extern "C" __global__ void attention_cached_bf16(const bf16 *q, const bf16 *keys, const bf16 *values, bf16 *out, int t, int start, int window,
                                                 int capacity, int h, int k, int d, float scale) {
  cached(q, keys, values, out, t, start, window, capacity, h, k, d, scale);
}
EXPORT(attention_cached_bf16)

// Same launch; const f32 *q, const f32 *keys, const f32 *values, f32 *out.
extern "C" __global__ void attention_cached_f32(const float *q, const float *keys, const float *values, float *out, int t, int start,
                                                int window, int capacity, int h, int k, int d, float scale) {
  cached(q, keys, values, out, t, start, window, capacity, h, k, d, scale);
}
EXPORT(attention_cached_f32)

// The two backward kernels below have one key or one query per block, take the other side 256 at a time with a thread each for P and dS, and
// then give each thread a dimension of the gradient.
//
// Grid t, k, b; block 256; shared 0; d <= 256. Arguments: const f32 *qkv, const u32 *starts, const f32 *dout, const f32 *lse, const f32 *delta,
// f32 *dqkv, i32 t, i32 h, i32 k, i32 d, f32 scale. Writes the keys' and values' columns of dqkv.
extern "C" __global__ void attention_backward_kv_f32(const float *qkv, const uint32_t *starts, const float *dout, const float *lse,
                                                     const float *delta, float *dqkv, int t, int h, int k, int d, float scale) {
  __shared__ float own_key[MOST_DIMS], own_value[MOST_DIMS], p[MOST_DIMS], ds[MOST_DIMS];
  const int key = blockIdx.x, kv = blockIdx.y, group = h / k, self = threadIdx.x;
  const size_t sequence = blockIdx.z, width = size_t(h + 2 * k) * d;
  const size_t place = (sequence * t + key) * width + size_t(h + kv) * d;
  if (starts) starts += sequence * t;
  if (self < d) own_key[self] = qkv[place + self], own_value[self] = qkv[place + size_t(k) * d + self];
  float dk = 0, dv = 0;
  for (int head = kv * group; head < (kv + 1) * group; head++) {
    const float *const queries = qkv + sequence * t * width + size_t(head) * d, *const douts = dout + (sequence * t * h + head) * d;
    const size_t row = (sequence * h + head) * t, dout_width = size_t(h) * d;
    for (int first = key; first < t && (!starts || int(starts[first]) <= key); first += MOST_DIMS) {
      __syncthreads();
      const int query = first + self;
      p[self] = ds[self] = 0;
      if (query < t && (!starts || int(starts[query]) <= key)) {
        float s = 0, dp = 0;
        for (int i = 0; i < d; i++) s += queries[query * width + i] * own_key[i], dp += douts[query * dout_width + i] * own_value[i];
        p[self] = expf(s * scale - lse[row + query]);
        ds[self] = p[self] * (dp - delta[row + query]) * scale;
      }
      __syncthreads();
      for (int i = 0; self < d && i < min(MOST_DIMS, t - first); i++) {
        dv += p[i] * douts[(first + i) * dout_width + self];
        dk += ds[i] * queries[(first + i) * width + self];
      }
    }
  }
  if (self < d) dqkv[place + self] = dk, dqkv[place + size_t(k) * d + self] = dv;
}
EXPORT(attention_backward_kv_f32)

// Grid t, h, b; block 256; shared 0; d <= 256. Arguments as attention_backward_kv_f32. Writes the queries' columns of dqkv.
extern "C" __global__ void attention_backward_q_f32(const float *qkv, const uint32_t *starts, const float *dout, const float *lse,
                                                    const float *delta, float *dqkv, int t, int h, int k, int d, float scale) {
  __shared__ float own_query[MOST_DIMS], own_dout[MOST_DIMS], ds[MOST_DIMS];
  const int query = blockIdx.x, head = blockIdx.y, self = threadIdx.x;
  const size_t sequence = blockIdx.z, width = size_t(h + 2 * k) * d, place = (sequence * t + query) * width + size_t(head) * d;
  const float *const keys = qkv + sequence * t * width + size_t(h + head / (h / k)) * d, *const values = keys + size_t(k) * d;
  const size_t row = (sequence * h + head) * t + query;
  if (self < d) own_query[self] = qkv[place + self], own_dout[self] = dout[((sequence * t + query) * h + head) * d + self];
  float dq = 0;
  for (int first = starts ? int(starts[sequence * t + query]) : 0; first <= query; first += MOST_DIMS) {
    __syncthreads();
    const int key = first + self;
    ds[self] = 0;
    if (key <= query) {
      float s = 0, dp = 0;
      for (int i = 0; i < d; i++) s += own_query[i] * keys[key * width + i], dp += own_dout[i] * values[key * width + i];
      ds[self] = expf(s * scale - lse[row]) * (dp - delta[row]) * scale;
    }
    __syncthreads();
    for (int i = 0; self < d && i < min(MOST_DIMS, query + 1 - first); i++) dq += ds[i] * keys[(first + i) * width + self];
  }
  if (self < d) dqkv[place + self] = dq;
}
EXPORT(attention_backward_q_f32)
