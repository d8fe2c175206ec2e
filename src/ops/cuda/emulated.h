// A device in plain C++, for the tests: kernels run block by block on one processor, every thread of a block on a stack of its own.
//
// Threads change at barriers and at exchanges within a warp, and nowhere else; a barrier that not all threads reach is noticed and ends the
// program. Shared memory begins as NaNs. Speed does not matter here; not every race between barriers is found.
#pragma once
#include <math.h>
#include <setjmp.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __restrict__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))

struct dim3 {
  unsigned x, y, z;
};
struct float4 {
  float x, y, z, w;
};
struct float2 {
  float x, y;
};
struct uint4 {
  uint32_t x, y, z, w;
};
struct uint2 {
  uint32_t x, y;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __uint_as_float(uint32_t x) {
  float f;
  std::memcpy(&f, &x, 4);
  return f;
}
inline uint32_t __float_as_uint(float f) {
  uint32_t x;
  std::memcpy(&x, &f, 4);
  return x;
}
inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  const uint32_t x = __float_as_uint(f);
  if ((x & 0x7fffffffu) > 0x7f800000u) return {uint16_t(x >> 16 | 0x40)};
  return {uint16_t((x + 0x7fffu + (x >> 16 & 1)) >> 16)};
}
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
template <class T>
inline T __ldg(const T *p) {
  return *p;
}
template <class A, class B>
inline auto min(A a, B b) {
  return a < b ? a : b;
}
template <class A, class B>
inline auto max(A a, B b) {
  return a > b ? a : b;
}

