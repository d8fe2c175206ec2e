// Causal grouped-query attention that never holds its T x T scores (Dao 2023, FlashAttention-2), forward, backward and over a cache.
//
//   S = Q Kᵀ · scale,  P = softmax(S),  O = P V,  lse = log Σ exp(S)
//   δ = rowsum(dO · O),  P = exp(S - lse),  dV = Pᵀ dO,  dS = P · (dO Vᵀ - δ) · scale,  dQ = dS K,  dK = dSᵀ Q
//
// A sequence's rows are packed, (h query heads ‖ k key heads ‖ k value heads) of width d, already rotated; query head j uses key/value head
// j / (h/k). Query i sees keys starts[i]..=i (documents; starts rise and starts[i] <= i), without starts 0..=i. scale = 1/√d.
//
//   qkv, dqkv (b, t, (h + 2k) d)   out, dout (b, t, h d)   lse, delta f32 (b, h, t)   starts null or u32 (b, t)
//
// t is any number from 1. Pointers are aligned to 16 bytes. All sums have a fixed order: a block owns what it writes, no atomics.
// Products take bf16 (P and dS are rounded to it) and sum in f32; softmax is f32.
//
//   kernel                                   grid                 block  dynamic shared bytes
//   attention_forward_d64_bf16               ⌈t/128⌉, h, b        128    49152
//   attention_forward_d128_bf16              ⌈t/128⌉, h, b        128    98304   (over 48 KB: raise the kernel's limit first)
//   attention_delta_{bf16,f32}               ⌈t/4⌉, h, b          128    0
//   attention_backward_kv_d64_bf16           ⌈t/128⌉, k, b        128    49920   (over 48 KB)
//   attention_backward_kv_d128_bf16          ⌈t/64⌉, k, b         128    99840   (over 48 KB)
//   attention_backward_q_d64_bf16            ⌈t/128⌉, h, b        128    65536   (over 48 KB)
//   attention_backward_q_d128_bf16           ⌈t/64⌉, h, b         128    98304   (over 48 KB)
//   attention_forward_f32                    t, h, b              128    (5d + 8) · 4
//   attention_backward_{kv,q}_f32            t, {k,h}, b          256    0
//   attention_cached_{bf16,f32}              t, h, b              32w    (d + w (d + 2)) · 4, any number w of warps up to 32
#include "common.cuh"

constexpr int WARPS = 4, THREADS = WARPS * WARP;
constexpr float LOG2_E = 1.4426950408889634f;

// 2^x in one instruction; results under 2^-126 are 0.
__device__ inline float power2(float x) {
#ifdef LLAMA_LITE_EMULATED
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// ---- Tiles of bf16 in shared memory ----------------------------------------------------------------------------------------------------
//
// Rows of D without gaps. The chunks (8 numbers, 16 bytes) of a row change places by its number, so that the same chunk of 8 neighbouring
// rows, which ldmatrix reads at once, lies in different banks.
template <int D>
__device__ inline bf16 *at(bf16 *tile, int row, int chunk) {
  return tile + row * D + (chunk ^ row % 8) * 8;
}

// Starts to copy rows first..first + ROWS of a head of width D, `stride` apart in memory; zeros where t ends.
template <int D, int ROWS>
__device__ inline void fetch(bf16 *tile, const bf16 *from, size_t stride, int first, int t) {
  constexpr int CHUNKS = D / 8, STEP = THREADS / CHUNKS;
  static_assert(ROWS % STEP == 0 && STEP % 8 == 0, "a thread copies the same chunk of each of its rows, to the same place in them");
  const int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
  bf16 *const to = at<D>(tile, row, chunk);
  const bf16 *next = from + size_t(first + row) * stride + chunk * 8;
#pragma unroll
  for (int i = 0; i < ROWS; i += STEP, next += STEP * stride) {
    const bool valid = first + row + i < t;
    cp_async_16(to + i * D, valid ? next : from, valid);
  }
}

template <int M, int N>
__device__ inline void clear(float (&x)[M][N][4]) {
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int n = 0; n < N; n++) x[m][n][0] = x[m][n][1] = x[m][n][2] = x[m][n][3] = 0;
}

