// A pool whose caller works too and waits only for chunks that somebody has claimed, never for a
// worker that has not woken up. On a crowded machine that is what keeps a call short.
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>

#include "kernel.h"
#include "memory.h"

namespace trimtab {
namespace {

constexpr auto kSpin = std::chrono::microseconds(20);
constexpr int kMaximumThreads = 1024;
constexpr uint32_t kClosed = 0xFFFFFFFFu;

// Marks threads that are inside a parallel section, so that nested sections run in place.
thread_local bool inside_section = false;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Pool {
 public:
  void run(int64_t chunks, void (*body)(void*, int64_t), void* context, int threads) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock() || !ensure_workers(threads - 1)) {
      run_here(chunks, body, context);
      return;
    }
    publish(chunks, body, context, threads - 1);
    inside_section = true;
    const uint32_t epoch = static_cast<uint32_t>(ticket_.load(std::memory_order_relaxed) >> 32);
    work(epoch);
    inside_section = false;
    wait_until_finished(chunks);
  }

  static void run_here(int64_t chunks, void (*body)(void*, int64_t), void* context) {
    const bool before = inside_section;
    inside_section = true;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) body(context, chunk);
    inside_section = before;
  }

 private:
  // A claim succeeds only if the ticket did not change since it was read. The ticket is closed
  // while the fields below it change, so a successful claim has read one consistent set of them.
  void publish(int64_t chunks, void (*body)(void*, int64_t), void* context, int helpers) {
    const uint64_t epoch = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
    ticket_.store(epoch << 32 | kClosed, std::memory_order_seq_cst);
    body_.store(body, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    chunks_.store(static_cast<uint32_t>(chunks), std::memory_order_relaxed);
    helpers_.store(helpers, std::memory_order_relaxed);
    finished_.store(0, std::memory_order_relaxed);
    ticket_.store(epoch << 32, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard<std::mutex> lock(sleep_);
      wake_.notify_all();
    }
  }

  void work(uint32_t epoch) {
    for (;;) {
      uint64_t ticket = ticket_.load(std::memory_order_acquire);
      const uint32_t chunk = static_cast<uint32_t>(ticket);
      if (static_cast<uint32_t>(ticket >> 32) != epoch || chunk == kClosed) return;
      auto body = body_.load(std::memory_order_relaxed);
      void* context = context_.load(std::memory_order_relaxed);
      const uint32_t chunks = chunks_.load(std::memory_order_relaxed);
      if (chunk >= chunks) return;
      if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
      body(context, chunk);
      if (finished_.fetch_add(1, std::memory_order_acq_rel) + 1 == chunks &&
          caller_sleeps_.load(std::memory_order_seq_cst)) {
        std::lock_guard<std::mutex> lock(sleep_);
        done_.notify_one();
      }
    }
  }

  void wait_until_finished(int64_t chunks) {
    const auto deadline = std::chrono::steady_clock::now() + kSpin;
    while (finished_.load(std::memory_order_acquire) != chunks) {
      relax();
      if (std::chrono::steady_clock::now() < deadline) continue;
      std::unique_lock<std::mutex> lock(sleep_);
      caller_sleeps_.store(true, std::memory_order_seq_cst);
      // The last fetch_add is ordered against the flag by seq_cst; the short timeout is a belt.
      while (finished_.load(std::memory_order_seq_cst) != chunks)
        done_.wait_for(lock, std::chrono::milliseconds(1));
      caller_sleeps_.store(false, std::memory_order_relaxed);
    }
  }

  void serve(int index) {
    inside_section = true;
    uint32_t seen = 0;
    for (;;) {
      const uint32_t epoch = await_epoch(seen);
      seen = epoch;
      if (index < helpers_.load(std::memory_order_relaxed)) work(epoch);
    }
  }

  uint32_t await_epoch(uint32_t seen) {
    const auto deadline = std::chrono::steady_clock::now() + kSpin;
    do {
      if (const uint32_t epoch = open_epoch(); epoch != seen) return epoch;
      for (int i = 0; i < 16; ++i) relax();
    } while (std::chrono::steady_clock::now() < deadline);
    std::unique_lock<std::mutex> lock(sleep_);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    uint32_t epoch;
    while ((epoch = open_epoch()) == seen) wake_.wait(lock);
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    return epoch;
  }

  // The newest epoch whose fields are published; a closed ticket still shows the one before.
  uint32_t open_epoch() const {
    const uint64_t ticket = ticket_.load(std::memory_order_seq_cst);
    const uint32_t epoch = static_cast<uint32_t>(ticket >> 32);
    return static_cast<uint32_t>(ticket) == kClosed ? epoch - 1 : epoch;
  }

  bool ensure_workers(int wanted) {
    while (workers_ < wanted) {
      try {
        std::thread([this, index = workers_] { serve(index); }).detach();
      } catch (...) {
        break;  // No more threads to be had: work with those that there are.
      }
      ++workers_;
    }
    return workers_ > 0;
  }

  std::mutex turn_;
  int workers_ = 0;

  alignas(64) std::atomic<uint64_t> ticket_{kClosed};
  alignas(64) std::atomic<void (*)(void*, int64_t)> body_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<uint32_t> chunks_{0};
  std::atomic<int> helpers_{0};
  alignas(64) std::atomic<uint32_t> finished_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  std::atomic<bool> caller_sleeps_{false};
  std::mutex sleep_;
  std::condition_variable wake_;
  std::condition_variable done_;
};

