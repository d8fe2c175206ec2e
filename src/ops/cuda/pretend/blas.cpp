// cuBLAS and cuBLASLt as far as the program calls them, term by term; and the handles that candle makes of cuRAND.
//
// cuBLASLt has ALGORITHMS algorithms, which add in different orders: the choice shows in the bits. One more, whose blocks add as they come, is the
// fastest of all and may not be chosen. How long each seems to take is the same every time: LLAMA_LITE_PRETEND_FASTEST is the fastest (0: that of
// cuBLAS itself); where it is not set, each GPU has another. LLAMA_LITE_PRETEND_CUBLASLT is the library's version.
#include "pretend.h"
#include <cstdlib>
#include <string>
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
  int algorithm;  // 0: that of cuBLAS itself
};
constexpr int ALGORITHMS = 4, FORBIDDEN = 9;

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

float sum_in_lanes(const float *x, const float *y, int n) {
  float lanes[16] = {}, sum = 0;
  int l = 0;
  for (; l + 16 <= n; l += 16)
    for (int k = 0; k < 16; k++) lanes[k] += x[l + k] * y[l + k];
  for (; l < n; l++) sum += x[l] * y[l];
  for (const float lane : lanes) sum += lane;
  return sum;
}
// Algorithm k has k + 1 sums, which it adds up at the end.
float sum_in_order(const float *x, const float *y, int n, int algorithm) {
  float parts[FORBIDDEN + 1] = {}, sum = 0;
  for (int l = 0; l < n; l++) parts[l % (algorithm + 1)] += x[l] * y[l];
  for (int k = algorithm; k >= 0; k--) sum += parts[k];
  return sum;
}

int fastest() {
  static const char *const said = std::getenv("LLAMA_LITE_PRETEND_FASTEST");
  return said ? std::atoi(said) : 1 + pretend_device() % ALGORITHMS;
}
// Far more than the emulation takes, which differs from time to time.
long microseconds(int algorithm) {
  if (algorithm == FORBIDDEN) return 500000;
  return algorithm == fastest() ? 1000000 : 2000000 + 100000 * algorithm;
}

void multiply(void *arguments) {
  const Product &p = *static_cast<Product *>(arguments);
  const std::vector<float> a = gathered(p.a, p.ops[0] != OP_T, p.rows, p.inner), b = gathered(p.b, p.ops[1] == OP_T, p.columns, p.inner);
  for (int j = 0; j < p.columns; j++)
    for (int i = 0; i < p.rows; i++) {
      const float *const x = &a[size_t(i) * p.inner], *const y = &b[size_t(j) * p.inner];
      const float sum = p.algorithm ? sum_in_order(x, y, p.inner, p.algorithm) : sum_in_lanes(x, y, p.inner);
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
                     {uintptr_t(a), a_type, lda}, {uintptr_t(b), b_type, ldb}, {uintptr_t(c), c_type, ldc}, 0};
  check(p.a, op_a == OP_T ? k : m, op_a == OP_T ? m : k);
  check(p.b, op_b == OP_T ? n : k, op_b == OP_T ? k : n);
  check(p.c, m, n);
  pretend_count("product");
  pretend_take(microseconds(0));
  return pretend_queue(multiply, &p, sizeof p), 0;
}

// ---- cuBLASLt --------------------------------------------------------------------------------------------------------------------------
namespace {
constexpr int SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15;
struct Layout {
  int type;
  uint64_t rows, columns;
  int64_t stride;
};
struct Operation {
  int ops[2] = {0, 0};
};
struct Preference {
  uint64_t workspace = 0;
  uint32_t reductions = 7, alignment = 256;
};
// In the 64 bytes that the library has for it.
struct Algorithm {
  int32_t id, a_type, c_type;
  uint32_t attributes[9];  // by cublasLtMatmulAlgoConfigAttributes_t; [0] is not used
  uint32_t made;
};
struct Result {
  uint64_t algorithm[8];
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};
static_assert(sizeof(Algorithm) <= 64 && sizeof(Result) == 96, "as NVIDIA has them");
enum { TILE = 1, SPLIT_K, REDUCTION, SWIZZLE, CUSTOM, STAGES, INNER_SHAPE, CLUSTER_SHAPE };

bool exists(int id) { return (id >= 1 && id <= ALGORITHMS) || id == FORBIDDEN; }
uint32_t alignment(int id) { return id == 4 ? 256 : 2; }
size_t workspace(int id) { return id == 3 ? 1 << 20 : 0; }
size_t width_of(int attribute) { return attribute >= INNER_SHAPE ? 2 : 4; }
Algorithm made(int id, int a_type, int c_type) { return {id, a_type, c_type, {0, 0, 1, 0, 0, 0, 0, 0, 0}, 0xa160u}; }
// An algorithm as this library proposes it; one that a caller makes must be told all of it.
Algorithm proposed(int id, int a_type, int c_type) {
  Algorithm algorithm = made(id, a_type, c_type);
  algorithm.attributes[TILE] = 20 + id, algorithm.attributes[STAGES] = 30 + id, algorithm.attributes[CLUSTER_SHAPE] = 2 + id;
  if (id == FORBIDDEN) algorithm.attributes[SPLIT_K] = 4, algorithm.attributes[REDUCTION] = 1;
  return algorithm;
}
bool fits(const Algorithm &algorithm, const Layout *a, const Layout *b, const Layout *c) {
  const Algorithm whole = proposed(algorithm.id, a->type, c->type);
  return exists(algorithm.id) && a->type == b->type && !std::memcmp(&algorithm, &whole, sizeof whole);
}
}  // namespace

