#include "parallel.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif

namespace fourd {

int available_cores() {
#ifdef __linux__
    cpu_set_t mask;
    if (sched_getaffinity(0, sizeof(mask), &mask) == 0) return std::max(CPU_COUNT(&mask), 1);
#endif
    return std::max(static_cast<int>(std::thread::hardware_concurrency()), 1);
}

void parallel(int tasks, int threads, const std::function<void(const std::function<int()>&)>& worker) {
    std::atomic<int> cursor{0};
    std::exception_ptr failure;
    std::mutex failure_mutex;
    const std::function<int()> next = [&] {
        const int task = cursor.fetch_add(1, std::memory_order_relaxed);
        return task < tasks ? task : -1;
    };
    const auto guarded = [&] {
        try {
            worker(next);
        } catch (...) {
            cursor.store(tasks, std::memory_order_relaxed);
            const std::lock_guard lock(failure_mutex);
            if (!failure) failure = std::current_exception();
        }
    };

    std::vector<std::thread> helpers;
    helpers.reserve(std::max(std::min(threads, tasks) - 1, 0));
    for (int i = 1; i < std::min(threads, tasks); ++i) {
        try {
            helpers.emplace_back(guarded);
        } catch (const std::system_error&) {
            break;  // the process is at its thread limit: those that started do the work
        }
    }
    guarded();
    for (std::thread& helper : helpers) helper.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace fourd
