// fastsample._core: the arithmetic of csrc/core on small arrays, for tests and tools, and the facts of the build.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "core/brownian.h"
#include "core/metropolis.h"
#include "core/normal.h"
#include "core/row.h"

namespace py = pybind11;

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

static py::array_t<uint32_t> words(uint64_t seed, uint64_t counter, py::ssize_t count) {
  py::array_t<uint32_t> out({count, py::ssize_t(4)});
  for (py::ssize_t c = 0; c < count; ++c) fs::philox_at(seed, counter + c, out.mutable_data(c, 0));
  return out;
}

// Words of one counter and node of a Brownian tree: from the parts that are kept, and plainly.
static py::array_t<uint32_t> node_words(uint64_t seed, uint64_t counter, uint64_t node) {
  py::array_t<uint32_t> out({py::ssize_t(2), py::ssize_t(4)});
  const uint32_t low = static_cast<uint32_t>(counter), high = static_cast<uint32_t>(counter >> 32);
  const auto kept = fs::words_of_counter(seed, low, high, fs::tag_of(node));
  fs::philox_of_node(kept, fs::words_of_node(seed, node), seed, out.mutable_data(0, 0));
  fs::philox_of_node_at(seed, counter, node, out.mutable_data(1, 0));
  return out;
}

static py::array_t<float> uniforms(uint64_t seed, uint64_t counter, py::ssize_t count) {
  py::array_t<float> out(count);
  uint32_t r[4];
  for (py::ssize_t i = 0; i < count; ++i) {
    if (i % 4 == 0) fs::philox_at(seed, counter + i / 4, r);
    out.mutable_at(i) = fs::uniform(r[i % 4]);
  }
  return out;
}

template <class S>
static py::array_t<S> normals(uint64_t seed, uint64_t counter, py::ssize_t count) {
  constexpr int kSize = fs::Chunk<S>::kSize;
  py::array_t<S> out(count);
  S z[kSize];
  for (py::ssize_t i = 0; i < count; ++i) {
    if (i % kSize == 0) fs::normals_at(seed, counter + i / kSize, z);
    out.mutable_at(i) = z[i % kSize];
  }
  return out;
}

static py::array_t<float> box_muller(Array<uint32_t> r) {
  if (r.ndim() != 2 || r.shape(1) != 4) throw py::value_error("words: allowed is (n, 4) uint32");
  py::array_t<float> out({r.shape(0), py::ssize_t(4)});
  for (py::ssize_t i = 0; i < r.shape(0); ++i) fs::box_muller<float, uint32_t>(r.data(i, 0), out.mutable_data(i, 0));
  return out;
}

// Outputs (3, n) of one row applied to terms (K, n) and noises (R, n).
template <class S>
static py::array_t<S> apply_row(Array<double> row, Array<S> terms, Array<S> noises) {
  if (row.size() != fs::kColumns) throw py::value_error("row: allowed is (48,) float64");
  if (terms.ndim() != 2 || terms.shape(0) > fs::kTerms) throw py::value_error("terms: allowed is (0..8, n)");
  if (noises.ndim() != 2 || noises.shape(0) > fs::kNoises || noises.shape(1) != terms.shape(1))
    throw py::value_error("noises: allowed is (0..2, n)");
  fs::Row<S> r;
  for (int c = 0; c < fs::kColumns; ++c) r.v[c] = static_cast<S>(row.data()[c]);
  const int k_terms = static_cast<int>(terms.shape(0)), k_noises = static_cast<int>(noises.shape(0));
  py::array_t<S> out({py::ssize_t(fs::kOutputs), terms.shape(1)});
  for (py::ssize_t i = 0; i < terms.shape(1); ++i) {
    S x[fs::kTerms][1] = {}, xi[fs::kNoises][1] = {}, d[1], acc[1];
    for (int j = 0; j < k_terms; ++j) x[j][0] = terms.at(j, i);
    for (int j = 0; j < k_noises; ++j) xi[j][0] = noises.at(j, i);
    fs::predict<S, S, 1, fs::kTerms>(r.v, x, k_terms, d);
    for (int k = 0; k < fs::kOutputs; ++k) {
      fs::combine<S, S, 1, fs::kTerms, fs::kNoises>(r.v, k, x, k_terms, d, xi, k_noises, acc);
      out.mutable_at(k, i) = acc[0];
    }
  }
  return out;
}

// What each of n elements adds to a log-ratio: row (96,), operands (4..8, n).
template <class S>
static py::array_t<S> element_ratios(Array<double> row, Array<S> operands) {
  if (row.size() != fs::kDecisionColumns) throw py::value_error("row: allowed is (96,) float64");
  if (operands.ndim() != 2 || operands.shape(0) < 4 || operands.shape(0) > fs::kOperands)
    throw py::value_error("operands: allowed is (4..8, n)");
  fs::DecisionRow<S> r;
  for (int c = 0; c < fs::kDecisionColumns; ++c) r.v[c] = static_cast<S>(row.data()[c]);
  const int count = static_cast<int>(operands.shape(0));
  const uint32_t mask = fs::ratio_needs(r.v, row.data(), count);
  py::array_t<S> out(operands.shape(1));
  for (py::ssize_t i = 0; i < operands.shape(1); ++i) {
    S u[fs::kOperands][1] = {}, s[1];
    for (int j = 0; j < count; ++j) u[j][0] = operands.at(j, i);
    fs::log_ratio<S, S, 1, fs::kOperands>(r.v, mask, u, s);
    out.mutable_at(i) = s[0];
  }
  return out;
}

PYBIND11_MODULE(_core, m) {
  m.def("words", &words, py::arg("seed"), py::arg("counter"), py::arg("count"), "Philox words (count, 4) uint32");
  m.def("node_words", &node_words, py::arg("seed"), py::arg("counter"), py::arg("node"),
        "words (2, 4) uint32 of a node of a Brownian tree, computed in two ways");
  m.def("uniforms", &uniforms, py::arg("seed"), py::arg("counter"), py::arg("count"), "float32 uniforms in [0, 1)");
  m.def("normals", &normals<float>, py::arg("seed"), py::arg("counter"), py::arg("count"), "float32 normals");
  m.def("normals64", &normals<double>, py::arg("seed"), py::arg("counter"), py::arg("count"), "float64 normals");
  m.def("box_muller", &box_muller, py::arg("words"), "float32 normals (n, 4) of words (n, 4)");
  m.def("apply_row", &apply_row<float>, py::arg("row"), py::arg("terms"), py::arg("noises"), "float32 outputs (3, n)");
  m.def("apply_row64", &apply_row<double>, py::arg("row"), py::arg("terms"), py::arg("noises"),
        "float64 outputs (3, n)");
  m.def("element_ratios", &element_ratios<float>, py::arg("row"), py::arg("operands"), "float32 log-ratios (n,)");
  m.def("element_ratios64", &element_ratios<double>, py::arg("row"), py::arg("operands"), "float64 log-ratios (n,)");
  m.def("choice_uniform", &fs::choice_uniform, py::arg("seed"), py::arg("offset"), py::arg("draw"),
        "the uniform of a choice");
  m.def("build_facts", [] {
    py::dict facts;
    facts["compiler"] = __VERSION__;
    facts["columns"] = fs::kColumns;
    facts["terms"] = fs::kTerms;
    facts["outputs"] = fs::kOutputs;
    facts["noises"] = fs::kNoises;
    return facts;
  });
}