// s = A Bᵀ for rows row..row + 16 M of A (the warp's) and all N rows of B. A lane holds of each 16 x 8 piece, as mma_16x8x16 has it,
// rows lane / 4 (elements 0 and 1) and lane / 4 + 8 (2 and 3), columns lane % 4 * 2 (0 and 2) and the next one (1 and 3).
template <int D, int M, int N>
__device__ inline void scores(float (&s)[M][N / 8][4], bf16 *a, int row, bf16 *b) {
  const int lane = threadIdx.x % WARP;
  clear(s);
#pragma unroll
  for (int k = 0; k < D / 16; k++) {
    uint32_t left[M][4];
#pragma unroll
    for (int m = 0; m < M; m++) ldmatrix_x4(left[m], at<D>(a, row + m * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
    for (int n = 0; n < N / 16; n++) {
      uint32_t right[4];
      ldmatrix_x4(right, at<D>(b, n * 16 + lane % 8 + lane / 16 * 8, k * 2 + lane / 8 % 2));
      const uint32_t low[2] = {right[0], right[1]}, high[2] = {right[2], right[3]};
#pragma unroll
      for (int m = 0; m < M; m++) mma_16x8x16(s[m][2 * n], left[m], low), mma_16x8x16(s[m][2 * n + 1], left[m], high);
    }
  }
}

// sum += P B for the warp's P, laid out as by `scores` and rounded to bf16, and all N rows of B: what a lane has of a product's result is what
// it needs as the left side of the next one.
template <int D, int M, int N>
__device__ inline void accumulate(float (&sum)[M][D / 8][4], const float (&p)[M][N / 8][4], bf16 *b) {
  const int lane = threadIdx.x % WARP;
#pragma unroll
  for (int k = 0; k < N / 16; k++) {
    uint32_t left[M][4];
#pragma unroll
    for (int m = 0; m < M; m++) {
      const float(&x)[4] = p[m][2 * k], (&y)[4] = p[m][2 * k + 1];
      left[m][0] = pack(x[0], x[1]), left[m][1] = pack(x[2], x[3]), left[m][2] = pack(y[0], y[1]), left[m][3] = pack(y[2], y[3]);
    }
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
      uint32_t right[4];
      ldmatrix_x4_trans(right, at<D>(b, k * 16 + lane % 16, n * 2 + lane / 16));
      const uint32_t low[2] = {right[0], right[1]}, high[2] = {right[2], right[3]};
#pragma unroll
      for (int m = 0; m < M; m++) mma_16x8x16(sum[m][2 * n], left[m], low), mma_16x8x16(sum[m][2 * n + 1], left[m], high);
    }
  }
}

// Writes the warp's 16 M rows, multiplied by `factor` row by row, to rows first.. of a head in memory, as far as t goes. They pass through
// rows row.. of `tile`, which no other warp uses any more, to be written 16 bytes at a time.
template <int D, int M>
__device__ inline void write_rows(const float (&x)[M][D / 8][4], const float (&factor)[M][2], bf16 *tile, int row, bf16 *to, size_t stride,
                                  int first, int t) {
  constexpr int CHUNKS = D / 8;
  const int lane = threadIdx.x % WARP;
  __syncwarp();
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int n = 0; n < CHUNKS; n++) {
        const uint32_t two = pack(x[m][n][2 * half] * factor[m][half], x[m][n][2 * half + 1] * factor[m][half]);
        reinterpret_cast<uint32_t *>(at<D>(tile, row + m * 16 + half * 8 + lane / 4, n))[lane % 4] = two;
      }
  __syncwarp();
#pragma unroll 4
  for (int i = lane; i < 16 * M * CHUNKS; i += WARP) {
    const int r = i / CHUNKS, chunk = i % CHUNKS;
    if (first + r >= t) break;
    *reinterpret_cast<uint4 *>(to + size_t(first + r) * stride + chunk * 8) = *reinterpret_cast<const uint4 *>(at<D>(tile, row + r, chunk));
  }
}

