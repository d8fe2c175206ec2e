// RoPE in place, SwiGLU, rounding of weights, sums: one thread an element or a pair; see ops/rope.rs and ops/swiglu.rs for the formulas.
#include "common.cuh"

// Rotates the first `heads` heads of packed rows (n, width); cos and sin are (positions, d / 2). positions: of every row, or null: row i
// stands at start + i % t. sign -1 turns back.
template <class T>
__device__ void rope(T *qkv, const float *cos, const float *sin, const uint32_t *positions, int start, int t, int width, int heads, int d, float sign) {
  const int row = blockIdx.x, half = d / 2;
  const size_t place = positions ? positions[row] : start + row % t;
  for (int pair = threadIdx.x; pair < heads * half; pair += blockDim.x) {
    T *x = qkv + size_t(row) * width + pair / half * d + pair % half;
    const float c = cos[place * half + pair % half], s = sign * sin[place * half + pair % half];
    const float a = load(x), b = load(x + half);
    store(x, a * c - b * s);
    store(x + half, b * c + a * s);
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
