// Runs tasks on a few threads that live for one call. A pool that outlived the call would be broken
// in every process that a data loader forks.
#pragma once

#include <functional>

namespace fourd {

// The cores this process may run on; at least 1.
int available_cores();

// Starts up to `threads` workers (the caller is one of them). Each calls worker(next), where next()
// hands out 0..tasks-1 once each and then -1. The first exception is thrown again in the caller.
void parallel(int tasks, int threads, const std::function<void(const std::function<int()>&)>& worker);

}  // namespace fourd