// A sum or maximum over the four lanes that share a row.
__device__ inline float row_sum(float x) {
  x += __shfl_xor_sync(ALL, x, 1);
  return x + __shfl_xor_sync(ALL, x, 2);
}
__device__ inline float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(ALL, x, 1));
  return fmaxf(x, __shfl_xor_sync(ALL, x, 2));
}

// Sets the scores to -inf of keys that their query does not see: the warp's queries from `own` on, keys from `key` on.
template <int M, int N>
__device__ inline void hide(float (&s)[M][N / 8][4], const uint32_t *starts, int own, int key, int t) {
  const int lane = threadIdx.x % WARP, origin = key + lane % 4 * 2;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      // What the query sees, counted from the lane's first key.
      const int query = own + m * 16 + half * 8 + lane / 4, start = starts ? int(starts[min(query, t - 1)]) : 0;
      const int low = start - origin, high = query - origin;
#pragma unroll
      for (int n = 0; n < N / 8; n++)
#pragma unroll
        for (int i = 0; i < 2; i++)
          if (n * 8 + i < low || n * 8 + i > high) s[m][n][2 * half + i] = -INFINITY;
    }
}

// ---- Forward in bf16 -------------------------------------------------------------------------------------------------------------------
//
// A warp owns 16 M queries, a block four times as many. Keys and values come N at a time; while a tile is at work the next one is on its way.
// Shared: queries, two (keys, values): 2 D (64 M + 4 N) bytes.
template <int D, int M, int N>
__device__ inline void forward(const bf16 *qkv, const uint32_t *starts, bf16 *out, float *lse, int t, int h, int k, float scale) {
  constexpr int OWN = 16 * M, QUERIES = WARPS * OWN;
  SHARED(bf16, queries);
  bf16 *const stages = queries + QUERIES * D;
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, head = blockIdx.y;
  // The last queries see the most keys: they go first, so that no long block is left at the end.
  const int first = int(gridDim.x - 1 - blockIdx.x) * QUERIES, own = first + warp * OWN;
  const size_t width = size_t(h + 2 * k) * D, sequence = blockIdx.z;
  const bf16 *const rows = qkv + sequence * t * width, *const keys = rows + size_t(h + head / (h / k)) * D;
  if (starts) starts += sequence * t;

  const int last_query = min(first + QUERIES, t) - 1, from = starts ? int(starts[first]) / N : 0, to = last_query / N + 1;
  const int last_start = starts ? int(starts[last_query]) : 0;
  float sum[M][D / 8][4], most[M][2], total[M][2];
  clear(sum);
#pragma unroll
  for (int m = 0; m < M; m++) most[m][0] = most[m][1] = -INFINITY, total[m][0] = total[m][1] = 0;

  const auto fetch_keys = [&](int tile) {
    bf16 *const stage = stages + tile % 2 * (2 * N * D);
    fetch<D, N>(stage, keys, width, tile * N, t);
    fetch<D, N>(stage + N * D, keys + size_t(k) * D, width, tile * N, t);
    cp_async_commit();
  };
  fetch<D, QUERIES>(queries, rows + size_t(head) * D, width, first, t);
  fetch_keys(from);
  for (int tile = from; tile < to; tile++) {
    // This tile is there and all warps have left the one before, whose place the next one takes.
    cp_async_wait<0>();
    __syncthreads();
    if (tile + 1 < to) fetch_keys(tile + 1);
    const int key = tile * N;
    if (key >= own + OWN) continue;
    bf16 *const stage = stages + tile % 2 * (2 * N * D);
    float s[M][N / 8][4];
    scores<D, M, N>(s, queries, warp * OWN, stage);
    if (key + N - 1 > own || key < last_start) hide<M, N>(s, starts, own, key, t);
    // Powers of 2 instead of e: the factor goes into `scale`.
    const float scale2 = scale * LOG2_E;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float top = most[m][half];
#pragma unroll
        for (int n = 0; n < N / 8; n++) top = fmaxf(top, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
        top = row_max(top);
        // A query may not have seen any key yet.
        const float base = top == -INFINITY ? 0.0f : top * scale2, correction = power2(most[m][half] * scale2 - base);
        most[m][half] = top;
        total[m][half] *= correction;
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; i++) {
            s[m][n][i] = power2(s[m][n][i] * scale2 - base);
            total[m][half] += s[m][n][i];
          }
#pragma unroll
        for (int n = 0; n < D / 8; n++) sum[m][n][2 * half] *= correction, sum[m][n][2 * half + 1] *= correction;
      }
    accumulate<D, M, N>(sum, s, stage + N * D);
  }

  float factor[M][2];
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float all = row_sum(total[m][half]);
      const int query = own + m * 16 + half * 8 + lane / 4;
      factor[m][half] = 1.0f / all;
      if (lane % 4 == 0 && query < t) lse[(sequence * h + head) * t + query] = most[m][half] * scale + logf(all);
    }
  write_rows<D, M>(sum, factor, queries, warp * OWN, out + (sequence * t * h + head) * D, size_t(h) * D, own, t);
}

