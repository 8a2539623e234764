#include "cuda/bindings.hpp"

#include <string>

namespace nb = nanobind;
using namespace nb::literals;

namespace fourd {
namespace {

nb::dict build_info() {
    nb::dict info;
#ifdef FOURD_CUDA
    nb::list architectures;
    std::string rest = FOURD_ARCHITECTURES;
    while (!rest.empty()) {
        const std::size_t end = rest.find(' ');
        architectures.append(rest.substr(0, end).c_str());
        rest = end == std::string::npos ? "" : rest.substr(end + 1);
    }
    info["cuda"] = true;
    info["why_no_cuda"] = nb::none();
    info["archs"] = architectures;
#else
    info["cuda"] = false;
    info["why_no_cuda"] = FOURD_CUDA_WHY;
    info["archs"] = nb::list();
#endif
#ifdef FOURD_NVDEC
    info["nvdec_headers"] = true;
#else
    info["nvdec_headers"] = false;
#endif
    return info;
}

}  // namespace

void bind_cuda(nb::module_& m) {
    m.def("build_info", &build_info,
          "How this module was built: cuda (bool), why_no_cuda (text or None), archs (CMake's list of CUDA "
          "architectures), nvdec_headers (bool).");
}

}  // namespace fourd