namespace emulated {
enum State { READY, AT_BLOCK, AT_WARP, DONE };
constexpr size_t STACK = 128 << 10, SHARED_BYTES = 228 << 10, WARP_SLOT = 64;

// A copy to shared memory that runs while its thread goes on.
struct Copy {
  void *to;
  const void *from;
  unsigned bytes, group;
};
struct Thread {
  ucontext_t context;  // where it begins
  jmp_buf place;       // where it waits
  bool begun;
  std::vector<Copy> copies;
  unsigned groups;
  std::vector<char> stack;
  State state;
  dim3 index;
  unsigned rank;
};
struct Device {
  std::vector<Thread> threads;
  jmp_buf scheduler;
  Thread *current = nullptr;
  dim3 grid, block, block_index;
  // What the lanes of a warp give each other.
  std::vector<unsigned char> slots;
  alignas(128) unsigned char shared[SHARED_BYTES];
  void (*body)(void *);
  void *arguments;
};
inline Device &device() {
  static Device d;
  return d;
}

inline void wait(State state) {
  Device &d = device();
  Thread *self = d.current;
  self->state = state;
  // Unlike swapcontext this does not go through the kernel.
  if (!_setjmp(self->place)) _longjmp(d.scheduler, 1);
}
inline unsigned char *slot(unsigned lane) { return &device().slots[(device().current->rank / 32 * 32 + lane) * WARP_SLOT]; }

// All lanes give `mine` and see what `lane` gave.
template <class T>
T exchange(T mine, unsigned lane) {
  static_assert(sizeof(T) <= WARP_SLOT, "a lane's slot");
  std::memcpy(slot(device().current->rank % 32), &mine, sizeof(T));
  wait(AT_WARP);
  T theirs;
  std::memcpy(&theirs, slot(lane), sizeof(T));
  wait(AT_WARP);
  return theirs;
}

inline void enter() {
  Device &d = device();
  d.body(d.arguments);
  d.current->state = DONE;
  _longjmp(d.scheduler, 1);
}

// Lets `t` run until it waits or ends.
__attribute__((noinline)) inline void go_on(Thread &t) {
  Device &d = device();
  d.current = &t;
  if (_setjmp(d.scheduler)) return;
  if (t.begun) _longjmp(t.place, 1);
  t.begun = true;
  setcontext(&t.context);
}

// Sets threads free that wait for each other and are all there; whether there were any.
inline bool release(State state, size_t from, size_t to) {
  Device &d = device();
  bool any = false;
  for (size_t i = from; i < to; i++) {
    if (d.threads[i].state != state && d.threads[i].state != DONE) return false;
    any |= d.threads[i].state == state;
  }
  for (size_t i = from; i < to && any; i++)
    if (d.threads[i].state == state) d.threads[i].state = READY;
  return any;
}

inline void run_block() {
  Device &d = device();
  const size_t n = size_t(d.block.x) * d.block.y * d.block.z;
  if (d.threads.size() < n) d.threads.resize(n);
  d.slots.assign((n + 31) / 32 * 32 * WARP_SLOT, 0);
  std::memset(d.shared, 0xff, sizeof d.shared);
  for (size_t i = 0; i < n; i++) {
    Thread &t = d.threads[i];
    if (t.stack.empty()) t.stack.resize(STACK);
    t.state = READY, t.rank = unsigned(i), t.begun = false;
    t.copies.clear(), t.groups = 0;
    t.index = {unsigned(i % d.block.x), unsigned(i / d.block.x % d.block.y), unsigned(i / d.block.x / d.block.y)};
    getcontext(&t.context);
    t.context.uc_stack.ss_sp = t.stack.data(), t.context.uc_stack.ss_size = STACK, t.context.uc_link = nullptr;
    makecontext(&t.context, enter, 0);
  }
  for (;;) {
    bool ran = false, left = false;
    // Each warp goes as far as it gets without the others, in every other block the last one first: so a missing barrier shows.
    const size_t warps = (n + 31) / 32;
    const bool last_first = (d.block_index.x + d.block_index.y + d.block_index.z) % 2;
    for (size_t w = 0; w < warps; w++) {
      const size_t from = (last_first ? warps - 1 - w : w) * 32, to = from + 32 < n ? from + 32 : n;
      do {
        for (size_t i = from; i < to; i++)
          while (d.threads[i].state == READY) {
            ran = true;
            go_on(d.threads[i]);
          }
      } while (release(AT_WARP, from, to));
      for (size_t i = from; i < to; i++) left |= d.threads[i].state != DONE;
    }
    if (!left) return;
    bool freed = false;
    for (size_t from = 0; from < n; from += 32) freed |= release(AT_WARP, from, from + 32 < n ? from + 32 : n);
    if (!freed) freed = release(AT_BLOCK, 0, n);
    if (!freed && !ran) {
      std::fprintf(stderr, "emulated device: not all threads reach a barrier\n");
      std::abort();
    }
  }
}

template <class... A, size_t... I>
void start(void (*kernel)(A...), const unsigned *grid, const unsigned *block, void **args, std::index_sequence<I...>) {
  Device &d = device();
  d.grid = {grid[0], grid[1], grid[2]}, d.block = {block[0], block[1], block[2]};
  struct Call {
    void (*kernel)(A...);
    void **args;
  } call = {kernel, args};
  d.body = [](void *p) {
    Call *c = static_cast<Call *>(p);
    c->kernel(*static_cast<A *>(c->args[I])...);
  };
  d.arguments = &call;
  // The last block first: what one writes after its own part then stays, and is found.
  for (unsigned z = grid[2]; z-- > 0;)
    for (unsigned y = grid[1]; y-- > 0;)
      for (unsigned x = grid[0]; x-- > 0;) {
        d.block_index = {x, y, z};
        run_block();
      }
}
}  // namespace emulated

#define threadIdx (emulated::device().current->index)
#define blockIdx (emulated::device().block_index)
#define blockDim (emulated::device().block)
#define gridDim (emulated::device().grid)
#define SHARED(type, name) type *const name = reinterpret_cast<type *>(emulated::device().shared)

// The kernel as a function that Rust can find: grid and block of three numbers each, addresses of the arguments as for cuLaunchKernel.
#define EXPORT(name)                                                                                              \
  extern "C" int emulated_##name(const unsigned *grid, const unsigned *block, unsigned shared, void **args) {      \
    if (grid[1] > 65535 || grid[2] > 65535 || shared > emulated::SHARED_BYTES || block[0] * block[1] * block[2] > 1024) return 1;                        \
    emulated::start(name, grid, block, args, emulated::arguments(name));                                           \
    return 0;                                                                                                      \
  }
namespace emulated {
template <class... A>
std::index_sequence_for<A...> arguments(void (*)(A...)) {
  return {};
}
}  // namespace emulated

