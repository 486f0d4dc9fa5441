// Hammers the thread pool from several callers; built with ThreadSanitizer by test_sanitizers.py.
#include <cstdint>
#include <cstdio>
#include <thread>
#include <vector>

#include "kernel.h"
#include "pool.h"

int main() {
  constexpr int kCallers = 3, kRounds = 400;
  trimtab::set_thread_count(4);
  std::vector<std::thread> callers;
  std::vector<int64_t> wrong(kCallers);
  for (int caller = 0; caller < kCallers; ++caller)
    callers.emplace_back([&, caller] {
      for (int round = 0; round < kRounds; ++round) {
        const int64_t chunks = 1 + (round * 7 + caller) % 50;
        std::vector<int64_t> seen(chunks);
        parallel(chunks, [&](int64_t chunk) {
          // A nested section runs in place, on the thread that opens it.
          int64_t inner = 0;
          parallel(3, [&](int64_t step) { inner += step; });
          auto* memory = static_cast<int64_t*>(trimtab::scratch(1 << (chunk % 16), 0));
          memory[0] = chunk;
          seen[chunk] += memory[0] + inner;
        });
        for (int64_t chunk = 0; chunk < chunks; ++chunk)
          if (seen[chunk] != chunk + 3) ++wrong[caller];
        if (round % 100 == 50) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    });
  for (std::thread& caller : callers) caller.join();
  int64_t total = 0;
  for (int64_t count : wrong) total += count;
  std::printf("%lld\n", static_cast<long long>(total));
  return total != 0;
}