// Grid ⌈t/128⌉, h, b; block 128; shared 49152. Arguments: const bf16 *qkv, const u32 *starts, bf16 *out, f32 *lse, i32 t, i32 h, i32 k,
// f32 scale.
extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_forward_d64_bf16(const bf16 *qkv, const uint32_t *starts, bf16 *out,
                                                                                   float *lse, int t, int h, int k, float scale) {
  forward<64, 2, 64>(qkv, starts, out, lse, t, h, k, scale);
}
EXPORT(attention_forward_d64_bf16)

// Grid ⌈t/128⌉, h, b; block 128; shared 98304. Arguments as above.
extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_forward_d128_bf16(const bf16 *qkv, const uint32_t *starts, bf16 *out,
                                                                                    float *lse, int t, int h, int k, float scale) {
  forward<128, 2, 64>(qkv, starts, out, lse, t, h, k, scale);
}
EXPORT(attention_forward_d128_bf16)

// ---- Backward in bf16 ------------------------------------------------------------------------------------------------------------------

// One warp for a query of a head.
template <class T>
__device__ inline void delta_of(const T *out, const T *dout, float *delta, int t, int h, int d) {
  const int query = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, head = blockIdx.y, lane = threadIdx.x % WARP;
  if (query >= t) return;
  const size_t sequence = blockIdx.z, from = ((sequence * t + query) * h + head) * d;
  float sum = 0;
  for (int i = lane; i < d; i += WARP) sum += load(out + from + i) * load(dout + from + i);
  sum = warp_sum(sum);
  if (lane == 0) delta[(sequence * h + head) * t + query] = sum;
}

// Grid ⌈t/4⌉, h, b; block 128; shared 0. Arguments: const bf16 *out, const bf16 *dout, f32 *delta, i32 t, i32 h, i32 d.
extern "C" __global__ void attention_delta_bf16(const bf16 *out, const bf16 *dout, float *delta, int t, int h, int d) {
  delta_of(out, dout, delta, t, h, d);
}
EXPORT(attention_delta_bf16)

// Same launch; const f32 *out, const f32 *dout.
extern "C" __global__ void attention_delta_f32(const float *out, const float *dout, float *delta, int t, int h, int d) {
  delta_of(out, dout, delta, t, h, d);
}
EXPORT(attention_delta_f32)

