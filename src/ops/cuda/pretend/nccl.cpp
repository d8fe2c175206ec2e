// NCCL for pretended GPUs (driver.cpp): messages between processes of one machine, over shared memory. What is queued is done piece by piece
// as the driver asks for it, in the order of the stream, so that a program that does not wait for it is noticed.
//
// Messages whose lengths differ are an error of the communicator, after which it hangs, as with the real one. Who waits for a message that
// does not come ends the program after LLAMA_LITE_PRETEND_SECONDS (60).
#include "pretend.h"
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <memory>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <vector>

namespace {
constexpr int RANKS = 8, SLOTS = 4;
constexpr size_t PIECE = 256 << 10;
enum Result { SUCCESS = 0, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5 };
using Clock = std::chrono::steady_clock;

// From one rank to another one, for which zeros are the beginning.
struct Channel {
  // How many messages each side has begun, and the lengths of the last ones.
  std::atomic<uint64_t> sent, received;
  std::atomic<uint64_t> sent_bytes[SLOTS], received_bytes[SLOTS];
  std::atomic<uint32_t> full;
  uint32_t bytes;
  unsigned char piece[PIECE];
};
struct Shared {
  std::atomic<int> joined;
  int devices[RANKS];
  Channel channels[RANKS][RANKS];  // from, to
};
struct Communicator {
  Shared *shared;
  int rank, ranks;
  uint64_t sent[RANKS], received[RANKS];
  std::atomic<int> error, pending;
  std::atomic<bool> aborted;
};
struct Transfer {
  Communicator *communicator;
  bool sends, begun;
  int peer;
  unsigned char *at;
  size_t bytes, done;
  uint64_t number;
};
struct Group {
  Communicator *communicator;
  std::vector<Transfer> transfers;
  Clock::time_point moved;
};

thread_local int depth;
thread_local std::vector<Transfer> collected;
char last_error[256];

int refuse(int code, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  return code;
}

double limit() {
  const char *said = std::getenv("LLAMA_LITE_PRETEND_SECONDS");
  return said ? std::atof(said) : 60;
}
bool is_over(Clock::time_point since) { return std::chrono::duration<double>(Clock::now() - since).count() > limit(); }

Channel &channel_of(const Transfer &t) {
  Communicator &c = *t.communicator;
  return t.sends ? c.shared->channels[c.rank][t.peer] : c.shared->channels[t.peer][c.rank];
}

// Moves what can be moved of a message; whether something was.
bool move(Transfer &t) {
  Channel &channel = channel_of(t);
  if (!t.begun) {
    (t.sends ? channel.sent_bytes : channel.received_bytes)[t.number % SLOTS] = t.bytes;
    (t.sends ? channel.sent : channel.received) = t.number + 1;
    t.begun = true;
  }
  if ((t.sends ? channel.received : channel.sent) <= t.number) return false;
  const uint64_t theirs = (t.sends ? channel.received_bytes : channel.sent_bytes)[t.number % SLOTS];
  if (theirs != t.bytes) {
    t.communicator->error = refuse(INVALID_USAGE, "rank %d %s %zu bytes, and rank %d %s %zu", t.communicator->rank, t.sends ? "sends" : "receives",
                                   t.bytes, t.peer, t.sends ? "receives" : "sends", size_t(theirs));
    return false;
  }
  bool moved = false;
  while (t.done < t.bytes && bool(channel.full.load(std::memory_order_acquire)) != t.sends) {
    if (t.sends) {
      channel.bytes = uint32_t(std::min(PIECE, t.bytes - t.done));
      std::memcpy(channel.piece, t.at + t.done, channel.bytes);
    } else {
      std::memcpy(t.at + t.done, channel.piece, channel.bytes);
    }
    t.done += channel.bytes;
    channel.full.store(t.sends, std::memory_order_release);
    moved = true;
  }
  return moved;
}

// Whether a group is done; the driver asks again and again.
int go_on(void *what) {
  Group *const group = static_cast<Group *>(what);
  Communicator &c = *group->communicator;
  bool done = true;
  for (Transfer &t : group->transfers) {
    if (c.aborted || c.error) break;
    if (move(t)) group->moved = Clock::now();
    done = done && t.begun && t.done == t.bytes && (t.sends ? channel_of(t).received : channel_of(t).sent) > t.number;
  }
  if (c.aborted || (done && !c.error)) {
    c.pending--;
    delete group;
    return 1;
  }
  if (is_over(group->moved)) {
    const Transfer &t = group->transfers.front();
    std::fprintf(stderr, "pretended NCCL: rank %d waits for ever for rank %d, which is to %s %zu bytes%s%s\n", c.rank, t.peer,
                 t.sends ? "receive" : "send", t.bytes, c.error ? ": " : "", c.error ? last_error : "");
    std::abort();
  }
  return 0;
}

int submit() {
  std::vector<Transfer> transfers;
  transfers.swap(collected);
  if (transfers.empty()) return SUCCESS;
  Communicator *const c = transfers.front().communicator;
  for (size_t i = 0; i < transfers.size(); i++) {
    Transfer &t = transfers[i];
    for (size_t j = 0; j < i; j++)
      if (transfers[j].communicator != c || (transfers[j].peer == t.peer && transfers[j].sends == t.sends))
        return refuse(INVALID_USAGE, "a group of several communicators, or with several messages from one rank to one other, is not pretended");
    t.number = (t.sends ? c->sent : c->received)[t.peer]++;
  }
  c->pending++;
  pretend_follow(go_on, new Group{c, transfers, Clock::now()});
  return SUCCESS;
}

int collect(void *at, size_t count, int type, int peer, Communicator *c, bool sends) {
  static const size_t sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
  if (type < 0 || type > 9 || !c || peer < 0 || peer >= c->ranks) return refuse(INVALID_ARGUMENT, "no such type or rank");
  const size_t bytes = count * sizes[type];
  pretend_check(uintptr_t(at), bytes, sends ? "ncclSend" : "ncclRecv");
  pretend_count(sends ? "ncclSend" : "ncclRecv");
  collected.push_back({c, sends, false, peer, static_cast<unsigned char *>(at), bytes, 0, 0});
  return depth ? int(SUCCESS) : submit();
}
}  // namespace

