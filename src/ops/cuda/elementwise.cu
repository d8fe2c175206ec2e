// RoPE in place, SwiGLU, rounding of weights, sums: one thread an element, a pair or eight of them; see ops/rope.rs and ops/swiglu.rs for the
// formulas.
#include "common.cuh"

// Rotates the pair (a, b) in place. The rounding of every operation is spelled out: the compiler may not fuse it otherwise in one kernel than in
// another, so both kernels below give the same bits.
__device__ inline void rotate(float &a, float &b, float c, float s) {
  const float x = a, y = b;
  a = __fmaf_rn(x, c, -__fmul_rn(y, s));
  b = __fmaf_rn(y, c, __fmul_rn(x, s));
}

// Rotates the first `heads` heads of packed rows (n, width); cos and sin are (positions, d / 2). positions: of every row, or null: row i
// stands at start + i % t. sign -1 turns back. grid: rows
template <class T>
__device__ void rope(T *qkv, const float *cos, const float *sin, const uint32_t *positions, int start, int t, int width, int heads, int d, float sign) {
  const int row = blockIdx.x, half = d / 2;
  const size_t place = positions ? positions[row] : start + row % t;
  for (int pair = threadIdx.x; pair < heads * half; pair += blockDim.x) {
    T *x = qkv + size_t(row) * width + pair / half * d + pair % half;
    float a = load(x), b = load(x + half);
    rotate(a, b, cos[place * half + pair % half], sign * sin[place * half + pair % half]);
    store(x, a);
    store(x + half, b);
  }
}

// The same for heads of a width that is known here, eight pairs a thread: D is a power of two, so no index is divided, and every access is of 16
// bytes, to which rows and tables must be aligned. grid: (t, b)
template <class T, int D>
__device__ void rope_eight(T *qkv, const float *cos, const float *sin, const uint32_t *positions, int start, int width, int heads, float sign) {
  constexpr unsigned HALF = D / 2, PER_HEAD = HALF / 8;
  const size_t row = size_t(blockIdx.y) * gridDim.x + blockIdx.x;
  const size_t place = positions ? positions[row] : start + blockIdx.x;
  for (unsigned v = threadIdx.x; v < unsigned(heads * PER_HEAD); v += blockDim.x) {
    const unsigned at = v % PER_HEAD * 8;
    T *x = qkv + row * width + v / PER_HEAD * D + at;
    const Eight c = load8(cos + place * HALF + at), s = load8(sin + place * HALF + at);
    Eight a = load8(x), b = load8(x + HALF);
#pragma unroll
    for (int i = 0; i < 8; i++) rotate(a.x[i], b.x[i], c.x[i], sign * s.x[i]);
    store8(x, a);
    store8(x + HALF, b);
  }
}

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Rows of gate_up are f gates and then f ups; f is a multiple of eight. grid: (rows, blocks of columns)
template <class T>
__device__ void swiglu(const T *gate_up, T *act, int f) {
  const int at = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
  if (at >= f) return;
  const size_t row = blockIdx.x;
  const Eight gate = load8(gate_up + row * 2 * f + at), up = load8(gate_up + row * 2 * f + f + at);
  Eight e;
  for (int i = 0; i < 8; i++) e.x[i] = gate.x[i] * sigmoid(gate.x[i]) * up.x[i];
  store8(act + row * f + at, e);
}

template <class T>
__device__ void swiglu_backward(const T *gate_up, const T *dact, T *dgate_up, int f) {
  const int at = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
  if (at >= f) return;
  const size_t row = blockIdx.x;
  const Eight gate = load8(gate_up + row * 2 * f + at), up = load8(gate_up + row * 2 * f + f + at), d = load8(dact + row * f + at);
  Eight dgate, dup;
  for (int i = 0; i < 8; i++) {
    const float s = sigmoid(gate.x[i]);
    dgate.x[i] = d.x[i] * up.x[i] * s * (1.0f + gate.x[i] * (1.0f - s));
    dup.x[i] = d.x[i] * gate.x[i] * s;
  }
  store8(dgate_up + row * 2 * f + at, dgate);
  store8(dgate_up + row * 2 * f + f + at, dup);
}

#define ROPE_EIGHT(T, name, D)                                                                                               \
  extern "C" __global__ void rope_d##D##_##name(T *qkv, const float *cos, const float *sin, const uint32_t *positions,       \
                                                int start, int width, int heads, float sign) {                               \
    rope_eight<T, D>(qkv, cos, sin, positions, start, width, heads, sign);                                                   \
  }                                                                                                                          \
  EXPORT(rope_d##D##_##name)
ROPE_EIGHT(float, f32, 64)
ROPE_EIGHT(float, f32, 128)
ROPE_EIGHT(bf16, bf16, 64)
ROPE_EIGHT(bf16, bf16, 128)

#define ELEMENTWISE(T, name)                                                                                              \
  extern "C" __global__ void rope_##name(T *qkv, const float *cos, const float *sin, const uint32_t *positions, int start, \
                                         int t, int width, int heads, int d, float sign) {                                \
    rope<T>(qkv, cos, sin, positions, start, t, width, heads, d, sign);                                                   \
  }                                                                                                                       \
  EXPORT(rope_##name)                                                                                                     \
  extern "C" __global__ void swiglu_##name(const T *gate_up, T *act, int f) { swiglu<T>(gate_up, act, f); }                \
  EXPORT(swiglu_##name)                                                                                                   \
  extern "C" __global__ void swiglu_backward_##name(const T *gate_up, const T *dact, T *dgate_up, int f) {                 \
    swiglu_backward<T>(gate_up, dact, dgate_up, f);                                                                       \
  }                                                                                                                       \
  EXPORT(swiglu_backward_##name)
ELEMENTWISE(float, f32)
ELEMENTWISE(bf16, bf16)

extern "C" __global__ void round_to_bf16(const float *x, bf16 *y, size_t n) {
  for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += size_t(gridDim.x) * blockDim.x) store(y + i, x[i]);
}
EXPORT(round_to_bf16)

// sum[i] += other[i]
extern "C" __global__ void add_assign(float *sum, const float *other, size_t n) {
  for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += size_t(gridDim.x) * blockDim.x) sum[i] += other[i];
}
EXPORT(add_assign)
