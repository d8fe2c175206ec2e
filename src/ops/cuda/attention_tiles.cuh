// Tiles of bf16 in shared memory, and products of them on tensor cores: what attention's kernels are made of.
#pragma once
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

// Sets the scores to -inf of keys that their query does not see: the warp's queries from `own` on, keys from `key` on. ENDS: keys from `end` on
// are not seen by any, else they are those after the last query.
template <bool ENDS, int M, int N>
__device__ inline void hide(float (&s)[M][N / 8][4], const uint32_t *starts, int own, int key, int end, int t) {
  const int lane = threadIdx.x % WARP, origin = key + lane % 4 * 2;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      // What the query sees, counted from the lane's first key.
      const int query = own + m * 16 + half * 8 + lane / 4, start = starts ? int(starts[min(query, t - 1)]) : 0;
      const int low = start - origin, high = (ENDS ? min(query, end - 1) : query) - origin;
#pragma unroll
      for (int n = 0; n < N / 8; n++)
#pragma unroll
        for (int i = 0; i < 2; i++)
          if (n * 8 + i < low || n * 8 + i > high) s[m][n][2 * half + i] = -INFINITY;
    }
}
