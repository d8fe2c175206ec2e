// Causal grouped-query attention that never holds its T x T scores (Dao 2023, FlashAttention-2), forward and backward, and over the nodes of a
// tree. Kernels with one query a block, for f32 and over a cache, are in attention_plain.cu.
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
//   attention_prefix_tree_d64_bf16                tiles, h, 1          128    40960
//   attention_prefix_tree_d128_bf16               tiles, h, 1          128    81920   (over 48 KB)
//   attention_delta_{bf16,f32}               ⌈t/4⌉, h, b          128    0
//   attention_backward_kv_d64_bf16           ⌈t/128⌉, k, b        128    49920   (over 48 KB)
//   attention_backward_kv_d128_bf16          ⌈t/64⌉, k, b         128    99840   (over 48 KB)
//   attention_backward_q_d64_bf16            ⌈t/128⌉, h, b        128    65536   (over 48 KB)
//   attention_backward_q_d128_bf16           ⌈t/64⌉, h, b         128    98304   (over 48 KB)
//   attention_{forward,prefix_tree}_f32           t, h, {b,1}          128    (5d + 8) · 4
//   attention_backward_{kv,q}_f32            t, {k,h}, b          256    0
//   attention_cached_{bf16,f32}              t, h, b              32w    (d + w (d + 2)) · 4, any number w of warps up to 32
#include "attention_tiles.cuh"

// ---- Forward in bf16 -------------------------------------------------------------------------------------------------------------------
//
// The keys of a block's queries, N at a time: rows from `key` on, those before `end`.
struct Keys {
  int key, end;
};

// A sequence's keys up to the last query's, from the first query's document on.
template <int N>
struct Sequence {
  static constexpr bool ENDS = false;
  int first, last, from, to, last_start;
  const uint32_t *starts;
  __device__ Sequence(const uint32_t *starts, int queries, int t) : last(t), starts(starts) {
    // The last queries see the most keys: they go first, so that no long block is left at the end.
    first = int(gridDim.x - 1 - blockIdx.x) * queries;
    const int last_query = min(first + queries, t) - 1;
    from = starts ? int(starts[first]) / N : 0, to = last_query / N + 1;
    last_start = starts ? int(starts[last_query]) : 0;
  }
  __device__ Keys at(int step) const { return {step * N, last}; }
};

// What a tile of a node of a prefix tree sees: the nodes above it and its own. tiles: (first query, end of its node, first step, end of the steps);
// steps: (first key, end of its node).
struct Line {
  static constexpr bool ENDS = true;
  static constexpr int last_start = 0;
  static constexpr const uint32_t *starts = nullptr;
  int first, last, from, to;
  const uint32_t *steps;
  __device__ Line(const uint32_t *tiles, const uint32_t *steps) : steps(steps) {
    const uint32_t *const tile = tiles + 4 * blockIdx.x;
    first = tile[0], last = tile[1], from = tile[2], to = tile[3];
  }
  __device__ Keys at(int step) const { return {int(steps[2 * step]), int(steps[2 * step + 1])}; }
};

