// The image operations for Python, on numpy arrays that the caller has checked: uint8, one or three interleaved channels,
// rows without gaps between pixels. All of them let other Python threads run.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "imgops/draw.h"

namespace py = pybind11;
using namespace vtk::imgops;

namespace {

using Bytes = py::array_t<uint8_t, 0>;
using Floats = py::array_t<float, py::array::c_style>;
// name, values, filter, fill
using PyStep = std::tuple<int, std::vector<double>, int, std::array<uint8_t, 3>>;

Image image_of(const Bytes& array) {
  const int channels = array.ndim() == 3 ? (int)array.shape(2) : 1;
  const bool dense = array.ndim() == 2 ? array.strides(1) == 1 : array.ndim() == 3 && array.strides(1) == channels && array.strides(2) == 1;
  if (!dense || (channels != 1 && channels != 3)) throw std::invalid_argument("_imgops: expected a checked image; use vtkernels.data.augment");
  return {const_cast<uint8_t*>(array.data()), array.strides(0), (int)array.shape(0), (int)array.shape(1), channels};
}

Bytes empty_like(const Bytes& array, py::ssize_t height, py::ssize_t width) {
  std::vector<py::ssize_t> shape{height, width};
  if (array.ndim() == 3) shape.push_back(array.shape(2));
  return Bytes(shape);
}

Planes planes_of(float* values, const std::array<float, 3>& mean, const std::array<float, 3>& std) {
  Planes planes{values, {}, {}};
  for (int c = 0; c < 3; ++c) {
    planes.mean[c] = mean[c];
    planes.std[c] = std[c];
  }
  return planes;
}

void require_room(const Floats& out, const Image& image, py::ssize_t images) {
  if (out.size() != images * image.channels * image.height * image.width) throw std::invalid_argument("_imgops: out has another size than the images");
}

void run_steps(const Image& in, const Image& out, const Step* steps, int count) { VTK_DISPATCH(run_steps, in, out, steps, count) }
void resize(const Image& in, const Image& out, Filter filter) { VTK_DISPATCH(resize_image, in, out, filter) }
void normalize(const Image& in, const Planes& out) { VTK_DISPATCH(normalize_image, in, out) }
void mix(const Image& in, const Mix& mixed, const Planes& out) { VTK_DISPATCH(mix_image, in, mixed, out) }

void mix_drawn(const Image& in, const Drawn& drawn, const Planes& out) {
  mix(in, {drawn.steps.data(), drawn.depths.data(), drawn.weights.data(), (int)drawn.depths.size(), drawn.mixture}, out);
}

Step step_of(const PyStep& given) {
  const auto& [op, values, filter, fill] = given;
  Step step{(Op)op, (Filter)filter, {fill[0], fill[1], fill[2]}};
  std::copy(values.begin(), values.begin() + std::min<size_t>(values.size(), 6), step.values);
  return step;
}

Bytes py_apply(const Bytes& array, const std::vector<PyStep>& given) {
  Bytes result = empty_like(array, array.shape(0), array.shape(1));
  const Image in = image_of(array), out = image_of(result);
  std::vector<Step> steps;
  for (const PyStep& step : given) steps.push_back(step_of(step));
  py::gil_scoped_release release;
  run_steps(in, out, steps.data(), (int)steps.size());
  return result;
}

Bytes py_resize(const Bytes& array, int height, int width, int filter) {
  Bytes result = empty_like(array, height, width);
  const Image in = image_of(array), out = image_of(result);
  py::gil_scoped_release release;
  resize(in, out, (Filter)filter);
  return result;
}

void py_normalize(const Bytes& array, Floats& out, const std::array<float, 3>& mean, const std::array<float, 3>& std) {
  const Image in = image_of(array);
  require_room(out, in, 1);
  const Planes planes = planes_of(out.mutable_data(), mean, std);
  py::gil_scoped_release release;
  normalize(in, planes);
}

AugMix augmix_of(int width, int depth, double severity, double alpha, const std::vector<int>& ops, int filter, const std::array<uint8_t, 3>& fill) {
  AugMix augmix{width, depth, severity, alpha, {}, (Filter)filter, {fill[0], fill[1], fill[2]}};
  for (int op : ops) augmix.ops.push_back((Op)op);
  return augmix;
}

py::tuple py_draw(const AugMix& augmix, uint64_t seed, uint64_t view, int height, int width) {
  const Drawn drawn = draw(augmix, seed, view, height, width);
  py::list chains;
  const Step* step = drawn.steps.data();
  for (int depth : drawn.depths) {
    py::list chain;
    for (int i = 0; i < depth; ++i, ++step) chain.append(py::make_tuple(kOpNames[(int)step->op], step->values[0]));
    chains.append(chain);
  }
  return py::make_tuple(drawn.weights, drawn.mixture, chains);
}

// One image after the other in `out`: the image itself where `clean`, and a mix for each of `views`.
void py_augmix(const AugMix& augmix, const Bytes& array, uint64_t seed, bool clean, const std::vector<uint64_t>& views, Floats& out,
               const std::array<float, 3>& mean, const std::array<float, 3>& std) {
  const Image in = image_of(array);
  require_room(out, in, (py::ssize_t)views.size() + clean);
  Planes planes = planes_of(out.mutable_data(), mean, std);
  const int64_t size = (int64_t)in.channels * in.height * in.width;
  py::gil_scoped_release release;
  if (clean) {
    normalize(in, planes);
    planes.values += size;
  }
  for (uint64_t view : views) {
    mix_drawn(in, draw(augmix, seed, view, in.height, in.width), planes);
    planes.values += size;
  }
}

template <int count>
std::vector<std::string> names(const char* const (&from)[count]) {
  return {from, from + count};
}

}  // namespace

PYBIND11_MODULE(_imgops, m) {
  m.doc() = "Image operations on uint8 arrays, exactly as Pillow computes them. vtkernels.data.augment checks what it hands on.";
  m.attr("OPS") = names(kOpNames);
  m.attr("FILTERS") = names(kFilterNames);
  m.def("isa", [] { return vtk::kIsaNames[(int)vtk::chosen_isa()]; }, "The instruction set the operations run with.");
  m.def("apply", &py_apply, "A list of steps (op, values, filter, fill), one after the other.");
  m.def("resize", &py_resize);
  m.def("normalize", &py_normalize, py::arg(), py::arg().noconvert(), py::arg(), py::arg());
  py::class_<AugMix>(m, "AugMix")
      .def(py::init(&augmix_of))
      .def("draw", &py_draw)
      .def("run", &py_augmix, py::arg(), py::arg(), py::arg(), py::arg(), py::arg().noconvert(), py::arg(), py::arg());
  py::class_<Stream>(m, "Stream", "Random numbers that depend on seed and item alone.")
      .def(py::init<uint64_t, uint64_t>(), py::arg("seed"), py::arg("item") = 0)
      .def("word", &Stream::word)
      .def("uniform", py::overload_cast<>(&Stream::uniform))
      .def("uniform", py::overload_cast<double, double>(&Stream::uniform))
      .def("below", &Stream::below)
      .def("normal", &Stream::normal)
      .def("gamma", &Stream::gamma);
}
