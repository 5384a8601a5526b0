// What the native library says about itself.
#include "common/abi.h"
#include "common/isa.h"

#include <string>

namespace {

std::string isa() { return vtk::kIsaNames[static_cast<int>(vtk::chosen_isa())]; }

}  // namespace

STABLE_TORCH_LIBRARY(vtkernels_native, m) { m.def("isa() -> str"); }
STABLE_TORCH_LIBRARY_IMPL(vtkernels_native, CompositeExplicitAutograd, m) { m.impl("isa", TORCH_BOX(&isa)); }
