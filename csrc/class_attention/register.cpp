// Class and pooled attention's native ops: they write into tensors the caller made.
#include "class_attention/kernel.h"
#include "common/abi.h"

namespace vtk {
namespace {

void class_forward_on_chosen_isa(const ClassAttention& call, const Parallel& parallel) { VTK_DISPATCH(class_attention_forward, call, parallel) }
void class_backward_on_chosen_isa(const ClassAttention& call, const Parallel& parallel) { VTK_DISPATCH(class_attention_backward, call, parallel) }
void pooled_forward_on_chosen_isa(const PooledAttention& call, const Parallel& parallel) { VTK_DISPATCH(pooled_attention_forward, call, parallel) }
void pooled_backward_on_chosen_isa(const PooledAttention& call, const Parallel& parallel){VTK_DISPATCH(pooled_attention_backward, call, parallel)}

Weight weight(const Tensor& tensor) {
  return {tensor.const_data_ptr(), dtype_of(tensor)};
}
WeightGradient weight_gradient(const Tensor& tensor) { return {tensor.mutable_data_ptr(), dtype_of(tensor)}; }

ClassAttention class_call(const Tensor& tokens, const Tensor& q_weight, const Tensor& k_weight, const Tensor& v_weight, const MaybeTensor& v_bias,
                          int64_t num_heads, double scale, double dropout_p, int64_t seed, const Tensor& probabilities, const Tensor& queries,
                          const Tensor& directions, const Tensor& mixtures) {
  STD_TORCH_CHECK(tokens.dim() == 3 && tokens.stride(2) == 1, "tokens must be [B, T, C] with a dense last dimension");
  ClassAttention call{};
  call.batch = tokens.size(0);
  call.tokens = tokens.size(1);
  call.channels = static_cast<int>(tokens.size(2));
  call.heads = static_cast<int>(num_heads);
  call.scale = static_cast<float>(scale);
  call.dropout_p = dropout_p;
  call.seed = static_cast<uint64_t>(seed);
  call.dtype = dtype_of(tokens);
  call.x = tokens.const_data_ptr();
  for (int i = 0; i < 2; ++i) call.x_stride[i] = tokens.stride(i);
  call.q_weight = weight(q_weight);
  call.k_weight = weight(k_weight);
  call.v_weight = weight(v_weight);
  call.v_bias = floats(v_bias);
  call.probabilities = mutable_floats(probabilities);
  call.queries = mutable_floats(queries);
  call.directions = mutable_floats(directions);
  call.mixtures = mutable_floats(mixtures);
  return call;
}

void class_forward(Tensor tokens, Tensor q_weight, Tensor k_weight, Tensor v_weight, MaybeTensor q_bias, MaybeTensor v_bias, int64_t num_heads, double scale,
                   double dropout_p, int64_t seed, Tensor out, Tensor probabilities, Tensor queries, Tensor directions, Tensor mixtures) {
  ClassAttention call =
      class_call(tokens, q_weight, k_weight, v_weight, v_bias, num_heads, scale, dropout_p, seed, probabilities, queries, directions, mixtures);
  call.q_bias = floats(q_bias);
  call.out = out.mutable_data_ptr();
  class_forward_on_chosen_isa(call, torch_parallel());
}

void class_backward(Tensor grad_out, Tensor probabilities, Tensor queries, Tensor directions, Tensor mixtures, Tensor tokens, Tensor q_weight, Tensor k_weight,
                    Tensor v_weight, MaybeTensor v_bias, int64_t num_heads, double scale, double dropout_p, int64_t seed, Tensor d_tokens, Tensor d_q_weight,
                    Tensor d_k_weight, Tensor d_v_weight, Tensor d_q_bias, Tensor d_v_bias) {
  STD_TORCH_CHECK(grad_out.dim() == 2 && grad_out.stride(1) == 1, "grad_out must be [B, C] with a dense last dimension");
  ClassAttention call =
      class_call(tokens, q_weight, k_weight, v_weight, v_bias, num_heads, scale, dropout_p, seed, probabilities, queries, directions, mixtures);
  call.grad_out = grad_out.const_data_ptr();
  call.grad_stride = grad_out.stride(0);
  call.d_x = d_tokens.mutable_data_ptr();
  call.d_q_weight = weight_gradient(d_q_weight);
  call.d_k_weight = weight_gradient(d_k_weight);
  call.d_v_weight = weight_gradient(d_v_weight);
  call.d_q_bias = mutable_floats(d_q_bias);
  call.d_v_bias = mutable_floats(d_v_bias);
  class_backward_on_chosen_isa(call, torch_parallel());
}

const void* rows(const Tensor& tensor, int64_t (&stride)[3]) {
  STD_TORCH_CHECK(tensor.dim() == 4 && tensor.stride(3) == 1, "rows must be [B, heads, rows, D] with a dense last dimension");
  for (int i = 0; i < 3; ++i) stride[i] = tensor.stride(i);
  return tensor.const_data_ptr();
}

PooledAttention pooled_call(const Tensor& q, const Tensor& k, const Tensor& v, double scale, double dropout_p, int64_t seed) {
  PooledAttention call{};
  call.q = rows(q, call.q_stride);
  call.k = rows(k, call.k_stride);
  call.v = rows(v, call.v_stride);
  call.batch = q.size(0);
  call.heads = static_cast<int>(q.size(1));
  call.queries = q.size(2);
  call.keys = k.size(2);
  call.dim = static_cast<int>(q.size(3));
  call.scale = static_cast<float>(scale);
  call.dropout_p = dropout_p;
  call.seed = static_cast<uint64_t>(seed);
  call.dtype = dtype_of(q);
  return call;
}

void pooled_forward(Tensor q, Tensor k, Tensor v, double scale, double dropout_p, int64_t seed, Tensor out, Tensor statistics) {
  PooledAttention call = pooled_call(q, k, v, scale, dropout_p, seed);
  call.out = out.mutable_data_ptr();
  call.statistics = mutable_floats(statistics);
  pooled_forward_on_chosen_isa(call, torch_parallel());
}

void pooled_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, double scale, double dropout_p, int64_t seed, Tensor d_q, Tensor d_k, Tensor d_v) {
  PooledAttention call = pooled_call(q, k, v, scale, dropout_p, seed);
  call.grad_out = rows(grad_out, call.grad_stride);
  call.d_q = d_q.mutable_data_ptr();
  call.d_k = d_k.mutable_data_ptr();
  call.d_v = d_v.mutable_data_ptr();
  pooled_backward_on_chosen_isa(call, torch_parallel());
}

}  // namespace
}  // namespace vtk

