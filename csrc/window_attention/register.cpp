// Window attention's native ops: they write into tensors the caller made.
#include "common/abi.h"
#include "window_attention/kernel.h"

namespace vtk {
namespace {

void forward_on_chosen_isa(const WindowAttention& call, const Parallel& parallel) { VTK_DISPATCH(window_attention_forward, call, parallel) }
void backward_on_chosen_isa(const WindowAttention& call, const Parallel& parallel){VTK_DISPATCH(window_attention_backward, call, parallel)}

WindowAttention make_call(const Tensor& qkv, const MaybeTensor& bias_table, const MaybeTensor& bias, const MaybeTensor& logit_scale,
                          const MaybeTensor& qkv_bias, int64_t num_heads, int64_t window_h, int64_t window_w, int64_t shift_h, int64_t shift_w, double scale,
                          bool mask_padding, bool shift_first, double dropout_p, int64_t seed) {
  STD_TORCH_CHECK(qkv.dim() == 4 && qkv.stride(3) == 1, "qkv must be [B, H, W, 3C] with a dense last dimension");
  WindowAttention call{};
  call.batch = qkv.size(0);
  call.height = qkv.size(1);
  call.width = qkv.size(2);
  call.heads = static_cast<int>(num_heads);
  call.head_dim = static_cast<int>(qkv.size(3) / 3 / num_heads);
  call.window_h = static_cast<int>(window_h);
  call.window_w = static_cast<int>(window_w);
  call.shift_h = static_cast<int>(shift_h);
  call.shift_w = static_cast<int>(shift_w);
  call.scale = static_cast<float>(scale);
  call.mask_padding = mask_padding;
  call.shift_first = shift_first;
  call.dropout_p = dropout_p;
  call.seed = static_cast<uint64_t>(seed);
  call.dtype = dtype_of(qkv);
  call.qkv = qkv.const_data_ptr();
  for (int i = 0; i < 3; ++i) call.qkv_stride[i] = qkv.stride(i);
  call.bias_table = floats(bias_table);
  call.bias = floats(bias);
  call.logit_scale = floats(logit_scale);
  call.qkv_bias = floats(qkv_bias);
  return call;
}

void forward(Tensor qkv, MaybeTensor bias_table, MaybeTensor bias, MaybeTensor logit_scale, MaybeTensor qkv_bias, int64_t num_heads, int64_t window_h,
             int64_t window_w, int64_t shift_h, int64_t shift_w, double scale, bool mask_padding, bool shift_first, double dropout_p, int64_t seed, Tensor out,
             Tensor statistics) {
  WindowAttention call = make_call(qkv, bias_table, bias, logit_scale, qkv_bias, num_heads, window_h, window_w, shift_h, shift_w, scale, mask_padding,
                                   shift_first, dropout_p, seed);
  call.out = out.mutable_data_ptr();
  call.statistics = statistics.numel() ? mutable_floats(statistics) : nullptr;
  forward_on_chosen_isa(call, torch_parallel());
}

void backward(Tensor grad_out, Tensor qkv, MaybeTensor bias_table, MaybeTensor bias, MaybeTensor logit_scale, MaybeTensor qkv_bias, int64_t num_heads,
              int64_t window_h, int64_t window_w, int64_t shift_h, int64_t shift_w, double scale, bool mask_padding, bool shift_first, double dropout_p,
              int64_t seed, Tensor d_qkv, MaybeTensor d_bias_table, MaybeTensor d_bias, MaybeTensor d_logit_scale, MaybeTensor d_qkv_bias) {
  STD_TORCH_CHECK(grad_out.dim() == 4 && grad_out.stride(3) == 1, "grad_out must be [B, H, W, C] with a dense last dimension");
  WindowAttention call = make_call(qkv, bias_table, bias, logit_scale, qkv_bias, num_heads, window_h, window_w, shift_h, shift_w, scale, mask_padding,
                                   shift_first, dropout_p, seed);
  call.grad_out = grad_out.const_data_ptr();
  for (int i = 0; i < 3; ++i) call.grad_stride[i] = grad_out.stride(i);
  call.d_qkv = d_qkv.mutable_data_ptr();
  call.d_bias_table = mutable_floats(d_bias_table);
  call.d_bias = mutable_floats(d_bias);
  call.d_logit_scale = mutable_floats(d_logit_scale);
  call.d_qkv_bias = mutable_floats(d_qkv_bias);
  backward_on_chosen_isa(call, torch_parallel());
}

constexpr const char* kForward =
    "window_attention_forward(Tensor qkv, Tensor? bias_table, Tensor? bias, Tensor? logit_scale, Tensor? qkv_bias, int num_heads, int window_h, int window_w, "
    "int shift_h, "
    "int shift_w, float scale, bool mask_padding, bool shift_first, float dropout_p, int seed, Tensor(a!) out, Tensor(b!) statistics) -> ()";
constexpr const char* kBackward =
    "window_attention_backward(Tensor grad_out, Tensor qkv, Tensor? bias_table, Tensor? bias, Tensor? logit_scale, Tensor? qkv_bias, int num_heads, int "
    "window_h, int window_w, "
    "int shift_h, int shift_w, float scale, bool mask_padding, bool shift_first, float dropout_p, int seed, Tensor(a!) d_qkv, Tensor(b!)? d_bias_table, "
    "Tensor(c!)? d_bias, "
    "Tensor(d!)? d_logit_scale, Tensor(e!)? d_qkv_bias) -> ()";

// on GPUs only; `lanes` blocks share the windows of a head, and each has a part of the parameters' gradients
constexpr const char* kLargeBackward =
    "window_attention_large_backward(Tensor grad_out, Tensor out, Tensor statistics, Tensor qkv, Tensor? bias_table, Tensor? qkv_bias, int num_heads, "
    "int window_h, int window_w, int shift_h, int shift_w, float scale, bool mask_padding, bool shift_first, int lanes, Tensor(a!) d_qkv, "
    "Tensor(b!)? d_table_parts, Tensor(c!)? d_value_parts) -> ()";

}  // namespace
}  // namespace vtk

STABLE_TORCH_LIBRARY_FRAGMENT(vtkernels_native, m) {
  m.def(vtk::kForward);
  m.def(vtk::kBackward);
  m.def(vtk::kLargeBackward);
}
STABLE_TORCH_LIBRARY_IMPL(vtkernels_native, CPU, m) {
  m.impl("window_attention_forward", TORCH_BOX(&vtk::forward));
  m.impl("window_attention_backward", TORCH_BOX(&vtk::backward));
}
