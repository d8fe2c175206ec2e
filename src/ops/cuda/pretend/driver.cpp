// A CUDA driver for a machine without a GPU, so that the whole program runs as on one: its calls of the driver, candle's backend, launches and
// their arguments, memory, captured graphs. Kernels are the emulated ones (emulated.h) and those of candle.cpp. What a launch does is done at
// once, or recorded while a stream is captured; memory begins as NaNs, and what is written beyond an allocation ends the program.
//
// scripts/pretend_gpu.sh builds it as libcuda.so.1 and runs a program with it. LLAMA_LITE_PRETEND_REPORT=FILE gets the launches and the most
// memory that was in use; LLAMA_LITE_PRETEND_BYTES is how much there is, LLAMA_LITE_PRETEND_GPUS how many GPUs (1), LLAMA_LITE_PRETEND_NAME what
// they are called. LLAMA_LITE_PRETEND_FAIL=KERNEL makes its launches fail, LLAMA_LITE_PRETEND_NO_GRAPHS=1 lets nothing be recorded. What is copied to the
// host arrives when the stream is waited for: who reads it before finds NaNs. Events have a clock of their own, which products move on (blas.cpp): what is measured is the same every time.
#include "pretend.h"
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <mutex>
#include <regex>
#include <string>
#include <unistd.h>
#include <utility>
#include <vector>

namespace {
using Work = std::function<void()>;
constexpr size_t GUARD = 64;

struct Kernel {
  std::string name;
  std::vector<size_t> sizes;  // of its arguments, in bytes
  int (*run)(const unsigned *, const unsigned *, unsigned, void **) = nullptr;
  int shared = 48 << 10;
};
struct Module {
  std::map<std::string, Kernel> kernels;
};
struct Graph {
  std::vector<Work> works;
};
struct Event {
  std::chrono::steady_clock::time_point at;
  size_t after = 0;  // what other libraries had queued
};
// What was copied to the host, which has not waited for it.
struct Delayed {
  void *to;
  std::vector<unsigned char> bytes;
};
// What another library does by itself, when the stream has got there.
struct Foreign {
  int (*go_on)(void *);
  void *what;
};

std::mutex guard;
std::map<uintptr_t, size_t> blocks;
size_t in_use, most_in_use;
std::map<std::string, size_t> launches;
Graph *capturing;
std::vector<Delayed> delayed;
std::mutex foreign_guard;
std::deque<Foreign> foreign;
size_t foreign_queued, foreign_done;
int opened;  // the GPU of this process
std::chrono::microseconds pretended;  // by which the clock of events is ahead

int gpus() {
  const char *const said = std::getenv("LLAMA_LITE_PRETEND_GPUS");
  return said ? std::atoi(said) : 1;
}

size_t total() {
  static const char *const said = std::getenv("LLAMA_LITE_PRETEND_BYTES");
  return said ? std::strtoull(said, nullptr, 10) : size_t(16) << 30;
}

[[noreturn]] void fail(const char *what, const char *which = "") {
  std::fprintf(stderr, "pretended driver: %s %s\n", what, which);
  std::abort();
}

// Whether the stream has passed the first `until` works of other libraries.
bool has_passed(size_t until) {
  const std::lock_guard<std::mutex> lock(foreign_guard);
  for (; foreign_done < until && foreign.front().go_on(foreign.front().what); foreign_done++) foreign.pop_front();
  return foreign_done >= until;
}
// What is done at once here comes after them.
void settle(size_t until = foreign_queued) {
  while (!has_passed(until)) usleep(20);
}

// The same, and the host has what was copied to it.
void wait_for(size_t until = foreign_queued) {
  settle(until);
  const std::lock_guard<std::mutex> lock(guard);
  for (const Delayed &copy : delayed) std::memcpy(copy.to, copy.bytes.data(), copy.bytes.size());
  delayed.clear();
}

void report() {
  const char *path = std::getenv("LLAMA_LITE_PRETEND_REPORT");
  FILE *file = path ? std::fopen(path, "w") : nullptr;
  if (!file) return;
  std::fprintf(file, "{\"most_bytes\": %zu, \"launches\": {", most_in_use);
  const char *comma = "";
  for (const auto &[name, count] : launches) std::fprintf(file, "%s\"%s\": %zu", comma, name.c_str(), count), comma = ", ";
  std::fprintf(file, "}}\n");
  std::fclose(file);
}

void *allocate(size_t bytes) {
  unsigned char *const at = static_cast<unsigned char *>(std::aligned_alloc(256, (bytes + GUARD + 255) / 256 * 256));
  if (!at) return nullptr;
  std::memset(at, 0xff, bytes);
  std::memset(at + bytes, 0xa5, GUARD);
  const std::lock_guard<std::mutex> lock(guard);
  blocks[uintptr_t(at)] = bytes, in_use += bytes;
  most_in_use = std::max(most_in_use, in_use);
  return at;
}

void release(uintptr_t at) {
  const std::lock_guard<std::mutex> lock(guard);
  const auto found = blocks.find(at);
  if (found == blocks.end()) fail("memory is freed that was not allocated");
  for (size_t i = 0; i < GUARD; i++)
    if (reinterpret_cast<unsigned char *>(at)[found->second + i] != 0xa5) fail("something was written after the end of an allocation");
  std::memset(reinterpret_cast<void *>(at), 0xff, found->second);
  in_use -= found->second;
  blocks.erase(found);
  std::free(reinterpret_cast<void *>(at));
}

// Whether [at, at + bytes) lies in one allocation.
void check(uintptr_t at, size_t bytes, const char *what) {
  if (bytes == 0) return;
  const std::lock_guard<std::mutex> lock(guard);
  auto after = blocks.upper_bound(at);
  if (after == blocks.begin()) fail("no memory of the GPU:", what);
  --after;
  if (at + bytes > after->first + after->second) fail("beyond the end of an allocation:", what);
}

// Kernels and the sizes of their arguments, as PTX declares them.
Module *parse(const std::string &ptx) {
  Module *const module = new Module;
  static const std::regex parameter(R"(\.param(?: \.align \d+)? \.([busf])(\d+)(?: \.ptr[^,\n]*?)? \w+(?:\[(\d+)\])?)");
  for (size_t at = ptx.find(".entry "); at != std::string::npos; at = ptx.find(".entry ", at + 1)) {
    const size_t open = ptx.find('(', at), close = ptx.find(')', open);
    Kernel kernel;
    kernel.name = ptx.substr(at + 7, open - at - 7);
    const std::string list = ptx.substr(open, close - open);
    for (std::sregex_iterator it(list.begin(), list.end(), parameter), end; it != end; ++it) {
      const size_t bytes = std::stoul((*it)[2]) / 8;
      kernel.sizes.push_back((*it)[3].matched ? bytes * std::stoul((*it)[3]) : bytes);
    }
    module->kernels[kernel.name] = kernel;
  }
  return module;
}

// The emulated kernel of that name, from the libraries beside this one.
auto find(const std::string &name) -> decltype(Kernel::run) {
  static const std::vector<void *> libraries = [] {
    std::vector<void *> all;
    const char *list = std::getenv("LLAMA_LITE_PRETEND_KERNELS");
    for (std::string rest = list ? list : ""; !rest.empty();) {
      const size_t colon = rest.find(':');
      if (void *const library = dlopen(rest.substr(0, colon).c_str(), RTLD_NOW | RTLD_LOCAL)) all.push_back(library);
      else fail("a library of kernels:", dlerror());
      rest = colon == std::string::npos ? "" : rest.substr(colon + 1);
    }
    return all;
  }();
  for (void *library : libraries)
    if (void *const found = dlsym(library, ("emulated_" + name).c_str())) return reinterpret_cast<decltype(Kernel::run)>(found);
  return nullptr;
}
}  // namespace

