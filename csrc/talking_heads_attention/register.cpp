// Talking-heads attention's native ops: they write into tensors the caller made.
#include "common/abi.h"
#include "talking_heads_attention/kernel.h"

namespace vtk {
namespace {

void forward_on_chosen_isa(const TalkingHeads& call, const Parallel& parallel) { VTK_DISPATCH(talking_heads_attention_forward, call, parallel) }
void backward_on_chosen_isa(const TalkingHeads& call, const Parallel& parallel){VTK_DISPATCH(talking_heads_attention_backward, call, parallel)}

TalkingHeads make_call(const Tensor& qkv, const Tensor& pre_weight, const Tensor& post_weight, const MaybeTensor& post_bias, int64_t num_heads, double scale,
                       double dropout_p, int64_t seed) {
  STD_TORCH_CHECK(qkv.dim() == 3 && qkv.stride(2) == 1, "qkv must be [B, N, 3C] with a dense last dimension");
  TalkingHeads call{};
  call.batch = qkv.size(0);
  call.tokens = static_cast<int>(qkv.size(1));
  call.heads = static_cast<int>(num_heads);
  call.head_dim = static_cast<int>(qkv.size(2) / 3 / num_heads);
  call.scale = static_cast<float>(scale);
  call.dropout_p = dropout_p;
  call.seed = static_cast<uint64_t>(seed);
  call.dtype = dtype_of(qkv);
  call.qkv = qkv.const_data_ptr();
  for (int i = 0; i < 2; ++i) call.qkv_stride[i] = qkv.stride(i);
  call.pre_weight = floats(pre_weight);
  call.post_weight = floats(post_weight);
  call.post_bias = floats(post_bias);
  return call;
}

void forward(Tensor qkv, Tensor pre_weight, Tensor post_weight, MaybeTensor post_bias, int64_t num_heads, double scale, double dropout_p, int64_t seed,
             Tensor out) {
  TalkingHeads call = make_call(qkv, pre_weight, post_weight, post_bias, num_heads, scale, dropout_p, seed);
  call.out = out.mutable_data_ptr();
  forward_on_chosen_isa(call, torch_parallel());
}

void backward(Tensor grad_out, Tensor qkv, Tensor pre_weight, Tensor post_weight, MaybeTensor post_bias, int64_t num_heads, double scale, double dropout_p,
              int64_t seed, Tensor d_qkv, Tensor d_pre_weight, Tensor d_post_weight, Tensor d_post_bias) {
  STD_TORCH_CHECK(grad_out.dim() == 3 && grad_out.stride(2) == 1, "grad_out must be [B, N, C] with a dense last dimension");
  TalkingHeads call = make_call(qkv, pre_weight, post_weight, post_bias, num_heads, scale, dropout_p, seed);
  call.grad_out = grad_out.const_data_ptr();
  for (int i = 0; i < 2; ++i) call.grad_stride[i] = grad_out.stride(i);
  call.d_qkv = d_qkv.mutable_data_ptr();
  call.d_pre_weight = mutable_floats(d_pre_weight);
  call.d_post_weight = mutable_floats(d_post_weight);
  call.d_post_bias = mutable_floats(d_post_bias);
  backward_on_chosen_isa(call, torch_parallel());
}

constexpr const char* kForward =
    "talking_heads_attention_forward(Tensor qkv, Tensor pre_weight, Tensor post_weight, Tensor? post_bias, int num_heads, float scale, float dropout_p, "
    "int seed, Tensor(a!) out) -> ()";
constexpr const char* kBackward =
    "talking_heads_attention_backward(Tensor grad_out, Tensor qkv, Tensor pre_weight, Tensor post_weight, Tensor? post_bias, int num_heads, float scale, "
    "float dropout_p, int seed, Tensor(a!) d_qkv, Tensor(b!) d_pre_weight, Tensor(c!) d_post_weight, Tensor(d!) d_post_bias) -> ()";

}  // namespace
}  // namespace vtk

STABLE_TORCH_LIBRARY_FRAGMENT(vtkernels_native, m) {
  m.def(vtk::kForward);
  m.def(vtk::kBackward);
}
STABLE_TORCH_LIBRARY_IMPL(vtkernels_native, CPU, m) {
  m.impl("talking_heads_attention_forward", TORCH_BOX(&vtk::forward));
  m.impl("talking_heads_attention_backward", TORCH_BOX(&vtk::backward));
}