STABLE_TORCH_LIBRARY_FRAGMENT(vtkernels_native, m) {
  m.def(
      "class_attention_forward(Tensor tokens, Tensor q_weight, Tensor k_weight, Tensor v_weight, Tensor? q_bias, Tensor? v_bias, int num_heads, float scale, "
      "float dropout_p, int seed, Tensor(a!) out, Tensor(b!) probabilities, Tensor(c!) queries, Tensor(d!) directions, Tensor(e!) mixtures) -> ()");
  m.def(
      "class_attention_backward(Tensor grad_out, Tensor probabilities, Tensor queries, Tensor directions, Tensor mixtures, Tensor tokens, Tensor q_weight, "
      "Tensor k_weight, Tensor v_weight, Tensor? v_bias, int num_heads, float scale, float dropout_p, int seed, Tensor(a!) d_tokens, Tensor(b!) d_q_weight, "
      "Tensor(c!) d_k_weight, Tensor(d!) d_v_weight, Tensor(e!) d_q_bias, Tensor(f!) d_v_bias) -> ()");
  m.def("pooled_attention_forward(Tensor q, Tensor k, Tensor v, float scale, float dropout_p, int seed, Tensor(a!) out, Tensor(b!) statistics) -> ()");
  m.def(
      "pooled_attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, float scale, float dropout_p, int seed, Tensor(a!) d_q, Tensor(b!) d_k, "
      "Tensor(c!) d_v) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(vtkernels_native, CPU, m) {
  m.impl("class_attention_forward", TORCH_BOX(&vtk::class_forward));
  m.impl("class_attention_backward", TORCH_BOX(&vtk::class_backward));
  m.impl("pooled_attention_forward", TORCH_BOX(&vtk::pooled_forward));
  m.impl("pooled_attention_backward", TORCH_BOX(&vtk::pooled_backward));
}