// Does `work` now, or when the graph that is being captured is launched.
extern "C" void pretend_queue(void (*work)(void *), const void *arguments, size_t bytes) {
  std::vector<unsigned char> copy(static_cast<const unsigned char *>(arguments), static_cast<const unsigned char *>(arguments) + bytes);
  Work run = [=]() mutable { work(copy.data()); };
  if (capturing) capturing->works.push_back(run);
  else settle(), run();
}
extern "C" void pretend_check(uintptr_t at, size_t bytes, const char *what) { check(at, bytes, what); }
extern "C" void pretend_count(const char *name) { launches[name]++; }
extern "C" void pretend_follow(int (*go_on)(void *), void *what) {
  if (capturing) fail("another library queues work while a stream is captured");
  const std::lock_guard<std::mutex> lock(foreign_guard);
  foreign.push_back({go_on, what}), foreign_queued++;
}
extern "C" int pretend_device() { return opened; }
extern "C" void pretend_take(long microseconds) { pretended += std::chrono::microseconds(microseconds); }
extern "C" int pretend_is_capturing() { return capturing != nullptr; }

#define API extern "C" __attribute__((visibility("default"))) int
using Pointer = unsigned long long;

// ---- Device, context, streams ----------------------------------------------------------------------------------------------------------
API cuInit(unsigned) { return atexit(report), 0; }
API cuDriverGetVersion(int *version) { return *version = 13000, 0; }
API cuDeviceGetCount(int *n) { return *n = gpus(), 0; }
API cuDeviceGet(int *device, int number) { return *device = number, number < gpus() ? 0 : 101; }  // CUDA_ERROR_INVALID_DEVICE
API cuDeviceGetUuid_v2(void *uuid, int device) {
  std::memset(uuid, 0, 16);
  return static_cast<unsigned char *>(uuid)[15] = static_cast<unsigned char>(device), 0;
}
API cuDeviceGetName(char *name, int n, int) {
  const char *const said = std::getenv("LLAMA_LITE_PRETEND_NAME");
  return std::snprintf(name, n, "%s", said ? said : "a pretended GPU"), 0;
}
API cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = total(), 0; }
// Of the attributes the program asks for the generation, and whether memory can be had in stream order.
API cuDeviceGetAttribute(int *value, int attribute, int) { return *value = attribute == 75 ? 9 : attribute == 76 ? 0 : 1, 0; }
API cuDevicePrimaryCtxRetain(void **context, int device) { return opened = device, *context = &guard, 0; }
API cuDevicePrimaryCtxRelease_v2(int) { return 0; }
API cuCtxSetCurrent(void *) { return 0; }
API cuCtxGetCurrent(void **context) { return *context = &guard, 0; }
API cuCtxGetDevice(int *device) { return *device = opened, 0; }
API cuCtxSynchronize() { return wait_for(), 0; }
API cuCtxSetFlags(unsigned) { return 0; }
API cuStreamCreate(void **stream, unsigned) { return *stream = &in_use, 0; }
API cuStreamCreateWithPriority(void **stream, unsigned, int) { return *stream = &in_use, 0; }
API cuStreamDestroy_v2(void *) { return 0; }
API cuStreamSynchronize(void *) {
  return capturing ? 900 : (wait_for(), 0);  // CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
}
API cuStreamWaitEvent(void *, void *, unsigned) { return 0; }
API cuGetErrorName(int error, const char **text) { return *text = error == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : "PRETENDED_ERROR", 0; }
API cuGetErrorString(int error, const char **text) { return *text = error == 2 ? "out of memory" : "an error of the pretended driver", 0; }

