// The one thread pool of the process.
#pragma once

namespace trimtab {

// Threads that take part in a parallel section, the caller included.
void set_thread_count(int threads);

// Cores that this process may use: affinity mask and cgroup quota, at least 1.
int usable_cores();

}  // namespace trimtab