inline void __syncthreads() { emulated::wait(emulated::AT_BLOCK); }
inline void __syncwarp(unsigned = 0xffffffffu) { emulated::wait(emulated::AT_WARP); }
template <class T>
T __shfl_xor_sync(unsigned, T x, int offset) {
  return emulated::exchange(x, emulated::device().current->rank % 32 ^ unsigned(offset));
}
template <class T>
T __shfl_sync(unsigned, T x, int lane) {
  return emulated::exchange(x, unsigned(lane) % 32);
}

// d += a b as the tensor cores of a warp do it: the fragments of PTX's mma.m16n8k16, f32 sums.
inline void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Fragments {
    uint32_t a[4], b[2];
  } mine, of[32];
  std::memcpy(mine.a, a, sizeof mine.a), std::memcpy(mine.b, b, sizeof mine.b);
  const unsigned lane = emulated::device().current->rank % 32;
  std::memcpy(emulated::slot(lane), &mine, sizeof mine);
  emulated::wait(emulated::AT_WARP);
  for (unsigned i = 0; i < 32; i++) std::memcpy(&of[i], emulated::slot(i), sizeof mine);
  emulated::wait(emulated::AT_WARP);
  const auto half = [](uint32_t word, int i) { return __uint_as_float(i ? word & 0xffff0000u : word << 16); };
  const auto at_a = [&](int row, int k) { return half(of[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2], k % 2); };
  const auto at_b = [&](int k, int col) { return half(of[col * 4 + k % 8 / 2].b[k / 8], k % 2); };
  for (int i = 0; i < 4; i++) {
    const int row = int(lane / 4) + i / 2 * 8, col = int(lane % 4) * 2 + i % 2;
    float sum = 0;
    for (int k = 0; k < 16; k++) sum += at_a(row, k) * at_b(k, col);
    d[i] += sum;
  }
}

// 8 x 8 matrices from shared memory, rows from the addresses that the lanes give.
inline void ldmatrix_x4(uint32_t (&d)[4], const void *row) {
  const unsigned lane = emulated::device().current->rank % 32;
  std::memcpy(emulated::slot(lane), row, 16);
  emulated::wait(emulated::AT_WARP);
  for (unsigned i = 0; i < 4; i++) std::memcpy(&d[i], emulated::slot(i * 8 + lane / 4) + lane % 4 * 4, 4);
  emulated::wait(emulated::AT_WARP);
}
inline void ldmatrix_x4_trans(uint32_t (&d)[4], const void *row) {
  const unsigned lane = emulated::device().current->rank % 32;
  std::memcpy(emulated::slot(lane), row, 16);
  emulated::wait(emulated::AT_WARP);
  for (unsigned i = 0; i < 4; i++) {
    uint16_t halves[2];
    for (unsigned j = 0; j < 2; j++) std::memcpy(&halves[j], emulated::slot(i * 8 + lane % 4 * 2 + j) + lane / 4 * 2, 2);
    d[i] = halves[0] | uint32_t(halves[1]) << 16;
  }
  emulated::wait(emulated::AT_WARP);
}

// A copy takes effect as late as it may, when its thread waits for it; until then there are NaNs in its place, so that who does not wait, or
// overwrites what is still needed, is noticed.
inline void cp_async_bytes(void *to, const void *from, unsigned bytes, bool valid) {
  if (reinterpret_cast<uintptr_t>(to) % bytes || reinterpret_cast<uintptr_t>(from) % bytes) {
    std::fprintf(stderr, "emulated device: a copy that is not aligned\n");
    std::abort();
  }
  std::memset(to, 0xff, bytes);
  emulated::Thread &self = *emulated::device().current;
  self.copies.push_back({to, valid ? from : nullptr, bytes, self.groups});
}
inline void cp_async_16(void *to, const void *from, bool valid) { cp_async_bytes(to, from, 16, valid); }
inline void cp_async_4(void *to, const void *from, bool valid) { cp_async_bytes(to, from, 4, valid); }
inline void cp_async_commit() { emulated::device().current->groups++; }
template <int LEFT>
void cp_async_wait() {
  emulated::Thread &self = *emulated::device().current;
  std::vector<emulated::Copy> left;
  for (const emulated::Copy &copy : self.copies) {
    if (copy.group + LEFT >= self.groups) left.push_back(copy);
    else if (copy.from) std::memcpy(copy.to, copy.from, copy.bytes);
    else std::memset(copy.to, 0, copy.bytes);
  }
  self.copies.swap(left);
}