// ---- Memory ----------------------------------------------------------------------------------------------------------------------------
API cuMemGetInfo_v2(size_t *free, size_t *total) { return *free = ::total() - in_use, *total = ::total(), 0; }
API cuDeviceGetDefaultMemPool(void **pool, int) { return *pool = &blocks, 0; }
API cuMemPoolSetAttribute(void *, int, void *) { return 0; }
API cuMemAllocAsync(Pointer *at, size_t bytes, void *) {
  if (capturing) fail("memory is allocated while a stream is captured");
  if (bytes == 0) return 1;  // CUDA_ERROR_INVALID_VALUE
  if (in_use + bytes > total()) return 2;
  return *at = Pointer(allocate(bytes)), 0;
}
API cuMemAlloc_v2(Pointer *at, size_t bytes) { return cuMemAllocAsync(at, bytes, nullptr); }
API cuMemFreeAsync(Pointer at, void *) {
  if (capturing) fail("memory is freed while a stream is captured");
  return settle(), release(at), 0;
}
API cuMemFree_v2(Pointer at) { return settle(), release(at), 0; }
API cuMemHostAlloc(void **at, size_t bytes, unsigned) { return *at = std::malloc(bytes), 0; }
API cuMemsetD8Async(Pointer at, unsigned char byte, size_t n, void *) {
  if (capturing) fail("memory is set while a stream is captured");
  return check(at, n, "memset"), settle(), std::memset(reinterpret_cast<void *>(at), byte, n), 0;
}
API cuMemsetD8_v2(Pointer at, unsigned char byte, size_t n) { return cuMemsetD8Async(at, byte, n, nullptr); }
API cuMemcpyHtoDAsync_v2(Pointer to, const void *from, size_t n, void *) {
  if (capturing) fail("memory is copied while a stream is captured");
  return check(to, n, "copy to the GPU"), settle(), std::memcpy(reinterpret_cast<void *>(to), from, n), 0;
}
API cuMemcpyHtoD_v2(Pointer to, const void *from, size_t n) { return cuMemcpyHtoDAsync_v2(to, from, n, nullptr); }
API cuMemcpyDtoHAsync_v2(void *to, Pointer from, size_t n, void *) {
  if (capturing) fail("memory is copied while a stream is captured");
  check(from, n, "copy from the GPU"), settle();
  const unsigned char *const bytes = reinterpret_cast<unsigned char *>(from);
  const std::lock_guard<std::mutex> lock(guard);
  delayed.push_back({to, {bytes, bytes + n}});
  return std::memset(to, 0xff, n), 0;
}
API cuMemcpyDtoH_v2(void *to, Pointer from, size_t n) {
  const int status = cuMemcpyDtoHAsync_v2(to, from, n, nullptr);
  return wait_for(), status;
}
API cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t n, void *) {
  if (capturing) fail("memory is copied while a stream is captured");
  check(from, n, "copy"), check(to, n, "copy"), settle();
  return std::memmove(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), n), 0;
}

