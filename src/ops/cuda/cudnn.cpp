// Causal grouped-query attention by cuDNN, forward and backward in bf16, as plain C functions.
//
//   qkv, dqkv (b, t, (h + 2k) d) bf16   out, dout (b, t, h d) bf16   lse f32 (b, h, t), log Σ exp of the scaled scores
//
// Layouts and meaning are those of attention.cu without `starts`. NVIDIA's cudnn-frontend, headers only, describes the computation to the
// library, which chooses a kernel; the backward pass asks for one whose sums have a fixed order. On most GPUs that has a workspace of about
// 2 b h t² bytes. Where query heads share keys, their parts of dK and dV are rounded to bf16 before they are added.
//
// Nothing is linked: libraries are looked for on first use, and what is missing becomes a text. No exception leaves this file, and it
// prints nothing. A function returns null, or what went wrong as text that lives until the thread's next call.
//
// A handle belongs to the CUDA context that was current when it was opened; that has to be current whenever the handle is used, by one
// thread at a time. Handles and plans last until the process ends: at exit, CUDA may be gone before what would be freed with its help.
#include <dlfcn.h>
#include <link.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

// How the frontend finds libraries and functions.
namespace {
void *frontend_dlopen(const char *name, int flags);
void *frontend_dlsym(void *library, const char *name);
}  // namespace
#define NV_CUDNN_FRONTEND_USE_DYNAMIC_LOADING
#define NV_CUDNN_FRONTEND_DISABLE_LOGGING
#define CUDNN_FRONTEND_SKIP_JSON_LIB
#define dlopen frontend_dlopen
#define dlsym frontend_dlsym
#include <cudnn_frontend.h>
#undef dlopen
#undef dlsym
void *cudnn_frontend::cudnn_dlhandle = nullptr;

struct llama_lite_attention {
  int64_t batch, length, query_heads, kv_heads, head_dim;
  float scale;
};