// Never destroyed: detached workers may still be asleep in it when the process ends.
std::atomic<Pool*> shared_pool{nullptr};
std::atomic<int> configured_threads{0};

// A forked child has none of the threads and may have inherited a locked mutex: it starts afresh.
void forget_pool_in_child() {
  shared_pool.store(nullptr, std::memory_order_relaxed);
  inside_section = false;
}

Pool& pool() {
  Pool* current = shared_pool.load(std::memory_order_acquire);
  if (current != nullptr) return *current;
  static const int registered = pthread_atfork(nullptr, nullptr, forget_pool_in_child);
  (void)registered;
  Pool* fresh = new Pool;
  if (shared_pool.compare_exchange_strong(current, fresh)) return *fresh;
  delete fresh;
  return *current;
}

int cores_by_quota(int otherwise) {
  long long quota = 0, period = 0;
  int cores = otherwise;
  if (FILE* file = fopen("/sys/fs/cgroup/cpu.max", "r")) {
    if (fscanf(file, "%lld %lld", &quota, &period) == 2 && quota > 0 && period > 0)
      cores = static_cast<int>((quota + period - 1) / period);
    fclose(file);
  }
  return cores;
}

}  // namespace

int usable_cores() {
  int cores = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) cores = CPU_COUNT(&set);
#endif
  const int quota = cores_by_quota(cores);
  if (quota < cores) cores = quota;
  return cores < 1 ? 1 : cores;
}

void set_thread_count(int threads) {
  if (threads > kMaximumThreads) threads = kMaximumThreads;
  configured_threads.store(threads < 1 ? 1 : threads, std::memory_order_relaxed);
}

int thread_count() {
  int threads = configured_threads.load(std::memory_order_relaxed);
  if (threads == 0) {
    threads = usable_cores();
    configured_threads.store(threads, std::memory_order_relaxed);
  }
  return threads;
}

void parallel_chunks(int64_t chunks, void (*body)(void*, int64_t), void* context) {
  const int threads = thread_count();
  if (chunks <= 1 || threads <= 1 || inside_section) {
    Pool::run_here(chunks, body, context);
    return;
  }
  // A claim counts in 32 bits; longer runs go in slices.
  constexpr int64_t kSlice = 0x7FFFFFFF;
  struct Slice {
    void (*body)(void*, int64_t);
    void* context;
    int64_t first;
  };
  for (int64_t first = 0; first < chunks; first += kSlice) {
    Slice slice{body, context, first};
    pool().run(
        smaller(kSlice, chunks - first),
        [](void* raw, int64_t chunk) {
          auto* inner = static_cast<Slice*>(raw);
          inner->body(inner->context, inner->first + chunk);
        },
        &slice, threads);
  }
}

namespace {

struct Arena {
  static constexpr int kSlots = 8;
  void* data[kSlots] = {};
  size_t capacity[kSlots] = {};
  ~Arena() {
    for (void* block : data) free_large(block);
  }
};
thread_local Arena arena;

}  // namespace

void* scratch(size_t bytes, int slot) {
  if (slot < 0 || slot >= Arena::kSlots) return nullptr;
  if (arena.capacity[slot] >= bytes && arena.data[slot] != nullptr) return arena.data[slot];
  free_large(arena.data[slot]);
  arena.data[slot] = allocate_large(bytes);
  arena.capacity[slot] = arena.data[slot] == nullptr ? 0 : bytes;
  return arena.data[slot];
}

}  // namespace trimtab
