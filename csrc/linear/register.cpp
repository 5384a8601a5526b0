// The native ops of linear and mlp: they write into tensors the caller made.
#include "common/abi.h"
#include "linear/kernel.h"

namespace vtk {
namespace {

void forward_on_chosen_isa(const Linear& call, const Parallel& parallel) { VTK_DISPATCH(linear_forward, call, parallel) }
void backward_on_chosen_isa(const Linear& call, const Parallel& parallel) { VTK_DISPATCH(linear_backward, call, parallel) }
void mlp_forward_on_chosen_isa(const Mlp& call, const Parallel& parallel) { VTK_DISPATCH(mlp_forward, call, parallel) }
void mlp_backward_on_chosen_isa(const Mlp& call, const Parallel& parallel) { VTK_DISPATCH(mlp_backward, call, parallel) }
void slope_on_chosen_isa(const Slope& call, const Parallel& parallel){VTK_DISPATCH(activation_backward, call, parallel)}

Rows rows(const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.stride(1) == 1, "rows must be [tokens, channels] with a dense last dimension");
  return {floats(tensor), tensor.stride(0)};
}
Layer layer(const Tensor& weight, const MaybeTensor& bias) { return {weight.size(1), weight.size(0), floats(weight), floats(bias)}; }
LayerGradient gradient(const MaybeTensor& weight, const MaybeTensor& bias) { return {mutable_floats(weight), mutable_floats(bias)}; }

void linear_forward(Tensor x, Tensor weight, MaybeTensor bias, int64_t activation, Tensor out, MaybeTensor before) {
  Linear call{};
  call.rows = x.size(0);
  call.x = rows(x);
  call.layer = layer(weight, bias);
  call.activation = static_cast<Activation>(activation);
  call.out = mutable_floats(out);
  call.before = mutable_floats(before);
  forward_on_chosen_isa(call, torch_parallel());
}

void linear_backward(Tensor grad, Tensor x, Tensor weight, MaybeTensor d_x, MaybeTensor d_weight, MaybeTensor d_bias) {
  Linear call{};
  call.rows = x.size(0);
  call.x = rows(x);
  call.layer = layer(weight, std::nullopt);
  call.grad = rows(grad);
  call.d_x = mutable_floats(d_x);
  call.gradient = gradient(d_weight, d_bias);
  backward_on_chosen_isa(call, torch_parallel());
}

Mlp mlp_call(const Tensor& x, const Tensor& first, const MaybeTensor& first_bias, const Tensor& second, const MaybeTensor& second_bias, int64_t activation) {
  Mlp call{};
  call.rows = x.size(0);
  call.x = rows(x);
  call.first = layer(first, first_bias);
  call.second = layer(second, second_bias);
  call.activation = static_cast<Activation>(activation);
  return call;
}

void mlp_forward(Tensor x, Tensor first, MaybeTensor first_bias, Tensor second, MaybeTensor second_bias, int64_t activation, Tensor out, MaybeTensor hidden) {
  Mlp call = mlp_call(x, first, first_bias, second, second_bias, activation);
  call.out = mutable_floats(out);
  call.hidden = mutable_floats(hidden);
  mlp_forward_on_chosen_isa(call, torch_parallel());
}

// `hidden` is read only
void mlp_backward(Tensor grad, Tensor x, Tensor first, Tensor second, Tensor hidden, int64_t activation, MaybeTensor d_hidden, MaybeTensor d_x,
                  MaybeTensor d_first, MaybeTensor d_first_bias, MaybeTensor d_second, MaybeTensor d_second_bias) {
  STD_TORCH_CHECK(hidden.size(0) == x.size(0) && hidden.size(1) == first.size(0), "hidden must be what the forward kept, one row for each of x");
  Mlp call = mlp_call(x, first, std::nullopt, second, std::nullopt, activation);
  call.grad = rows(grad);
  call.hidden = const_cast<float*>(floats(hidden));
  call.d_hidden = mutable_floats(d_hidden);
  call.d_x = mutable_floats(d_x);
  call.first_gradient = gradient(d_first, d_first_bias);
  call.second_gradient = gradient(d_second, d_second_bias);
  mlp_backward_on_chosen_isa(call, torch_parallel());
}

void activation_backward(Tensor grad, Tensor before, int64_t activation, Tensor out) {
  STD_TORCH_CHECK(before.size(0) == grad.size(0) && before.size(1) == grad.size(1), "before must be what the forward kept, of the gradient's shape");
  Slope call{before.size(0), before.size(1), static_cast<Activation>(activation), rows(grad)};
  call.before = floats(before);
  call.out = mutable_floats(out);
  slope_on_chosen_isa(call, torch_parallel());
}

}  // namespace
}  // namespace vtk

STABLE_TORCH_LIBRARY_FRAGMENT(vtkernels_native, m) {
  m.def("linear_forward(Tensor x, Tensor weight, Tensor? bias, int activation, Tensor(a!) out, Tensor(b!)? before) -> ()");
  m.def("linear_backward(Tensor grad, Tensor x, Tensor weight, Tensor(a!)? d_x, Tensor(b!)? d_weight, Tensor(c!)? d_bias) -> ()");
  m.def(
      "mlp_forward(Tensor x, Tensor first, Tensor? first_bias, Tensor second, Tensor? second_bias, int activation, Tensor(a!) out, "
      "Tensor(b!)? hidden) -> ()");
  m.def(
      "mlp_backward(Tensor grad, Tensor x, Tensor first, Tensor second, Tensor hidden, int activation, Tensor(a!)? d_hidden, Tensor(b!)? d_x, "
      "Tensor(c!)? d_first, Tensor(d!)? d_first_bias, Tensor(e!)? d_second, Tensor(f!)? d_second_bias) -> ()");
  m.def("activation_backward(Tensor grad, Tensor before, int activation, Tensor(a!) out) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(vtkernels_native, CPU, m) {
  m.impl("linear_forward", TORCH_BOX(&vtk::linear_forward));
  m.impl("linear_backward", TORCH_BOX(&vtk::linear_backward));
  m.impl("mlp_forward", TORCH_BOX(&vtk::mlp_forward));
  m.impl("mlp_backward", TORCH_BOX(&vtk::mlp_backward));
  m.impl("activation_backward", TORCH_BOX(&vtk::activation_backward));
}
