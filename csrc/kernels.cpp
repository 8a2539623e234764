#include "kernels.hpp"

#include <atomic>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace fourd {

extern const Kernels generic_kernels, avx2_kernels, avx512_kernels;

namespace {

#if defined(__x86_64__)
bool has_f16c() {  // __builtin_cpu_supports does not know it in every compiler
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

bool runs(const Kernels* kernels) {
    if (kernels == &avx2_kernels) return __builtin_cpu_supports("avx2") && has_f16c();
    if (kernels == &avx512_kernels)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("avx512f") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
    return true;
}

constexpr const Kernels* fastest_first[] = {&avx512_kernels, &avx2_kernels, &generic_kernels};
#else
bool runs(const Kernels*) { return true; }

constexpr const Kernels* fastest_first[] = {&generic_kernels};
#endif

const Kernels* best() {
    for (const Kernels* candidate : fastest_first)
        if (runs(candidate)) return candidate;
    return &generic_kernels;
}

std::atomic<const Kernels*>& chosen() {
    static std::atomic<const Kernels*> value{best()};
    return value;
}

}  // namespace

const Kernels& kernels() { return *chosen().load(std::memory_order_relaxed); }

const char* use_kernels(std::string_view name) {
    if (name == "best") {
        chosen() = best();
        return kernels().name;
    }
    std::string usable;
    for (const Kernels* candidate : fastest_first) {
        if (!runs(candidate)) continue;
        if (name == candidate->name) {
            chosen() = candidate;
            return candidate->name;
        }
        usable += std::string("'") + candidate->name + "', ";
    }
    throw std::invalid_argument("instructions are '" + std::string(name) + "': this machine runs " + usable +
                                "or 'best' of these");
}

}  // namespace fourd