namespace {

namespace fe = cudnn_frontend;
using Shape = llama_lite_attention;

[[noreturn]] void fail(const std::string &what) { throw std::runtime_error(what); }

// Does the work of a function of the interface; exceptions become text, in room set aside that needs no memory then.
thread_local char text[4096];
template <class Work>
const char *told(Work work) noexcept {
  try {
    return work(), nullptr;
  } catch (const std::exception &e) {
    snprintf(text, sizeof text, "attention by cuDNN: %s", e.what());
  } catch (...) {
    snprintf(text, sizeof text, "attention by cuDNN: an exception of an unknown kind");
  }
  return text;
}

void check(fe::error_t error) {
  if (error.is_bad()) fail(error.get_message());
}

void check(cudnnStatus_t status, const std::string &function) {
  if (status != CUDNN_STATUS_SUCCESS) {
    fail(function + ": " + fe::detail::get_error_string(status) + ": " + fe::detail::get_last_error_string_());
  }
}

// ---- CUDA, as far as the frontend calls it ---------------------------------------------------------------------------------------------
//
// The frontend wants libcudart for the GPU's generation, for texts of errors and, with cuDNN before 9.16, to copy lengths. It refuses to
// work where it finds two versions of that, and misreads structures of another version than it was compiled for. So the driver answers.

template <class Function>
Function *driver(const char *name) {
  static void *const library = dlopen("libcuda.so.1", RTLD_NOW);
  void *const found = library ? dlsym(library, name) : nullptr;
  if (!found) fail(std::string("the CUDA driver, libcuda.so.1, is missing or lacks ") + name);
  return reinterpret_cast<Function *>(found);
}

cudaError_t get_device(int *device) { return cudaError_t(driver<CUresult(CUdevice *)>("cuCtxGetDevice")(device)); }

// The frontend reads nothing but the generation's first number.
cudaError_t get_device_properties(cudaDeviceProp *properties, int device) {
  memset(properties, 0, sizeof *properties);
  const auto attribute = driver<CUresult(int *, CUdevice_attribute, CUdevice)>("cuDeviceGetAttribute");
  return cudaError_t(attribute(&properties->major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device));
}

const char *get_error_string(cudaError_t error) {
  const char *words = nullptr;
  driver<CUresult(CUresult, const char **)>("cuGetErrorString")(CUresult(error), &words);
  return words ? words : "an unknown CUDA error";
}

cudaError_t memcpy_async(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  const auto copy = driver<CUresult(CUdeviceptr, const void *, size_t, CUstream)>("cuMemcpyHtoDAsync_v2");
  return cudaError_t(copy(CUdeviceptr(to), from, bytes, stream));
}

// Of the versions of libcudart that the frontend tries, exactly one may be found; the address of this stands for it.
char runtime;
void *frontend_dlopen(const char *name, int) { return strcmp(name, "libcudart.so.13") == 0 ? &runtime : nullptr; }

void *frontend_dlsym(void *library, const char *name) {
  if (library != &runtime) return dlsym(library, name);
  const std::string function = name;
  if (function == "cudaGetDevice") return reinterpret_cast<void *>(get_device);
  if (function == "cudaGetDeviceProperties") return reinterpret_cast<void *>(get_device_properties);
  if (function == "cudaGetErrorString") return reinterpret_cast<void *>(get_error_string);
  return function == "cudaMemcpyAsync" ? reinterpret_cast<void *>(memcpy_async) : nullptr;
}

// ---- Loading ---------------------------------------------------------------------------------------------------------------------------

// By name, or else where NVIDIA's Python packages put it relative to `folder`, that of libcudnn.so.9.
void *open_library(const std::string &name, const std::string &folder) {
  if (void *const library = dlopen(name.c_str(), RTLD_NOW)) return library;
  const std::string reason = dlerror();
  for (const char *place : {"/", "/../../cu13/lib/", "/../../cublas/lib/", "/../../cuda_nvrtc/lib/"}) {
    if (void *const library = folder.empty() ? nullptr : dlopen((folder + place + name).c_str(), RTLD_NOW)) return library;
  }
  fail(reason);
}

std::mutex guard;  // of loading, and of the table of plans

// cuDNN opens further libraries when it first needs them, and ends the process with words on stderr where one is missing. So all are
// opened, and all functions looked up, before it has a reason to.
void load() {
  const std::lock_guard<std::mutex> lock(guard);
  if (fe::cudnn_dlhandle) return;
  void *const cudnn = open_library("libcudnn.so.9", "");
  const link_map *map = nullptr;
  std::string folder = dlinfo(cudnn, RTLD_DI_LINKMAP, &map) == 0 ? map->l_name : "";
  folder.resize(folder.find('/') == std::string::npos ? 0 : folder.rfind('/'));
  void *const graph = open_library("libcudnn_graph.so.9", folder);
  for (const char *name :
       {"GetVersion", "GetCudartVersion", "Create", "Destroy", "SetStream", "GetStream", "GetErrorString", "GetLastErrorString",
        "BackendCreateDescriptor", "BackendDestroyDescriptor", "BackendSetAttribute", "BackendGetAttribute", "BackendFinalize",
        "BackendExecute"}) {
    const std::string function = std::string("cudnn") + name;
    if (!dlsym(cudnn, function.c_str()) || !dlsym(graph, function.c_str())) fail("libcudnn.so.9 lacks " + function);
  }
  const size_t cuda = reinterpret_cast<size_t (*)()>(dlsym(graph, "cudnnGetCudartVersion"))() / 1000;
  for (const char *name : {"libcublasLt.so.", "libnvrtc.so."}) open_library(name + std::to_string(cuda), folder);
  for (const char *name : {"libcudnn_heuristic.so.9", "libcudnn_engines_precompiled.so.9", "libcudnn_engines_runtime_compiled.so.9"}) {
    open_library(name, folder);
  }
  fe::cudnn_dlhandle = cudnn;
}

// ---- Graphs and plans ------------------------------------------------------------------------------------------------------------------

// Tensors by number, as a graph and the pointers to run it with agree on them.
enum Id : int64_t { Q = 1, K, V, OUT, LSE, DOUT, DQ, DK, DV };
using Tensor = std::shared_ptr<fe::graph::Tensor_attributes>;

// Heads next to each other in rows of `width`; a head's numbers are `head_dim` neighbours.
void describe(const Tensor &tensor, Id id, const Shape &s, int64_t heads, int64_t width) {
  tensor->set_uid(id).set_data_type(fe::DataType_t::BFLOAT16);
  tensor->set_dim({s.batch, heads, s.length, s.head_dim}).set_stride({s.length * width, s.head_dim, width, 1});
}

// The frontend's `Stats`: max + log Σ exp(score - max) of the scores after scale and mask, which is log Σ exp.
void describe_lse(const Tensor &tensor, const Shape &s) {
  tensor->set_uid(LSE).set_data_type(fe::DataType_t::FLOAT);
  tensor->set_dim({s.batch, s.query_heads, s.length, 1}).set_stride({s.query_heads * s.length, s.length, 1, 1});
}

// Query i sees keys 0..=i: none to the right of the diagonal that starts at the top left.
template <class Options>
Options causal(const char *name, const Shape &s) {
  Options options;
  options.set_name(name).set_attn_scale(s.scale);
  options.set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT).set_diagonal_band_right_bound(0);
  return options;
}