// A warp owns 16 M keys of one key/value head, a block four times as many, and takes the queries that see them N at a time, head by head of
// the group. With keys as rows, Pᵀ and dSᵀ come out of their products as the next ones take them: warps need nothing of each other.
// Shared: keys, values, two (queries, dO), two (lse, δ, starts): 4 D (64 M + 2 N) + 24 N bytes.
template <int D, int M, int N>
__device__ inline void backward_kv(const bf16 *qkv, const uint32_t *starts, const bf16 *dout, const float *lse, const float *delta, bf16 *dqkv,
                                   int t, int h, int k, float scale) {
  constexpr int OWN = 16 * M, KEYS = WARPS * OWN;
  static_assert(KEYS % N == 0 && N <= THREADS, "query tiles begin where key tiles do; a thread for each query's numbers");
  SHARED(bf16, keys);
  bf16 *const values = keys + KEYS * D, *const stages = values + KEYS * D;
  float *const numbers = reinterpret_cast<float *>(stages + 4 * N * D);
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, kv = blockIdx.y, group = h / k;
  const int first = blockIdx.x * KEYS, own = first + warp * OWN;
  const size_t width = size_t(h + 2 * k) * D, sequence = blockIdx.z;
  const bf16 *const rows = qkv + sequence * t * width;
  const size_t key_column = size_t(h + kv) * D, value_column = size_t(h + k + kv) * D;
  if (starts) starts += sequence * t;

  // Query tiles from..to see a key of the block: those whose first query does not begin after its last key. Starts rise, so halving finds `to`.
  const int from = first / N;
  int to = (t + N - 1) / N;
  for (int low = from; starts && to - low > 1;) {
    const int middle = (low + to) / 2;
    if (int(starts[middle * N]) < first + KEYS) low = middle;
    else to = middle;
  }

  float dk[M][D / 8][4], dv[M][D / 8][4];
  clear(dk), clear(dv);

  const int steps = group * (to - from);
  const auto fetch_queries = [&](int step) {
    const int head = kv * group + step / (to - from), query = (from + step % (to - from)) * N;
    bf16 *const stage = stages + step % 2 * (2 * N * D);
    fetch<D, N>(stage, rows + size_t(head) * D, width, query, t);
    fetch<D, N>(stage + N * D, dout + (sequence * t * h + head) * D, size_t(h) * D, query, t);
    if (threadIdx.x < N) {
      // Where t ends, zeros in Q and dO make P and dS harmless; no number of a query past it is read.
      const int i = threadIdx.x;
      const bool valid = query + i < t;
      const size_t row = (sequence * h + head) * t + (valid ? query + i : 0);
      float *const to_numbers = numbers + step % 2 * (3 * N) + i;
      cp_async_4(to_numbers, lse + row, valid);
      cp_async_4(to_numbers + N, delta + row, valid);
      if (starts) cp_async_4(to_numbers + 2 * N, starts + (valid ? query + i : 0), valid);
    }
    cp_async_commit();
  };
  fetch<D, KEYS>(keys, rows + key_column, width, first, t);
  fetch<D, KEYS>(values, rows + value_column, width, first, t);
  fetch_queries(0);
  for (int step = 0; step < steps; step++) {
    cp_async_wait<0>();
    __syncthreads();
    if (step + 1 < steps) fetch_queries(step + 1);
    const int query = (from + step % (to - from)) * N;
    if (query + N <= own) continue;
    bf16 *const stage = stages + step % 2 * (2 * N * D);
    const float *const lses = numbers + step % 2 * (3 * N), *const deltas = lses + N;
    const uint32_t *const begins = reinterpret_cast<const uint32_t *>(lses + 2 * N);
    float p[M][N / 8][4];
    scores<D, M, N>(p, keys, warp * OWN, stage);
    const float scale2 = scale * LOG2_E;
#pragma unroll
    for (int n = 0; n < N / 8; n++) {
      const int column = n * 8 + lane % 4 * 2;
      const float base[2] = {lses[column] * LOG2_E, lses[column + 1] * LOG2_E};
#pragma unroll
      for (int m = 0; m < M; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) p[m][n][i] = power2(p[m][n][i] * scale2 - base[i % 2]);
    }
    if (query < own + OWN - 1 || (starts && int(begins[min(N, t - query) - 1]) > own)) {
      const int origin = own + lane / 4;
#pragma unroll
      for (int n = 0; n < N / 8; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          // What the query sees, counted from the lane's first key.
          const int column = n * 8 + lane % 4 * 2 + i, low = (starts ? int(begins[column]) : 0) - origin, high = query + column - origin;
#pragma unroll
          for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++)
              if (m * 16 + half * 8 < low || m * 16 + half * 8 > high) p[m][n][2 * half + i] = 0;
        }
    }
    accumulate<D, M, N>(dv, p, stage + N * D);
    float dp[M][N / 8][4];
    scores<D, M, N>(dp, values, warp * OWN, stage + N * D);
#pragma unroll
    for (int n = 0; n < N / 8; n++) {
      const int column = n * 8 + lane % 4 * 2;
      const float less[2] = {deltas[column], deltas[column + 1]};
#pragma unroll
      for (int m = 0; m < M; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) p[m][n][i] *= dp[m][n][i] - less[i % 2];
    }
    accumulate<D, M, N>(dk, p, stage);
  }

  // dS was summed without its scale.
  float scales[M][2], ones[M][2];