API cublasLtCreate(void **handle) { return *handle = std::malloc(1), 0; }
API cublasLtDestroy(void *) { return 0; }
extern "C" __attribute__((visibility("default"))) size_t cublasLtGetVersion() {
  const char *const said = std::getenv("LLAMA_LITE_PRETEND_CUBLASLT");
  return said ? std::strtoull(said, nullptr, 10) : 130100;
}
API cublasLtMatmulDescCreate(void **operation, int compute, int scale) {
  return *operation = new Operation, compute == 68 && scale == R_32F ? SUCCESS : NOT_SUPPORTED;
}
API cublasLtMatmulDescSetAttribute(void *operation, int attribute, const void *value, size_t bytes) {
  if ((attribute != 3 && attribute != 4) || bytes != 4) return INVALID_VALUE;  // CUBLASLT_MATMUL_DESC_TRANSA, TRANSB
  return std::memcpy(&static_cast<Operation *>(operation)->ops[attribute - 3], value, 4), SUCCESS;
}
API cublasLtMatmulDescDestroy(void *operation) { return delete static_cast<Operation *>(operation), SUCCESS; }
API cublasLtMatrixLayoutCreate(void **layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
  if (type != R_32F && type != R_16BF) return NOT_SUPPORTED;
  return *layout = new Layout{type, rows, columns, stride}, SUCCESS;
}
API cublasLtMatrixLayoutDestroy(void *layout) { return delete static_cast<Layout *>(layout), SUCCESS; }
API cublasLtMatmulPreferenceCreate(void **preference) { return *preference = new Preference, SUCCESS; }
API cublasLtMatmulPreferenceDestroy(void *preference) { return delete static_cast<Preference *>(preference), SUCCESS; }
API cublasLtMatmulPreferenceSetAttribute(void *preference, int attribute, const void *value, size_t bytes) {
  Preference &p = *static_cast<Preference *>(preference);
  if (bytes != (attribute == 1 ? 8 : 4)) return INVALID_VALUE;
  if (attribute == 1) std::memcpy(&p.workspace, value, 8);        // MAX_WORKSPACE_BYTES
  else if (attribute == 3) std::memcpy(&p.reductions, value, 4);  // REDUCTION_SCHEME_MASK
  else if (attribute >= 5 && attribute <= 8) {                    // MIN_ALIGNMENT_A_BYTES and its like
    uint32_t wanted;
    std::memcpy(&wanted, value, 4);
    p.alignment = p.alignment < wanted ? p.alignment : wanted;
  } else return INVALID_VALUE;
  return SUCCESS;
}
API cublasLtMatmulAlgoGetHeuristic(void *, void *, void *a, void *, void *c, void *, void *preference, int most, void *results, int *count) {
  if (pretend_is_capturing()) return NOT_SUPPORTED;
  const Preference &p = *static_cast<Preference *>(preference);
  Result *const list = static_cast<Result *>(results);
  *count = 0;
  for (const int id : {FORBIDDEN, 1, 2, 3, 4}) {
    const Algorithm algorithm = proposed(id, static_cast<Layout *>(a)->type, static_cast<Layout *>(c)->type);
    if (*count == most || (algorithm.attributes[REDUCTION] & ~p.reductions) || alignment(id) > p.alignment || workspace(id) > p.workspace) continue;
    Result &result = list[(*count)++];
    result = Result{{}, workspace(id), SUCCESS, 1, {}};
    std::memcpy(result.algorithm, &algorithm, sizeof algorithm);
  }
  return *count ? SUCCESS : NOT_SUPPORTED;
}
API cublasLtMatmulAlgoInit(void *, int compute, int scale, int a_type, int b_type, int c_type, int d_type, int id, void *algorithm) {
  if (!exists(id) || compute != 68 || scale != R_32F || a_type != b_type || c_type != d_type) return INVALID_VALUE;
  const Algorithm fresh = made(id, a_type, c_type);
  return std::memcpy(algorithm, &fresh, sizeof fresh), SUCCESS;
}
API cublasLtMatmulAlgoConfigSetAttribute(void *algorithm, int attribute, const void *value, size_t bytes) {
  if (attribute < TILE || attribute > CLUSTER_SHAPE || bytes != width_of(attribute)) return INVALID_VALUE;
  return std::memcpy(&static_cast<Algorithm *>(algorithm)->attributes[attribute], value, bytes), SUCCESS;
}
API cublasLtMatmulAlgoConfigGetAttribute(const void *algorithm, int attribute, void *value, size_t bytes, size_t *written) {
  const Algorithm &from = *static_cast<const Algorithm *>(algorithm);
  if (attribute < 0 || attribute > CLUSTER_SHAPE || bytes != width_of(attribute)) return INVALID_VALUE;
  *written = bytes;
  return std::memcpy(value, attribute ? static_cast<const void *>(&from.attributes[attribute]) : &from.id, bytes), SUCCESS;
}
API cublasLtMatmulAlgoCheck(void *, void *, void *a, void *b, void *c, void *, const void *algorithm, void *result) {
  const Algorithm &wanted = *static_cast<const Algorithm *>(algorithm);
  if (!fits(wanted, static_cast<Layout *>(a), static_cast<Layout *>(b), static_cast<Layout *>(c))) return NOT_SUPPORTED;
  Result checked{{}, workspace(wanted.id), SUCCESS, 1, {}};
  std::memcpy(checked.algorithm, algorithm, 64);
  return std::memcpy(result, &checked, sizeof checked), SUCCESS;
}
API cublasLtMatmul(void *, void *operation, const void *alpha, const void *a, void *a_layout, const void *b, void *b_layout, const void *beta,
                   const void *c, void *c_layout, void *d, void *, const void *algorithm, void *memory, size_t bytes, void *) {
  const Operation &o = *static_cast<Operation *>(operation);
  const Layout &la = *static_cast<Layout *>(a_layout), &lb = *static_cast<Layout *>(b_layout), &lc = *static_cast<Layout *>(c_layout);
  const Algorithm &by = *static_cast<const Algorithm *>(algorithm);
  if (c != d || !fits(by, &la, &lb, &lc) || bytes < workspace(by.id)) return INVALID_VALUE;
  if ((uintptr_t(a) | uintptr_t(b) | uintptr_t(c)) % alignment(by.id)) return NOT_SUPPORTED;
  const int m = int(lc.rows), n = int(lc.columns), k = int(o.ops[0] == OP_T ? la.rows : la.columns);
  const Product p = {{o.ops[0], o.ops[1]}, m, n, k, *static_cast<const float *>(alpha), *static_cast<const float *>(beta),
                     {uintptr_t(a), la.type, int(la.stride)}, {uintptr_t(b), lb.type, int(lb.stride)}, {uintptr_t(c), lc.type, int(lc.stride)}, by.id};
  const bool agree = (o.ops[0] == OP_T ? la.columns : la.rows) == lc.rows && (o.ops[1] == OP_T ? lb.rows : lb.columns) == lc.columns &&
                     (o.ops[1] == OP_T ? lb.columns : lb.rows) == uint64_t(k);
  if (!agree) return INVALID_VALUE;
  check(p.a, int(la.rows), int(la.columns)), check(p.b, int(lb.rows), int(lb.columns)), check(p.c, m, n);
  if (workspace(by.id)) pretend_check(uintptr_t(memory), workspace(by.id), "a workspace");
  pretend_count(("product by " + std::to_string(by.id)).c_str());
  pretend_take(microseconds(by.id));
  return pretend_queue(multiply, &p, sizeof p), SUCCESS;
}

API curandCreateGenerator(void **generator, int) { return *generator = std::malloc(1), 0; }
API curandDestroyGenerator(void *) { return 0; }
API curandSetStream(void *, void *) { return 0; }
API curandSetPseudoRandomGeneratorSeed(void *, unsigned long long) { return 0; }