#define API extern "C" __attribute__((visibility("default")))
struct Id {
  char name[128];
};

API int ncclGetVersion(int *version) {
  const char *said = std::getenv("LLAMA_LITE_PRETEND_NCCL");
  return *version = said ? std::atoi(said) : 22809, SUCCESS;
}
API const char *ncclGetErrorString(int code) {
  return code == SUCCESS ? "no error" : code == SYSTEM_ERROR ? "unhandled system error" : code == INVALID_ARGUMENT ? "invalid argument" : "invalid usage";
}
API const char *ncclGetLastError(void *) { return last_error; }
API int ncclGetUniqueId(Id *id) {
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  std::memset(id, 0, sizeof *id);
  std::snprintf(id->name, sizeof id->name, "/pretended-nccl-%d-%ld-%ld", int(getpid()), long(now.tv_sec), long(now.tv_nsec));
  return SUCCESS;
}
API int ncclCommInitRank(Communicator **communicator, int ranks, Id id, int rank) {
  if (ranks < 1 || ranks > RANKS || rank < 0 || rank >= ranks) return refuse(INVALID_ARGUMENT, "no such rank");
  const int file = shm_open(id.name, O_RDWR | O_CREAT, 0600);
  if (file < 0 || ftruncate(file, sizeof(Shared))) return refuse(SYSTEM_ERROR, "no shared memory");
  void *const at = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (at == MAP_FAILED) return refuse(SYSTEM_ERROR, "no shared memory");
  Shared *const shared = static_cast<Shared *>(at);
  shared->devices[rank] = pretend_device();
  shared->joined++;
  for (const auto begun = Clock::now(); shared->joined < ranks; usleep(1000))
    if (is_over(begun)) return refuse(SYSTEM_ERROR, "%d of %d ranks have joined", int(shared->joined), ranks);
  // All have it open.
  shm_unlink(id.name);
  for (int i = 0; i < ranks; i++)
    for (int j = 0; j < i; j++)
      if (shared->devices[i] == shared->devices[j])
        return refuse(INVALID_USAGE, "Duplicate GPU detected : rank %d and rank %d both on CUDA device %d", j, i, shared->devices[i]);
  *communicator = new Communicator{};
  (*communicator)->shared = shared, (*communicator)->rank = rank, (*communicator)->ranks = ranks;
  return SUCCESS;
}
API int ncclCommDestroy(Communicator *c) {
  if (c->pending) return refuse(INVALID_USAGE, "a communicator is destroyed while something is pending");
  munmap(c->shared, sizeof(Shared));
  return SUCCESS;
}
API int ncclCommAbort(Communicator *c) { return c->aborted = true, SUCCESS; }
API int ncclCommGetAsyncError(Communicator *c, int *error) { return *error = c->error, SUCCESS; }
API int ncclGroupStart() { return depth++, SUCCESS; }
API int ncclGroupEnd() {
  if (depth == 0) return refuse(INVALID_USAGE, "a group is ended that was not started");
  return --depth ? int(SUCCESS) : submit();
}
API int ncclSend(const void *at, size_t count, int type, int peer, Communicator *c, void *) {
  return collect(const_cast<void *>(at), count, type, peer, c, true);
}
API int ncclRecv(void *at, size_t count, int type, int peer, Communicator *c, void *) { return collect(at, count, type, peer, c, false); }