#pragma unroll
  for (int m = 0; m < M; m++) scales[m][0] = scales[m][1] = scale, ones[m][0] = ones[m][1] = 1;
  bf16 *const drows = dqkv + sequence * t * width;
  write_rows<D, M>(dk, scales, keys, warp * OWN, drows + key_column, width, own, t);
  write_rows<D, M>(dv, ones, values, warp * OWN, drows + value_column, width, own, t);
}

// Grid ⌈t/128⌉, k, b; block 128; shared 49920. Arguments: const bf16 *qkv, const u32 *starts, const bf16 *dout, const f32 *lse,
// const f32 *delta, bf16 *dqkv, i32 t, i32 h, i32 k, f32 scale. Writes the keys' and values' columns of dqkv.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_backward_kv_d64_bf16(const bf16 *qkv, const uint32_t *starts, const bf16 *dout, const float *lse, const float *delta, bf16 *dqkv,
                                   int t, int h, int k, float scale) {
  backward_kv<64, 2, 32>(qkv, starts, dout, lse, delta, dqkv, t, h, k, scale);
}
EXPORT(attention_backward_kv_d64_bf16)

// Grid ⌈t/64⌉, k, b; block 128; shared 99840. Arguments as above.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_backward_kv_d128_bf16(const bf16 *qkv, const uint32_t *starts, const bf16 *dout, const float *lse, const float *delta, bf16 *dqkv,
                                    int t, int h, int k, float scale) {
  backward_kv<128, 1, 64>(qkv, starts, dout, lse, delta, dqkv, t, h, k, scale);
}
EXPORT(attention_backward_kv_d128_bf16)

