// What the pretended libraries share.
#pragma once
#include <cstddef>
#include <cstdint>

// Does `work` now or, while a stream is captured, later, with a copy of its arguments.
extern "C" void pretend_queue(void (*work)(void *), const void *arguments, size_t bytes);
// Ends the program unless [at, at + bytes) lies in one allocation.
extern "C" void pretend_check(uintptr_t at, size_t bytes, const char *what);
extern "C" void pretend_count(const char *name);