void fill(fe::graph::Graph &graph, const Shape &s, bool backward) {
  graph.set_io_data_type(fe::DataType_t::BFLOAT16);
  graph.set_intermediate_data_type(fe::DataType_t::FLOAT).set_compute_data_type(fe::DataType_t::FLOAT);
  const int64_t packed = (s.query_heads + 2 * s.kv_heads) * s.head_dim, wide = s.query_heads * s.head_dim;
  const auto input = [&](Id id, int64_t heads, int64_t width) {
    const Tensor tensor = graph.tensor({});
    describe(tensor, id, s, heads, width);
    return tensor;
  };
  const Tensor q = input(Q, s.query_heads, packed), k = input(K, s.kv_heads, packed), v = input(V, s.kv_heads, packed);
  if (!backward) {
    const auto [out, lse] = graph.sdpa(q, k, v, causal<fe::graph::SDPA_attributes>("attention", s).set_generate_stats(true));
    for (const Tensor &tensor : {out, lse}) tensor->set_output(true);
    describe(out, OUT, s, s.query_heads, wide);
    return describe_lse(lse, s);
  }
  const Tensor out = input(OUT, s.query_heads, wide), dout = input(DOUT, s.query_heads, wide), lse = graph.tensor({});
  describe_lse(lse, s);
  const auto options = causal<fe::graph::SDPA_backward_attributes>("gradient", s).set_deterministic_algorithm(true);
  const auto [dq, dk, dv] = graph.sdpa_backward(q, k, v, out, dout, lse, options);
  for (const Tensor &tensor : {dq, dk, dv}) tensor->set_output(true);
  describe(dq, DQ, s, s.query_heads, packed);
  describe(dk, DK, s, s.kv_heads, packed);
  describe(dv, DV, s, s.kv_heads, packed);
}

struct Plan {
  Shape shape;
  bool backward;
  int64_t workspace = 0;
  fe::graph::Graph graph;

  // From the best candidate that can be built; why the last one cannot be, if none can.
  Plan(void *handle, const Shape &s, bool is_backward) : shape(s), backward(is_backward) {
    fill(graph, s, is_backward);
    check(graph.validate());
    check(graph.build_operation_graph(static_cast<cudnnHandle_t>(handle)));
    check(graph.create_execution_plans({fe::HeurMode_t::A, fe::HeurMode_t::FALLBACK}));
    fe::error_t error{fe::error_code_t::GRAPH_NOT_SUPPORTED, "no kernel for this shape"};
    for (int64_t i = 0; error.is_bad() && i < graph.get_execution_plan_count(); i++) error = graph.build_plan_at_index(i);
    check(error);
    check(graph.get_workspace_size(workspace));
  }
};