// ---- Events ----------------------------------------------------------------------------------------------------------------------------
API cuEventCreate(void **event, unsigned) { return *event = new Event, 0; }
API cuEventRecord(void *event, void *) {
  if (capturing) return 900;
  static_cast<Event *>(event)->at = std::chrono::steady_clock::now() + pretended;
  return static_cast<Event *>(event)->after = foreign_queued, 0;
}
API cuEventSynchronize(void *event) { return wait_for(static_cast<Event *>(event)->after), 0; }
API cuEventQuery(void *event) {
  if (!has_passed(static_cast<Event *>(event)->after)) return 600;  // CUDA_ERROR_NOT_READY
  return wait_for(static_cast<Event *>(event)->after), 0;
}
API cuEventDestroy_v2(void *event) { return delete static_cast<Event *>(event), 0; }
API cuEventElapsedTime_v2(float *ms, void *from, void *to) {
  return *ms = std::chrono::duration<float, std::milli>(static_cast<Event *>(to)->at - static_cast<Event *>(from)->at).count(), 0;
}
API cuEventElapsedTime(float *ms, void *from, void *to) { return cuEventElapsedTime_v2(ms, from, to); }

// ---- Modules and launches --------------------------------------------------------------------------------------------------------------
API cuModuleLoadData(void **module, const void *image) {
  if (capturing) fail("a module is loaded while a stream is captured");
  return *module = parse(static_cast<const char *>(image)), 0;
}
API cuModuleUnload(void *) { return 0; }
API cuModuleGetFunction(void **function, void *module, const char *name) {
  auto &kernels = static_cast<Module *>(module)->kernels;
  const auto found = kernels.find(name);
  if (found == kernels.end()) return 500;  // CUDA_ERROR_NOT_FOUND
  if (!found->second.run) found->second.run = find(name);
  if (!found->second.run) fail("nobody emulates", name);
  return *function = &found->second, 0;
}
API cuFuncSetAttribute(void *function, int attribute, int value) {
  if (attribute == 8) static_cast<Kernel *>(function)->shared = value;
  return 0;
}
API cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *,
                   void **arguments, void **) {
  const Kernel *const kernel = static_cast<Kernel *>(function);
  static const char *const failing = std::getenv("LLAMA_LITE_PRETEND_FAIL");
  if (failing && kernel->name == failing) return 719;  // CUDA_ERROR_LAUNCH_FAILED
  if (int(shared) > kernel->shared || gx == 0 || gy == 0 || gz == 0) return 1;  // CUDA_ERROR_INVALID_VALUE
  pretend_count(kernel->name.c_str());
  // Arguments are the caller's only until it returns.
  std::vector<std::vector<unsigned char>> values;
  for (size_t i = 0; i < kernel->sizes.size(); i++) {
    const unsigned char *const from = static_cast<unsigned char *>(arguments[i]);
    values.emplace_back(from, from + kernel->sizes[i]);
  }
  Work work = [=]() mutable {
    std::vector<void *> pointers;
    for (auto &value : values) pointers.push_back(value.data());
    const unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
    if (kernel->run(grid, block, shared, pointers.data())) fail("a launch that no GPU takes:", kernel->name.c_str());
  };
  if (capturing) capturing->works.push_back(work);
  else settle(), work();
  return 0;
}

// ---- Graphs ----------------------------------------------------------------------------------------------------------------------------
API cuStreamBeginCapture_v2(void *, int) {
  if (std::getenv("LLAMA_LITE_PRETEND_NO_GRAPHS")) return 801;  // CUDA_ERROR_NOT_SUPPORTED
  return capturing ? 901 : (capturing = new Graph, 0);
}
API cuStreamEndCapture(void *, void **graph) { return *graph = std::exchange(capturing, nullptr), 0; }
API cuStreamIsCapturing(void *, int *status) { return *status = capturing ? 1 : 0, 0; }
API cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long) { return *executable = new Graph(*static_cast<Graph *>(graph)), 0; }
API cuGraphLaunch(void *executable, void *) {
  pretend_count("graph");
  settle();
  for (Work &work : static_cast<Graph *>(executable)->works) work();
  return 0;
}
API cuGraphExecDestroy(void *executable) { return delete static_cast<Graph *>(executable), 0; }
API cuGraphDestroy(void *graph) { return delete static_cast<Graph *>(graph), 0; }
