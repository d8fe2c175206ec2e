// cuBLAS as far as the program calls it, term by term; and the handles that candle makes of cuBLASLt and cuRAND.
#include "pretend.h"
#include <cstdlib>
#include <vector>

namespace {
constexpr int R_32F = 0, R_16BF = 14, OP_T = 1;

struct Operand {
  uintptr_t at;
  int type, stride;
};
struct Product {
  int ops[2], rows, columns, inner;  // in columns, as cuBLAS thinks
  float alpha, beta;
  Operand a, b, c;
};

size_t width(int type) { return type == R_32F ? 4 : 2; }
float read(const Operand &m, size_t row, size_t column) {
  const size_t place = column * m.stride + row;
  if (m.type == R_32F) return reinterpret_cast<const float *>(m.at)[place];
  return widened(reinterpret_cast<const Bf16 *>(m.at)[place]);
}
void write(const Operand &m, size_t row, size_t column, float x) {
  const size_t place = column * m.stride + row;
  if (m.type == R_32F) reinterpret_cast<float *>(m.at)[place] = x;
  else reinterpret_cast<Bf16 *>(m.at)[place] = rounded(x);
}
void check(const Operand &m, int rows, int columns) {
  if (m.stride < rows) std::abort();
  pretend_check(m.at, width(m.type) * (size_t(columns - 1) * m.stride + rows), "a matrix");
}

// `lines` of an operand, each with its `inner` terms next to each other.
std::vector<float> gathered(const Operand &m, bool rows, int lines, int inner) {
  std::vector<float> values(size_t(lines) * inner);
  for (int i = 0; i < lines; i++)
    for (int l = 0; l < inner; l++) values[size_t(i) * inner + l] = rows ? read(m, i, l) : read(m, l, i);
  return values;
}

void multiply(void *arguments) {
  const Product &p = *static_cast<Product *>(arguments);
  const std::vector<float> a = gathered(p.a, p.ops[0] != OP_T, p.rows, p.inner), b = gathered(p.b, p.ops[1] == OP_T, p.columns, p.inner);
  for (int j = 0; j < p.columns; j++)
    for (int i = 0; i < p.rows; i++) {
      const float *const x = &a[size_t(i) * p.inner], *const y = &b[size_t(j) * p.inner];
      float lanes[16] = {}, sum = 0;
      int l = 0;
      for (; l + 16 <= p.inner; l += 16)
        for (int k = 0; k < 16; k++) lanes[k] += x[l + k] * y[l + k];
      for (; l < p.inner; l++) sum += x[l] * y[l];
      for (const float lane : lanes) sum += lane;
      write(p.c, i, j, p.alpha * sum + (p.beta ? p.beta * read(p.c, i, j) : 0.0f));
    }
}
}  // namespace

#define API extern "C" __attribute__((visibility("default"))) int
API cublasCreate_v2(void **handle) { return *handle = std::malloc(1), 0; }
API cublasDestroy_v2(void *) { return 0; }
API cublasSetStream_v2(void *, void *) { return 0; }
API cublasSetMathMode(void *, int) { return 0; }
API cublasGetVersion_v2(void *, int *version) { return *version = 130100, 0; }
API cublasGemmEx(void *, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a, int a_type, int lda, const void *b, int b_type,
                 int ldb, const void *beta, void *c, int c_type, int ldc, int compute, int) {
  const auto known = [](int type) { return type == R_32F || type == R_16BF; };
  if (!known(a_type) || a_type != b_type || !known(c_type) || compute != 68) return 15;  // CUBLAS_STATUS_NOT_SUPPORTED
  const Product p = {{op_a, op_b}, m, n, k, *static_cast<const float *>(alpha), *static_cast<const float *>(beta),
                     {uintptr_t(a), a_type, lda}, {uintptr_t(b), b_type, ldb}, {uintptr_t(c), c_type, ldc}};
  check(p.a, op_a == OP_T ? k : m, op_a == OP_T ? m : k);
  check(p.b, op_b == OP_T ? n : k, op_b == OP_T ? k : n);
  check(p.c, m, n);
  pretend_count("product");
  return pretend_queue(multiply, &p, sizeof p), 0;
}
API cublasLtCreate(void **handle) { return *handle = std::malloc(1), 0; }
API cublasLtDestroy(void *) { return 0; }
API curandCreateGenerator(void **generator, int) { return *generator = std::malloc(1), 0; }
API curandDestroyGenerator(void *) { return 0; }
API curandSetStream(void *, void *) { return 0; }
API curandSetPseudoRandomGeneratorSeed(void *, unsigned long long) { return 0; }