// A warp owns 16 M queries, as forward. Shared: queries, dO, two (keys, values): 4 D (64 M + 2 N) bytes.
template <int D, int M, int N>
__device__ inline void backward_q(const bf16 *qkv, const uint32_t *starts, const bf16 *dout, const float *lse, const float *delta, bf16 *dqkv,
                                  int t, int h, int k, float scale) {
  constexpr int OWN = 16 * M, QUERIES = WARPS * OWN;
  SHARED(bf16, queries);
  bf16 *const douts = queries + QUERIES * D, *const stages = douts + QUERIES * D;
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, head = blockIdx.y;
  const int first = int(gridDim.x - 1 - blockIdx.x) * QUERIES, own = first + warp * OWN;
  const size_t width = size_t(h + 2 * k) * D, sequence = blockIdx.z;
  const bf16 *const rows = qkv + sequence * t * width, *const keys = rows + size_t(h + head / (h / k)) * D;
  if (starts) starts += sequence * t;

  const int last_query = min(first + QUERIES, t) - 1, from = starts ? int(starts[first]) / N : 0, to = last_query / N + 1;
  const int last_start = starts ? int(starts[last_query]) : 0;
  float dq[M][D / 8][4], base[M][2], less[M][2], scales[M][2];
  clear(dq);
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int query = own + m * 16 + half * 8 + lane / 4;
      const size_t row = (sequence * h + head) * t + query;
      base[m][half] = query < t ? lse[row] * LOG2_E : 0, less[m][half] = query < t ? delta[row] : 0, scales[m][half] = scale;
    }

  const auto fetch_keys = [&](int tile) {
    bf16 *const stage = stages + tile % 2 * (2 * N * D);
    fetch<D, N>(stage, keys, width, tile * N, t);
    fetch<D, N>(stage + N * D, keys + size_t(k) * D, width, tile * N, t);
    cp_async_commit();
  };
  fetch<D, QUERIES>(queries, rows + size_t(head) * D, width, first, t);
  fetch<D, QUERIES>(douts, dout + (sequence * t * h + head) * D, size_t(h) * D, first, t);
  fetch_keys(from);
  for (int tile = from; tile < to; tile++) {
    cp_async_wait<0>();
    __syncthreads();
    if (tile + 1 < to) fetch_keys(tile + 1);
    const int key = tile * N;
    if (key >= own + OWN) continue;
    bf16 *const stage = stages + tile % 2 * (2 * N * D);
    float p[M][N / 8][4], dp[M][N / 8][4];
    scores<D, M, N>(p, queries, warp * OWN, stage);
    scores<D, M, N>(dp, douts, warp * OWN, stage + N * D);
    if (key + N - 1 > own || key < last_start) hide<M, N>(p, starts, own, key, t);
    const float scale2 = scale * LOG2_E;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int n = 0; n < N / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) p[m][n][i] = power2(p[m][n][i] * scale2 - base[m][i / 2]) * (dp[m][n][i] - less[m][i / 2]);
    accumulate<D, M, N>(dq, p, stage);
  }
  write_rows<D, M>(dq, scales, queries, warp * OWN, dqkv + sequence * t * width + size_t(head) * D, width, own, t);
}

// Grid ⌈t/128⌉, h, b; block 128; shared 65536. Arguments as attention_backward_kv_d64_bf16. Writes the queries' columns of dqkv.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_backward_q_d64_bf16(const bf16 *qkv, const uint32_t *starts, const bf16 *dout, const float *lse, const float *delta, bf16 *dqkv,
                                  int t, int h, int k, float scale) {
  backward_q<64, 2, 64>(qkv, starts, dout, lse, delta, dqkv, t, h, k, scale);
}
EXPORT(attention_backward_q_d64_bf16)

// Grid ⌈t/64⌉, h, b; block 128; shared 98304. Arguments as above.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_backward_q_d128_bf16(const bf16 *qkv, const uint32_t *starts, const bf16 *dout, const float *lse, const float *delta, bf16 *dqkv,
                                   int t, int h, int k, float scale) {
  backward_q<128, 1, 64>(qkv, starts, dout, lse, delta, dqkv, t, h, k, scale);
}
EXPORT(attention_backward_q_d128_bf16)

// ---- One query per block: f32, and decoding --------------------------------------------------------------------------------------------

constexpr int MOST_DIMS = 256;