Plan &find_plan(void *handle, const Shape &s, bool backward) {
  using Key = std::tuple<void *, bool, int64_t, int64_t, int64_t, int64_t, int64_t, float>;
  static auto &plans = *new std::map<Key, std::unique_ptr<Plan>>;
  const std::lock_guard<std::mutex> lock(guard);
  const Key key(handle, backward, s.batch, s.length, s.query_heads, s.kv_heads, s.head_dim, s.scale);
  const auto found = plans.find(key);
  if (found != plans.end()) return *found->second;
  return *plans.emplace(key, std::make_unique<Plan>(handle, s, backward)).first->second;
}

using Pointers = std::unordered_map<int64_t, void *>;
// Keys lie behind the queries of their row, and values behind the keys.
void add_packed(Pointers &pointers, const Shape &s, Id query, Id key, Id value, const void *packed) {
  uint16_t *const first = static_cast<uint16_t *>(const_cast<void *>(packed));
  pointers[query] = first;
  pointers[key] = first + s.query_heads * s.head_dim;
  pointers[value] = first + (s.query_heads + s.kv_heads) * s.head_dim;
}

// `others` are the pointers to what is not packed.
void run(void *handle, const void *plan, const void *qkv, const void *dqkv, Pointers others, void *workspace) {
  const Plan &p = *static_cast<const Plan *>(plan);
  if (p.backward != (dqkv != nullptr)) fail("the plan is for the other direction");
  add_packed(others, p.shape, Q, K, V, qkv);
  if (dqkv) add_packed(others, p.shape, DQ, DK, DV, dqkv);
  check(p.graph.execute(static_cast<cudnnHandle_t>(handle), others, workspace));
}

}  // namespace

// ---- The interface ---------------------------------------------------------------------------------------------------------------------

extern "C" const char *llama_lite_cudnn_version(size_t *version) {
  return told([&] { load(), *version = fe::detail::get_backend_version(); });
}

// Kernels will go to `stream`.
extern "C" const char *llama_lite_cudnn_open(void *stream, void **handle) {
  return told([&] {
    load();
    driver<void()>("cuCtxGetDevice");  // for the words where there is none
    cudnnHandle_t opened = nullptr;
    check(fe::detail::create_handle(&opened), "cudnnCreate");
    check(fe::detail::set_stream(opened, static_cast<cudaStream_t>(stream)), "cudnnSetStream");
    *handle = opened;
  });
}

// The plan for a shape and a direction, made when first asked for (seconds, while others that ask have to wait), and the bytes of workspace
// that it runs with: any contents, aligned to 256 bytes.
extern "C" const char *llama_lite_cudnn_plan(void *handle, const llama_lite_attention *s, int backward, void **plan, size_t *workspace) {
  return told([&] {
    if (!handle) fail("there is no handle");
    for (const int64_t size : {s->batch, s->length, s->query_heads, s->kv_heads, s->head_dim}) {
      if (size < 1 || size > INT32_MAX) fail("a size is not in 1..2^31");  // the frontend takes it on trust
    }
    if (!isfinite(s->scale)) fail("the scale is not finite");
    Plan &found = find_plan(handle, *s, backward != 0);
    *plan = &found;
    *workspace = size_t(found.workspace);
  });
}

extern "C" const char *llama_lite_cudnn_forward(void *handle, void *plan, const void *qkv, void *out, float *lse, void *workspace) {
  return told([&] { run(handle, plan, qkv, nullptr, {{OUT, out}, {LSE, lse}}, workspace); });
}

extern "C" const char *llama_lite_cudnn_backward(void *handle, void *plan, const void *qkv, const void *out, const float *lse,
                                                 const void *dout, void *dqkv, void *workspace) {
  const auto pointer = [](const void *input) { return const_cast<void *>(input); };
  return told([&] { run(handle, plan, qkv, dqkv, {{OUT, pointer(out)}, {LSE, pointer(lse)}, {DOUT, pointer(dout)}}, workspace); });
}
