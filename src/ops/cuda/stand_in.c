// Stand-ins for NVIDIA's libraries: each function looks for the real one when it is first called, and is a jump to it from then on.
//
// Where a library is missing, its functions return the status that the build named for it. Folders are the dynamic linker's business:
// a library that is loaded already is found by its name.
//
// entries.h is made by build.rs out of the functions that cudarc declares:
//   LIBRARY(number, name, status)
//   ENTRY(number, library, function, whether it returns a string)
#include <dlfcn.h>
#include <stdio.h>

#define HIDDEN __attribute__((visibility("hidden"), used))

#define ENTRY(number, library, function, text)
#define LIBRARY(number, name, status)                                 \
  static long status_##number(void) { return status; }                \
  static const char *text_##number(void) { return name " is missing"; }
#include "entries.h"
#undef LIBRARY

struct library {
  const char *name;
  long (*status)(void);
  const char *(*text)(void);
  void *handle;
};
static struct library libraries[] = {
#define LIBRARY(number, name, status) {name, status_##number, text_##number, 0},
#include "entries.h"
#undef LIBRARY
#undef ENTRY
};
#define LIBRARY(number, name, status)

struct entry {
  const char *name;
  unsigned short library;
  unsigned short text;
};
static const struct entry entries[] = {
#define ENTRY(number, library, function, text) {#function, library, text},
#include "entries.h"
#undef ENTRY
};

// Where the functions are, once they were called.
HIDDEN void *llama_lite_cuda_found[sizeof entries / sizeof *entries];

static char missing[512];
static int missing_is_set;

// What was looked for first and not found, in the dynamic linker's words; null if nothing was.
const char *llama_lite_cuda_missing(void) { return __atomic_load_n(&missing_is_set, __ATOMIC_ACQUIRE) == 2 ? missing : 0; }

static void note_missing(void) {
  const char *words = dlerror();
  int unset = 0;
  if (!__atomic_compare_exchange_n(&missing_is_set, &unset, 1, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return;
  snprintf(missing, sizeof missing, "%s", words ? words : "no reason given");
  __atomic_store_n(&missing_is_set, 2, __ATOMIC_RELEASE);
}

// The function to call: the real one, or one that says that there is none. Two threads at once find the same.
HIDDEN void *llama_lite_cuda_find(unsigned number) {
  const struct entry *entry = &entries[number];
  struct library *library = &libraries[entry->library];
  void *handle = __atomic_load_n(&library->handle, __ATOMIC_ACQUIRE);
  if (!handle && (handle = dlopen(library->name, RTLD_NOW | RTLD_GLOBAL))) __atomic_store_n(&library->handle, handle, __ATOMIC_RELEASE);
  void *function = handle ? dlsym(handle, entry->name) : 0;
  if (function) {
    __atomic_store_n(&llama_lite_cuda_found[number], function, __ATOMIC_RELEASE);
    return function;
  }
  note_missing();
  return entry->text ? (void *)library->text : (void *)library->status;
}

// The functions themselves. They know nothing of their arguments and must leave them as they are: r11 alone is free to use.
#define ENTRY(number, library, function, text)                  \
  __asm__(".text\n"                                             \
          ".globl " #function "\n"                              \
          ".type " #function ", @function\n" #function ":\n"    \
          "  movq llama_lite_cuda_found+8*" #number "(%rip), %r11\n" \
          "  testq %r11, %r11\n"                                \
          "  jz 1f\n"                                           \
          "  jmp *%r11\n"                                       \
          "1: movl $" #number ", %r11d\n"                       \
          "  jmp llama_lite_cuda_first_call\n"                  \
          ".size " #function ", . - " #function "\n");
#include "entries.h"

// Keeps all registers that arguments may be in while the number in r11 becomes an address. Frame pointer, seven registers and 136 bytes
// leave the stack aligned to 16 bytes, as a call needs it.
__asm__(".text\n"
        ".type llama_lite_cuda_first_call, @function\n"
        "llama_lite_cuda_first_call:\n"
        "  pushq %rbp\n"
        "  movq %rsp, %rbp\n"
        "  pushq %rdi\n  pushq %rsi\n  pushq %rdx\n  pushq %rcx\n  pushq %r8\n  pushq %r9\n  pushq %rax\n"
        "  subq $136, %rsp\n"
        "  movups %xmm0, (%rsp)\n  movups %xmm1, 16(%rsp)\n  movups %xmm2, 32(%rsp)\n  movups %xmm3, 48(%rsp)\n"
        "  movups %xmm4, 64(%rsp)\n  movups %xmm5, 80(%rsp)\n  movups %xmm6, 96(%rsp)\n  movups %xmm7, 112(%rsp)\n"
        "  movl %r11d, %edi\n"
        "  call llama_lite_cuda_find\n"
        "  movq %rax, %r11\n"
        "  movups (%rsp), %xmm0\n  movups 16(%rsp), %xmm1\n  movups 32(%rsp), %xmm2\n  movups 48(%rsp), %xmm3\n"
        "  movups 64(%rsp), %xmm4\n  movups 80(%rsp), %xmm5\n  movups 96(%rsp), %xmm6\n  movups 112(%rsp), %xmm7\n"
        "  addq $136, %rsp\n"
        "  popq %rax\n  popq %r9\n  popq %r8\n  popq %rcx\n  popq %rdx\n  popq %rsi\n  popq %rdi\n"
        "  popq %rbp\n"
        "  jmp *%r11\n"
        ".size llama_lite_cuda_first_call, . - llama_lite_cuda_first_call\n");