// One query over keys from..to, whose rows and whose values' rows are `stride` apart. Warps take 32 keys in turn, a lane each for the scores;
// then lanes own dimensions. Each warp has its own online softmax; they meet at the end, in order. Shared: the query, and of each warp the
// maximum, the sum and the output: d + warps (d + 2) floats. Null `lse`: not wanted.
template <class T>
__device__ inline void attend(const T *q, const T *keys, const T *values, size_t stride, int from, int to, int d, float scale, T *out,
                              float *lse) {
  SHARED(float, query);
  const int warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  for (int i = threadIdx.x; i < d; i += blockDim.x) query[i] = load(q + i);
  __syncthreads();
  float most = -INFINITY, total = 0, sum[MOST_DIMS / WARP] = {};
  for (int first = from + warp * WARP; first < to; first += warps * WARP) {
    const int count = min(WARP, to - first);
    float s = -INFINITY;
    if (lane < count) {
      const T *const key = keys + size_t(first + lane) * stride;
      float dot = 0;
      int i = 0;
      // Rows are multiples of d apart.
      for (; d % 8 == 0 && i < d; i += 8) {
        const Eight e = load8(key + i);
#pragma unroll
        for (int j = 0; j < 8; j++) dot += query[i + j] * e.x[j];
      }
      for (; i < d; i++) dot += query[i] * load(key + i);
      s = dot * scale;
    }
    const float top = fmaxf(most, warp_max(s)), correction = expf(most - top), p = expf(s - top);
    most = top, total = total * correction + warp_sum(p);
#pragma unroll
    for (int i = 0; i < MOST_DIMS / WARP; i++) sum[i] *= correction;
#pragma unroll 4
    for (int j = 0; j < count; j++) {
      const float weight = __shfl_sync(ALL, p, j);
      const T *const value = values + size_t(first + j) * stride;
#pragma unroll
      for (int i = 0; i < MOST_DIMS / WARP; i++)
        if (i * WARP + lane < d) sum[i] += weight * load(value + i * WARP + lane);
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
  if (lse && threadIdx.x == 0) *lse = top + logf(all);
}

// Grid t, h, b; block 128; shared (5d + 8) · 4; d <= 256. Arguments: const f32 *qkv, const u32 *starts, f32 *out, f32 *lse, i32 t, i32 h,
// i32 k, i32 d, f32 scale.
extern "C" __global__ void attention_forward_f32(const float *qkv, const uint32_t *starts, float *out, float *lse, int t, int h, int k, int d,
                                                 float scale) {
  const int query = blockIdx.x, head = blockIdx.y;
  const size_t sequence = blockIdx.z, width = size_t(h + 2 * k) * d, row = sequence * t + query;
  const float *const keys = qkv + sequence * t * width + size_t(h + head / (h / k)) * d;
  attend(qkv + row * width + size_t(head) * d, keys, keys + size_t(k) * d, width, starts ? int(starts[row]) : 0, query + 1, d, scale,
         out + (row * h + head) * d, lse + (sequence * h + head) * t + query);
}
EXPORT(attention_forward_f32)

// Grid t, h, b; block 32 w for any number w of warps up to 32 (4, or 8 for long caches); shared (d + w (d + 2)) · 4; d <= 256.
// Queries stand at positions start..start + t; keys and values (b, capacity, k d) hold at least start + t rows of each sequence, un-repeated.
// Arguments: const bf16 *q, const bf16 *keys, const bf16 *values, bf16 *out, i32 t, i32 start, i32 capacity, i32 h, i32 k, i32 d, f32 scale.
template <class T>
__device__ inline void cached(const T *q, const T *keys, const T *values, T *out, int t, int start, int capacity, int h, int k, int d,
                              float scale) {
  const int head = blockIdx.y;
  const size_t sequence = blockIdx.z, stride = size_t(k) * d, place = ((sequence * t + blockIdx.x) * h + head) * d;
  const size_t from = sequence * capacity * stride + size_t(head / (h / k)) * d;
  attend(q + place, keys + from, values + from, stride, 0, start + int(blockIdx.x) + 1, d, scale, out + place, static_cast<float *>(nullptr));
}
extern "C" __global__ void attention_cached_bf16(const bf16 *q, const bf16 *keys, const bf16 *values, bf16 *out, int t, int start, int capacity,
                                                 int h, int k, int d, float scale) {
  cached(q, keys, values, out, t, start, capacity, h, k, d, scale);
}
EXPORT(attention_cached_bf16)

// Same launch; const f32 *q, const f32 *keys, const f32 *values, f32 *out.
extern "C" __global__ void attention_cached_f32(const float *q, const float *keys, const float *values, float *out, int t, int start,
                                                int capacity, int h, int k, int d, float scale) {
  cached(q, keys, values, out, t, start, capacity, h, k, d, scale);
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
