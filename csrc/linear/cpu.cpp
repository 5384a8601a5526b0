// Linear layers and the two-layer perceptron for one instruction set.
#include "linear/products.h"

namespace vtk::VTK_ISA {
namespace {

template <class T>
T* at(T* data, int64_t offset) {
  return data ? data + offset : nullptr;
}
Rows from(Rows rows, int64_t first) { return {rows.data + first * rows.stride, rows.stride}; }

}  // namespace

void linear_forward(const Linear& call, const Parallel& parallel) {
  const int64_t inputs = call.layer.inputs, outputs = call.layer.outputs;
  PackedWeight weight(inputs, outputs);
  weight.panels = (float*)shared_scratch(weight.floats() * sizeof(float));
  weight.pack(call.layer.weight, true, parallel);
  const Cut blocks = row_blocks(call.rows, parallel);
  auto task = [&](int64_t item) {
    const int64_t row = blocks.begin(item), count = blocks.length(item), following = least(count, call.rows - row - count);
    float* packed = (float*)thread_scratch(packed_rows(count) * sizeof(float));
    Destination to{call.out + row * outputs, outputs, call.layer.bias, call.activation, at(call.before, row * outputs)};
    to.stream = streams(call.out, call.rows, weight);
    rows_times_weight(from(call.x, row), count, following, weight, to, packed, Identity{});
  };
  parallel.for_each(blocks.count, task);
}

void linear_backward(const Linear& call, const Parallel& parallel) {
  const int64_t inputs = call.layer.inputs, outputs = call.layer.outputs;
  if (call.d_x) {
    PackedWeight weight(outputs, inputs);
    weight.panels = (float*)shared_scratch(weight.floats() * sizeof(float));
    weight.pack(call.layer.weight, false, parallel);
    const Cut blocks = row_blocks(call.rows, parallel);
    auto task = [&](int64_t item) {
      const int64_t row = blocks.begin(item), count = blocks.length(item), following = least(count, call.rows - row - count);
      float* packed = (float*)thread_scratch(packed_rows(count) * sizeof(float));
      Destination to{call.d_x + row * inputs, inputs};
      to.stream = streams(call.d_x, call.rows, weight);
      rows_times_weight(from(call.grad, row), count, following, weight, to, packed, Identity{});
    };
    parallel.for_each(blocks.count, task);
  }
  if (call.gradient.weight) {
    const WeightGradient<Identity> gradient{call.rows, call.grad, call.x, outputs, inputs, call.gradient, {}};
    gradient.run((float*)shared_scratch(gradient.shared_floats() * sizeof(float)), parallel);
  }
}

// Both layers block by block: the hidden rows of a block are still in the cache when the second layer reads them.
void mlp_forward(const Mlp& call, const Parallel& parallel) {
  const int64_t inputs = call.first.inputs, hidden = call.first.outputs, outputs = call.second.outputs;
  PackedWeight first(inputs, hidden), second(hidden, outputs);
  first.panels = (float*)shared_scratch((first.floats() + second.floats()) * sizeof(float));
  second.panels = first.panels + first.floats();
  first.pack(call.first.weight, true, parallel);
  second.pack(call.second.weight, true, parallel);
  const Cut blocks = row_blocks(call.rows, parallel);
  auto task = [&](int64_t item) {
    const int64_t row = blocks.begin(item), count = blocks.length(item), following = least(count, call.rows - row - count);
    const size_t kept = call.hidden ? 0 : (size_t)(count * hidden);
    float* packed = (float*)thread_scratch((packed_rows(count) + kept) * sizeof(float));
    float* middle = call.hidden ? call.hidden + row * hidden : packed + packed_rows(count);
    rows_times_weight(from(call.x, row), count, following, first, Destination{middle, hidden, call.first.bias}, packed, Identity{});
    const Destination to{call.out + row * outputs, outputs, call.second.bias};
    with_activation(call.activation, [&](auto activation) { rows_times_weight(Rows{middle, hidden}, count, 0, second, to, packed, activation); });
  };
  parallel.for_each(blocks.count, task);
}

void mlp_backward(const Mlp& call, const Parallel& parallel) {
  const int64_t inputs = call.first.inputs, hidden = call.first.outputs, outputs = call.second.outputs;
  const Rows d_hidden{call.d_hidden, hidden};
  if (call.d_hidden) {
    PackedWeight second(outputs, hidden), first(hidden, inputs);
    second.panels = (float*)shared_scratch((first.floats() + second.floats()) * sizeof(float));
    first.panels = second.panels + second.floats();
    second.pack(call.second.weight, false, parallel);
    if (call.d_x) first.pack(call.first.weight, false, parallel);
    const Cut blocks = row_blocks(call.rows, parallel);
    auto task = [&](int64_t item) {
      const int64_t row = blocks.begin(item), count = blocks.length(item), following = least(count, call.rows - row - count);
      float* packed = (float*)thread_scratch(packed_rows(count) * sizeof(float));
      const Destination middle{call.d_hidden + row * hidden, hidden, nullptr, call.activation, nullptr, call.hidden + row * hidden};
      rows_times_weight(from(call.grad, row), count, following, second, middle, packed, Identity{});
      if (call.d_x) rows_times_weight(from(d_hidden, row), count, 0, first, Destination{call.d_x + row * inputs, inputs}, packed, Identity{});
    };
    parallel.for_each(blocks.count, task);
  }
  if (call.second_gradient.weight) {
    with_activation(call.activation, [&](auto activation) {
      const WeightGradient<decltype(activation)> gradient{call.rows, call.grad, {call.hidden, hidden}, outputs, hidden, call.second_gradient, activation};
      gradient.run((float*)shared_scratch(gradient.shared_floats() * sizeof(float)), parallel);
    });
  }
  if (call.first_gradient.weight) {
    const WeightGradient<Identity> gradient{call.rows, d_hidden, call.x, hidden, inputs, call.first_gradient, {}};
    gradient.run((float*)shared_scratch(gradient.shared_floats() * sizeof(float)), parallel);
  }
}

void activation_backward(const Slope& call, const Parallel& parallel) {
  constexpr int64_t kRowsOfTask = 64;
  with_activation(call.activation, [&](auto activation) {
    auto task = [&](int64_t item) {
      const int64_t end = least(call.rows, (item + 1) * kRowsOfTask);
      for (int64_t row = item * kRowsOfTask; row < end; ++row)
        for (int64_t c = 0; c < call.columns; c += W) {
          const int lanes = (int)least(W, call.columns - c);
          const int64_t at = row * call.columns + c;
          store_row(call.out + at, load_row(call.grad.data + row * call.grad.stride + c, lanes) * activation.slope(load_row(call.before + at, lanes)), lanes);
        }
    };
    parallel.for_each(groups(call.rows, kRowsOfTask), task);
  });
}

}  // namespace vtk::VTK_ISA
