// The native ops of the pairs: they write into tensors the caller made.
#include "common/abi.h"
#include "drloc_pairs/kernel.h"

namespace vtk {
namespace {

void forward_on_chosen_isa(const DrlocPairs& call, const Parallel& parallel) { VTK_DISPATCH(drloc_pairs_forward, call, parallel) }
void backward_on_chosen_isa(const DrlocPairs& call, const Parallel& parallel){VTK_DISPATCH(drloc_pairs_backward, call, parallel)}

DrlocPairs make_call(const Tensor& map, const Tensor& pairs) {
  DrlocPairs call{};
  call.batch = map.size(0);
  call.height = map.size(1);
  call.width = map.size(2);
  call.channels = map.size(3);
  call.pairs = pairs.size(1);
  call.dtype = dtype_of(map);
  return call;
}

void forward(Tensor features, MaybeTensor given, bool is_signed, bool normalize, int64_t seed, int64_t offset, Tensor out, Tensor targets, Tensor positions) {
  STD_TORCH_CHECK(features.dim() == 4 && features.stride(3) == 1, "features must be [B, H, W, C] with a dense last dimension");
  DrlocPairs call = make_call(features, out);
  call.features = features.const_data_ptr();
  for (int i = 0; i < 3; ++i) call.feature_stride[i] = features.stride(i);
  call.given = given ? static_cast<const int64_t*>(given->const_data_ptr()) : nullptr;
  call.is_signed = is_signed;
  call.normalize = normalize;
  call.seed = static_cast<uint64_t>(seed);
  call.offset = static_cast<uint64_t>(offset);
  call.out = out.mutable_data_ptr();
  call.targets = mutable_floats(targets);
  call.positions = static_cast<int64_t*>(positions.mutable_data_ptr());
  forward_on_chosen_isa(call, torch_parallel());
}

void backward(Tensor grad_out, Tensor positions, Tensor d_features) {
  STD_TORCH_CHECK(grad_out.dim() == 3 && grad_out.stride(2) == 1, "grad_out must be [B, m, 2C] with a dense last dimension");
  DrlocPairs call = make_call(d_features, grad_out);
  call.positions = static_cast<int64_t*>(positions.data_ptr());
  call.grad_out = grad_out.const_data_ptr();
  for (int i = 0; i < 2; ++i) call.grad_stride[i] = grad_out.stride(i);
  call.d_features = d_features.mutable_data_ptr();
  backward_on_chosen_isa(call, torch_parallel());
}

constexpr const char* kForward =
    "drloc_pairs_forward(Tensor features, Tensor? given, bool is_signed, bool normalize, int seed, int offset, Tensor(a!) out, Tensor(b!) targets, "
    "Tensor(c!) positions) -> ()";
constexpr const char* kBackward = "drloc_pairs_backward(Tensor grad_out, Tensor positions, Tensor(a!) d_features) -> ()";

}  // namespace
}  // namespace vtk

STABLE_TORCH_LIBRARY_FRAGMENT(vtkernels_native, m) {
  m.def(vtk::kForward);
  m.def(vtk::kBackward);
}
STABLE_TORCH_LIBRARY_IMPL(vtkernels_native, CPU, m) {
  m.impl("drloc_pairs_forward", TORCH_BOX(&vtk::forward));
  m.impl("drloc_pairs_backward", TORCH_BOX(&vtk::backward));
}