// A warp owns 16 M queries, a block four times as many. Keys and values come N at a time; while a tile is at work the next one is on its way.
// Null `lse`, `tops`: not wanted; tops are the largest logits. Shared: queries, two (keys, values): 2 D (64 M + 4 N) bytes.
template <int D, int M, int N, class Seen>
__device__ inline void forward(const bf16 *qkv, const Seen &seen, bf16 *out, float *lse, float *tops, int t, int h, int k, float scale) {
  constexpr int OWN = 16 * M, QUERIES = WARPS * OWN;
  SHARED(bf16, queries);
  bf16 *const stages = queries + QUERIES * D;
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, head = blockIdx.y, own = seen.first + warp * OWN;
  const size_t width = size_t(h + 2 * k) * D, sequence = blockIdx.z;
  const bf16 *const rows = qkv + sequence * t * width, *const keys = rows + size_t(h + head / (h / k)) * D;
  float sum[M][D / 8][4], most[M][2], total[M][2];
  clear(sum);
#pragma unroll
  for (int m = 0; m < M; m++) most[m][0] = most[m][1] = -INFINITY, total[m][0] = total[m][1] = 0;

  const auto fetch_keys = [&](int step) {
    bf16 *const stage = stages + step % 2 * (2 * N * D);
    const Keys next = seen.at(step);
    fetch<D, N>(stage, keys, width, next.key, next.end);
    fetch<D, N>(stage + N * D, keys + size_t(k) * D, width, next.key, next.end);
    cp_async_commit();
  };
  fetch<D, QUERIES>(queries, rows + size_t(head) * D, width, seen.first, seen.last);
  fetch_keys(seen.from);
  for (int step = seen.from; step < seen.to; step++) {
    // This tile is there and all warps have left the one before, whose place the next one takes.
    cp_async_wait<0>();
    __syncthreads();
    if (step + 1 < seen.to) fetch_keys(step + 1);
    const auto [key, end] = seen.at(step);
    if (key >= own + OWN) continue;
    bf16 *const stage = stages + step % 2 * (2 * N * D);
    float s[M][N / 8][4];
    scores<D, M, N>(s, queries, warp * OWN, stage);
    if (key + N - 1 > own || key < seen.last_start || (Seen::ENDS && key + N > end)) hide<Seen::ENDS, M, N>(s, seen.starts, own, key, end, t);
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
      if (lane % 4 || query >= seen.last) continue;
      if (lse) lse[(sequence * h + head) * t + query] = most[m][half] * scale + logf(all);
      if (tops) tops[(sequence * h + head) * t + query] = most[m][half] * scale;
    }
  write_rows<D, M>(sum, factor, queries, warp * OWN, out + (sequence * t * h + head) * D, size_t(h) * D, own, seen.last);
}

template <int D, int M, int N>
__device__ inline void forward_of_sequences(const bf16 *qkv, const uint32_t *starts, bf16 *out, float *lse, float *tops, int t, int h, int k,
                                            float scale) {
  const Sequence<N> seen(starts ? starts + size_t(blockIdx.z) * t : nullptr, WARPS * 16 * M, t);
  forward<D, M, N>(qkv, seen, out, lse, tops, t, h, k, scale);
}

// Grid ⌈t/128⌉, h, b; block 128; shared 49152. Arguments: const bf16 *qkv, const u32 *starts, bf16 *out, f32 *lse, f32 *tops (null, or the
// largest logit of each query, laid out as lse), i32 t, i32 h, i32 k, f32 scale.
extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_forward_d64_bf16(const bf16 *qkv, const uint32_t *starts, bf16 *out,
                                                                                   float *lse, float *tops, int t, int h, int k, float scale) {
  forward_of_sequences<64, 2, 64>(qkv, starts, out, lse, tops, t, h, k, scale);
}
EXPORT(attention_forward_d64_bf16)

// Grid ⌈t/128⌉, h, b; block 128; shared 98304. Arguments as above.
extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_forward_d128_bf16(const bf16 *qkv, const uint32_t *starts, bf16 *out,
                                                                                    float *lse, float *tops, int t, int h, int k, float scale) {
  forward_of_sequences<128, 2, 64>(qkv, starts, out, lse, tops, t, h, k, scale);
}
EXPORT(attention_forward_d128_bf16)

// Grid tiles, h, 1; block 128; shared 40960. Arguments: const bf16 *qkv, const u32 *tiles, const u32 *steps (see Line; tiles of up to 64
// queries, steps of 64 keys), bf16 *out, i32 t, i32 h, i32 k, f32 scale.
extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_prefix_tree_d64_bf16(const bf16 *qkv, const uint32_t *tiles, const uint32_t *steps,
                                                                                  bf16 *out, int t, int h, int k, float scale) {
  forward<64, 1, 64>(qkv, Line(tiles, steps), out, nullptr, nullptr, t, h, k, scale);
}
EXPORT(attention_prefix_tree_d64_bf16)

// Grid tiles, h, 1; block 128; shared 81920. Arguments as above.
extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_prefix_tree_d128_bf16(const bf16 *qkv, const uint32_t *tiles, const uint32_t *steps,
                                                                                   bf16 *out, int t, int h, int k, float scale) {
  forward<128, 1, 64>(qkv, Line(tiles, steps), out, nullptr, nullptr, t, h, k, scale);
}
EXPORT(attention_prefix_tree_d128_bf16)

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
    if (key + N - 1 > own || key < last_start) hide<false, M, N>(p, starts, own, key, t, t);
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
