#include <cuda_runtime.h>

#include <deque>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/device_taps.hpp"
#include "cuda/gpu.hpp"

namespace fourd::cuda {

// No __restrict__ and no texture path: every address is read by one thread, or through shared memory.
template <typename Source>
__global__ void __launch_bounds__(Horizontal<Source>::threads)
    horizontal(const __grid_constant__ Horizontal<Source> pass) {
    using Pass = Horizontal<Source>;
    __shared__ std::uint32_t shared[Pass::tile];
    const Block block{static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z)};
    const int thread = static_cast<int>(threadIdx.x);
    typename Pass::Sums sums;
    const int end = pass.end(block);
    for (int at = pass.begin(block); at < end; at += Pass::piece) {
        pass.stage(block, thread, at, end, shared);
        __syncthreads();
        pass.accumulate(block, thread, at, shared, sums);
        __syncthreads();
    }
    pass.store(block, thread, sums);
}

// Four blocks a multiprocessor: 64 registers a thread. Left to itself ptxas aims at more, and spills.
template <typename Source>
__global__ void __launch_bounds__(Vertical<Source>::threads, 4)
    vertical(const __grid_constant__ Vertical<Source> pass) {
    pass.run({static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z)},
             static_cast<int>(threadIdx.x));
}

namespace {

void check(cudaError_t status, const char* doing) {
    if (status != cudaSuccess) throw std::runtime_error(std::string(doing) + " failed: " + cudaGetErrorString(status));
}

// Sets the device for a while.
class OnDevice {
public:
    explicit OnDevice(int device) {
        check(cudaGetDevice(&before_), "cudaGetDevice");
        if (before_ != device) check(cudaSetDevice(device), "cudaSetDevice");
        else before_ = -1;
    }
    ~OnDevice() {
        if (before_ >= 0) cudaSetDevice(before_);
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

private:
    int before_ = -1;
};

// Taps in device memory. cudaFree waits for the device, so kernels in flight keep what they read.
struct ResidentTaps {
    int device, in, out;
    Filter filter;
    bool identity;
    void* memory = nullptr;
    TapsView view;

    ~ResidentTaps() {
        if (memory) cudaFree(memory);
    }
};

std::shared_ptr<ResidentTaps> upload(int device, int in, int out, Filter filter, bool identity, cudaStream_t stream) {
    const DeviceTaps taps = make_device_taps(in, out, filter, identity);
    auto kept = std::make_shared<ResidentTaps>(ResidentTaps{device, in, out, filter, identity, nullptr, {}});
    const std::size_t side = static_cast<std::size_t>(out) * sizeof(int);
    const std::size_t weights = taps.weights.size() * sizeof(std::int32_t);
    check(cudaMalloc(&kept->memory, 2 * side + weights), "allocating filter taps");
    auto* bytes = static_cast<char*>(kept->memory);
    check(cudaMemcpyAsync(bytes, taps.first.data(), side, cudaMemcpyHostToDevice, stream), "copying filter taps");
    check(cudaMemcpyAsync(bytes + side, taps.count.data(), side, cudaMemcpyHostToDevice, stream),
          "copying filter taps");
    check(cudaMemcpyAsync(bytes + 2 * side, taps.weights.data(), weights, cudaMemcpyHostToDevice, stream),
          "copying filter taps");
    check(cudaStreamSynchronize(stream), "copying filter taps");  // once a size; any stream may use them next
    kept->view = {reinterpret_cast<int*>(bytes), reinterpret_cast<int*>(bytes + side),
                  reinterpret_cast<std::int32_t*>(bytes + 2 * side), in, out};
    return kept;
}

// The sizes used last, of all devices. Never destroyed: at exit the driver may be gone before it.
std::shared_ptr<ResidentTaps> resident(int device, int in, int out, Filter filter, bool identity, cudaStream_t stream) {
    constexpr std::size_t most = 64;
    static auto& mutex = *new std::mutex;
    static auto& cache = *new std::deque<std::shared_ptr<ResidentTaps>>;
    const std::lock_guard lock(mutex);
    for (auto it = cache.begin(); it != cache.end(); ++it) {
        const ResidentTaps& t = **it;
        if (t.device == device && t.in == in && t.out == out && t.filter == filter && t.identity == identity) {
            auto found = *it;
            cache.erase(it);
            cache.push_front(found);
            return found;
        }
    }
    cache.push_front(upload(device, in, out, filter, identity, stream));
    if (cache.size() > most) cache.pop_back();
    return cache.front();
}

class Gpu final : public Machine {
public:
    Gpu(int device, cudaStream_t stream) : device_(device), stream_(stream) {}
    ~Gpu() override {
        if (!room_) return;
        try {
            const OnDevice on(device_);
            cudaFreeAsync(room_, stream_);
        } catch (const std::runtime_error&) {  // the device is lost, and its memory with it
        }
    }

    TapsView taps(int in, int out, Filter filter, bool identity) override {
        for (const auto& taps : used_)
            if (taps->in == in && taps->out == out && taps->filter == filter && taps->identity == identity)
                return taps->view;
        const OnDevice on(device_);
        return used_.emplace_back(resident(device_, in, out, filter, identity, stream_))->view;
    }

    std::uint32_t* scratch(std::size_t pixels) override {
        if (pixels > size_) {
            const OnDevice on(device_);
            if (room_) check(cudaFreeAsync(room_, stream_), "freeing scratch memory");
            room_ = nullptr, size_ = 0;
            check(cudaMallocAsync(&room_, pixels * 4, stream_), "allocating scratch memory");
            size_ = pixels;
        }
        return static_cast<std::uint32_t*>(room_);
    }

    void run(const Horizontal<Surfaces>& pass, Block blocks) override { launch(horizontal<Surfaces>, pass, blocks); }
    void run(const Horizontal<Packed>& pass, Block blocks) override { launch(horizontal<Packed>, pass, blocks); }
    void run(const Vertical<Surfaces>& pass, Block blocks) override { launch(vertical<Surfaces>, pass, blocks); }
    void run(const Vertical<Packed>& pass, Block blocks) override { launch(vertical<Packed>, pass, blocks); }

private:
    template <typename Pass>
    void launch(void (*kernel)(Pass), const Pass& pass, Block blocks) {
        const OnDevice on(device_);
        const dim3 grid(blocks.x, blocks.y, blocks.z);
        kernel<<<grid, Pass::threads, 0, stream_>>>(pass);
        check(cudaGetLastError(), "launching the conversion");
    }

    int device_;
    cudaStream_t stream_;
    void* room_ = nullptr;
    std::size_t size_ = 0;
    std::vector<std::shared_ptr<ResidentTaps>> used_;
};

}  // namespace

std::unique_ptr<Machine> gpu(int device, void* stream) {
    return std::make_unique<Gpu>(device, static_cast<cudaStream_t>(stream));
}

}  // namespace fourd::cuda
