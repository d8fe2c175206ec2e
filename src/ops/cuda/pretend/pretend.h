// What the pretended libraries share.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

struct Bf16 {
  uint16_t bits;
};
inline float widened(Bf16 x) {
  const uint32_t word = uint32_t(x.bits) << 16;
  float f;
  return std::memcpy(&f, &word, 4), f;
}
inline Bf16 rounded(float x) {
  uint32_t word;
  std::memcpy(&word, &x, 4);
  const bool nan = (word & 0x7fffffffu) > 0x7f800000u;
  return {nan ? uint16_t(word >> 16 | 0x40) : uint16_t((word + 0x7fffu + (word >> 16 & 1)) >> 16)};
}

// Does `work` now or, while a stream is captured, later, with a copy of its arguments.
extern "C" void pretend_queue(void (*work)(void *), const void *arguments, size_t bytes);
// Ends the program unless [at, at + bytes) lies in one allocation.
extern "C" void pretend_check(uintptr_t at, size_t bytes, const char *what);
extern "C" void pretend_count(const char *name);
// Queues what another library does by itself: `go_on` is called again and again, until it returns other than 0.
extern "C" void pretend_follow(int (*go_on)(void *), void *what);
// The number of the GPU of this process.
extern "C" int pretend_device();
// Moves the clock of events on, as if the stream had worked for so long.
extern "C" void pretend_take(long microseconds);
extern "C" int pretend_is_capturing();
