// What all kernels share: element types, sums over warps and blocks, one product of tensor cores.
//
// Every sum has a fixed order: lanes by butterflies, warps in order, blocks never by atomics. The same launch gives the same bits.
//
// A kernel is compiled twice: by nvcc for the device, and by any C++ compiler for the tests, where emulated.h plays the device.
#pragma once
#ifdef LLAMA_LITE_EMULATED
#include "emulated.h"
#else
#include <cuda_bf16.h>
#include <stdint.h>
// Names a kernel that can be launched.
#define EXPORT(name)
// Declares the dynamic shared memory of a launch.
#define SHARED(type, name) \
  extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
  type *const name = reinterpret_cast<type *>(dynamic_shared)

// d += a b for one 16 x 8 tile, 16 terms: fragments as PTX's mma.m16n8k16 lays them out over a warp.
__device__ inline void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 matrices of bf16 from shared memory: lane i gives the address of row i % 8 of matrix i / 8, 16 bytes, and gets two neighbours of
// each matrix: row i / 4, columns i % 4 * 2 and the next one; of the transposed matrices with _trans.
__device__ inline void ldmatrix_x4(uint32_t (&d)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
}
__device__ inline void ldmatrix_x4_trans(uint32_t (&d)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
}

// 16 or 4 bytes from global to shared memory while the thread goes on; zeros if not `valid`, but `from` must be a valid address even so.
__device__ inline void cp_async_16(void *to, const void *from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(uint32_t(__cvta_generic_to_shared(to))), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
__device__ inline void cp_async_4(void *to, const void *from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(uint32_t(__cvta_generic_to_shared(to))), "l"(from), "r"(valid ? 4 : 0) : "memory");
}
// Ends a group of copies; waits until at most the last LEFT groups of this thread are still under way (other threads need a barrier besides).
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}
#endif

using bf16 = __nv_bfloat16;
constexpr int WARP = 32;
constexpr unsigned ALL = 0xffffffffu;

__device__ inline float load(const float *p) { return *p; }
__device__ inline float load(const bf16 *p) { return __bfloat162float(*p); }
__device__ inline void store(float *p, float x) { *p = x; }
__device__ inline void store(bf16 *p, float x) { *p = __float2bfloat16_rn(x); }

// Pseudo-random bits of place i under a key: ops/noise.rs.
__device__ inline uint64_t draw(uint64_t key, uint64_t i) {
  uint64_t z = key + (i + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  return z ^ z >> 31;
}

// Two neighbours in bf16, the first one in the low half: an element of mma_16x8x16's fragments.
__device__ inline uint32_t pack(float low, float high) {
  const bf16 a = __float2bfloat16_rn(low), b = __float2bfloat16_rn(high);
  return uint32_t(*reinterpret_cast<const uint16_t *>(&a)) | uint32_t(*reinterpret_cast<const uint16_t *>(&b)) << 16;
}

// Eight neighbours at once, 16 bytes of bf16 or 32 of f32; `p` is aligned to that.
struct Eight {
  float x[8];
};
__device__ inline Eight load8(const float *p) {
  Eight e;
  const float4 a = reinterpret_cast<const float4 *>(p)[0], b = reinterpret_cast<const float4 *>(p)[1];
  e.x[0] = a.x, e.x[1] = a.y, e.x[2] = a.z, e.x[3] = a.w, e.x[4] = b.x, e.x[5] = b.y, e.x[6] = b.z, e.x[7] = b.w;
  return e;
}
__device__ inline Eight load8(const bf16 *p) {
  const uint4 v = *reinterpret_cast<const uint4 *>(p);
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
  Eight e;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const uint32_t low = words[i] << 16, high = words[i] & 0xffff0000u;
    e.x[2 * i] = __uint_as_float(low), e.x[2 * i + 1] = __uint_as_float(high);
  }
  return e;
}
__device__ inline void store8(float *p, const Eight &e) {
  reinterpret_cast<float4 *>(p)[0] = make_float4(e.x[0], e.x[1], e.x[2], e.x[3]);
  reinterpret_cast<float4 *>(p)[1] = make_float4(e.x[4], e.x[5], e.x[6], e.x[7]);
}
__device__ inline void store8(bf16 *p, const Eight &e) {
  *reinterpret_cast<uint4 *>(p) = make_uint4(pack(e.x[0], e.x[1]), pack(e.x[2], e.x[3]), pack(e.x[4], e.x[5]), pack(e.x[6], e.x[7]));
}

// Four neighbours at once, 8 bytes of bf16 or 16 of f32; `p` is aligned to that.
struct Four {
  float x[4];
};
__device__ inline Four load4(const float *p) {
  const float4 v = *reinterpret_cast<const float4 *>(p);
  return {{v.x, v.y, v.z, v.w}};
}
__device__ inline Four load4(const bf16 *p) {
  const uint2 v = *reinterpret_cast<const uint2 *>(p);
  return {{__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u), __uint_as_float(v.y << 16), __uint_as_float(v.y & 0xffff0000u)}};
}
__device__ inline void store4(float *p, const Four &e) { *reinterpret_cast<float4 *>(p) = make_float4(e.x[0], e.x[1], e.x[2], e.x[3]); }
__device__ inline void store4(bf16 *p, const Four &e) {
  *reinterpret_cast<uint2 *>(p) = make_uint2(pack(e.x[0], e.x[1]), pack(e.x[2], e.x[3]));
}

// The first `count` of four, where there may not be more: zeros for the others.
template <class T>
__device__ inline Four load_some(const T *p, int count) {
  if (count == 4) return load4(p);
  Four e = {};
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (i < count) e.x[i] = load(p + i);
  return e;
}
template <class T>
__device__ inline void store_some(T *p, const Four &e, int count) {
  if (count == 4) return store4(p, e);
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (i < count) store(p + i, e.x[i]);
}

// Sum and maximum over the lanes of a warp, the same in all of them.
template <class T>
__device__ inline T warp_sum(T x) {
#pragma unroll
  for (int offset = WARP / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(ALL, x, offset);
  return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int offset = WARP / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, offset));
  return x;
}

// Sum over a block of whole warps (at most 1024 threads), the same in all threads. `scratch` holds a number for each warp.
template <class T>
__device__ inline T block_sum(T x, T *scratch) {
  const int warps = blockDim.x / WARP;
  x = warp_sum(x);
  if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
  __syncthreads();
  T sum = 0;
  for (int i = 0; i < warps; i++) sum += scratch[i];
  __syncthreads();
  return sum;
}
__device__ inline float block_max(float x, float *scratch) {
  const int warps = blockDim.x / WARP;
  x = warp_max(x);
  if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
  __syncthreads();
  float most = scratch[0];
  for (int i = 1; i < warps; i++) most = fmaxf(most, scratch[i]);
  __syncthreads();
  return most;
}
