// Those of candle's kernels that the program gets to launch: on the whole grid at once, contiguous tensors alone.
#include "pretend.h"
#include <cstdio>
#include <cstdlib>

namespace {
float number(Bf16 x) { return widened(x); }
template <class T>
T number(T x) {
  return x;
}
template <class T>
struct As {
  template <class S>
  static T of(S x) {
    return T(number(x));
  }
};
template <>
struct As<Bf16> {
  template <class S>
  static Bf16 of(S x) {
    return rounded(float(number(x)));
  }
};

template <class T>
const T &arg(void **arguments, int i) {
  return *static_cast<const T *>(arguments[i]);
}

// candle's list of dimensions and strides is null, or row by row.
void contiguous(void **arguments, int dims_at) {
  const size_t n = arg<size_t>(arguments, dims_at);
  const size_t *const info = arg<const size_t *>(arguments, dims_at + 1);
  size_t stride = 1;
  for (size_t i = n; info && i-- > 0; stride *= info[i])
    if (info[i] > 1 && info[n + i] != stride) {
      std::fprintf(stderr, "pretended driver: candle's kernels are emulated for contiguous tensors alone\n");
      std::abort();
    }
}
}  // namespace

#define KERNEL(name) extern "C" int emulated_##name(const unsigned *, const unsigned *, unsigned, void **a)

#define OF_TYPE(T, name)                                                                                                       \
  KERNEL(const_set_##name) {                                                                                                  \
    contiguous(a, 1);                                                                                                         \
    for (size_t i = 0; i < arg<size_t>(a, 0); i++) arg<T *>(a, 4)[i] = arg<T>(a, 3);                                          \
    return 0;                                                                                                                 \
  }                                                                                                                           \
  KERNEL(fill_##name) {                                                                                                       \
    for (size_t i = 0; i < arg<size_t>(a, 2); i++) arg<T *>(a, 0)[i] = arg<T>(a, 1);                                          \
    return 0;                                                                                                                 \
  }                                                                                                                           \
  KERNEL(copy2d_##name) {                                                                                                     \
    const T *const from = arg<const T *>(a, 0);                                                                               \
    T *const to = arg<T *>(a, 1);                                                                                             \
    const uint32_t rows = arg<uint32_t>(a, 2), columns = arg<uint32_t>(a, 3), from_stride = arg<uint32_t>(a, 4), to_stride = arg<uint32_t>(a, 5); \
    for (size_t i = 0; i < rows; i++) std::memcpy(to + i * to_stride, from + i * from_stride, columns * sizeof(T));            \
    return 0;                                                                                                                 \
  }                                                                                                                           \
  KERNEL(ucopy_##name) {                                                                                                      \
    const size_t n = arg<size_t>(a, 0), dims = arg<size_t>(a, 1);                                                             \
    const size_t *const info = arg<const size_t *>(a, 2);                                                                     \
    for (size_t i = 0; i < n; i++) {                                                                                          \
      size_t place = info ? 0 : i, rest = i;                                                                                  \
      for (size_t d = dims; info && d-- > 0; rest /= info[d]) place += rest % info[d] * info[dims + d];                       \
      arg<T *>(a, 4)[i] = arg<const T *>(a, 3)[place];                                                                        \
    }                                                                                                                         \
    return 0;                                                                                                                 \
  }                                                                                                                           \
  KERNEL(is_u32_##name) {                                                                                                     \
    const size_t left = arg<size_t>(a, 6), rows = arg<size_t>(a, 7), n = arg<size_t>(a, 8), right = arg<size_t>(a, 9);        \
    const uint32_t *const ids = arg<const uint32_t *>(a, 3);                                                                  \
    for (size_t i = 0; i < left * n; i++)                                                                                     \
      std::memcpy(arg<T *>(a, 5) + i * right, arg<const T *>(a, 4) + (i / n * rows + ids[i % n]) * right, right * sizeof(T));  \
    return 0;                                                                                                                 \
  }
OF_TYPE(float, f32)
OF_TYPE(Bf16, bf16)
OF_TYPE(uint32_t, u32)
OF_TYPE(double, f64)
OF_TYPE(int64_t, i64)

#define CAST(S, T, name)                                                                                                          \
  KERNEL(cast_##name) {                                                                                                          \
    contiguous(a, 1);                                                                                                            \
    for (size_t i = 0; i < arg<size_t>(a, 0); i++) arg<T *>(a, 4)[i] = As<T>::of(arg<const S *>(a, 3)[i]);                       \
    return 0;                                                                                                                    \
  }
CAST(float, Bf16, f32_bf16)
CAST(Bf16, float, bf16_f32)
CAST(float, float, f32_f32)
CAST(Bf16, Bf16, bf16_bf16)
CAST(float, double, f32_f64)
CAST(double, float, f64_f32)

KERNEL(usqr_f32) {
  contiguous(a, 1);
  for (size_t i = 0; i < arg<size_t>(a, 0); i++) arg<float *>(a, 4)[i] = arg<const float *>(a, 3)[i] * arg<const float *>(a, 3)[i];
  return 0;
}
