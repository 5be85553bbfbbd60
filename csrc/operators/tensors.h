// Tensors as the kernels see them, and the checks of operator arguments. Python checks first and words its errors for
// people; these keep a direct call of torch.ops.hida.* from reading memory that is not there.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../arguments.h"

namespace hida {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Shape = std::vector<int64_t>;

inline Shape shape_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return Shape(sizes.begin(), sizes.end());
}

inline std::string text(const Shape& shape) {
  std::ostringstream out;
  out << '(';
  for (size_t i = 0; i < shape.size(); ++i) out << (i ? ", " : "") << shape[i];
  out << ')';
  return out.str();
}

[[noreturn]] inline void fail(const std::string& message) {
  throw std::runtime_error("hida: " + message);
}

inline Dtype dtype_of(const char* name, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Dtype::f32;
    case ScalarType::Double:
      return Dtype::f64;
    case ScalarType::BFloat16:
      return Dtype::bf16;
    case ScalarType::Half:
      return Dtype::f16;
    default:
      fail(std::string(name) + " must be float32, float64, bfloat16 or float16.");
  }
}

// Ask the system for pages of 2 MB behind a large new tensor of the CPU: its first writing costs a fault for each page,
// and allocators give large blocks back whenever one is freed. A hint; nothing depends on it.
inline Tensor in_large_pages(Tensor t) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = uintptr_t(1) << 21;
  const uintptr_t bytes = uintptr_t(t.numel()) * t.element_size();
  if (t.is_cpu() && bytes >= kPage) {
    const uintptr_t start = reinterpret_cast<uintptr_t>(t.mutable_data_ptr());
    const uintptr_t first = (start + kPage - 1) / kPage * kPage, last = (start + bytes) / kPage * kPage;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
  return t;
}

inline void require_shape(const char* name, const Tensor& t, std::initializer_list<Shape> allowed) {
  const Shape shape = shape_of(t);
  std::string expected;
  for (const Shape& one : allowed) {
    if (shape == one) return;
    expected += (expected.empty() ? "" : " or ") + text(one);
  }
  fail(std::string(name) + " must have shape " + expected + "; its shape is " + text(shape) + ".");
}

inline Extent extent_of(const char* name, const Tensor& t) {
  if (t.dim() != 4) fail(std::string(name) + " must have shape (N, C, H, W); its shape is " + text(shape_of(t)) + ".");
  return {t.size(0), t.size(1), t.size(2), t.size(3)};
}

// HIDA_CUDA_TENSORS: this file's operators are those for CUDA. (Their emulation takes tensors on the CPU.)
#if defined(HIDA_CUDA_TENSORS) && !defined(HIDA_EMULATE_CUDA)
#define HIDA_KEY CUDA
inline void require_here(const char* name, const Tensor& t) {
  if (!t.is_cuda()) fail(std::string(name) + " is not on the CUDA device; move all tensors to one device.");
}
#else
#define HIDA_KEY CPU
inline void require_here(const char* name, const Tensor& t) {
  if (!t.is_cpu()) fail(std::string(name) + " is not on the CPU; move all tensors to one device.");
}
#endif

// Also two devices of one kind do not mix.
inline void require_device_of(const char* first, const Tensor& x,
                              std::initializer_list<std::pair<const char*, const Tensor*>> others) {
  require_here(first, x);
  for (const auto& [name, t] : others) {
    if (t == nullptr) continue;
    require_here(name, *t);
    if (t->get_device_index() != x.get_device_index())
      fail(std::string(name) + " is on another device than " + first + "; move all tensors to one device.");
  }
}

// `t` spread over `extent`: dimensions of size 1 are repeated. Strides that cannot matter are chosen so that a plane
// that is contiguous is seen as such.
inline Image image_of(const char* name, const Tensor& t, const Extent& e, bool writable = false) {
  require_here(name, t);
  Image image;
  image.dtype = dtype_of(name, t);
  image.data = writable ? t.mutable_data_ptr() : const_cast<void*>(t.const_data_ptr());
  image.n = t.size(0) == 1 ? 0 : t.stride(0);
  image.c = t.size(1) == 1 ? 0 : t.stride(1);
  if (t.size(2) == 1 && t.size(3) == 1 && e.pixels() != 1) return image;
  if (e.h == 1 && e.w == 1) {
    image.step = 1;
  } else {
    image.step = e.w == 1 ? t.stride(2) : t.stride(3);
  }
  image.row = e.h == 1 || e.w == 1 ? image.step * e.w : t.stride(2);
  return image;
}

inline bool is_wide(std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* t : tensors)
    if (t != nullptr && t->scalar_type() == ScalarType::Double) return true;
  return false;
}

// The statistics that a forward operator returned, as its backward gets them.
inline void check_statistics(const Tensor& mean, const Tensor& rstd, const Extent& e, bool wide) {
  for (const Tensor* t : {&mean, &rstd}) {
    require_here("mean and rstd", *t);
    require_shape("mean and rstd", *t, {{e.n, e.c}});
    if (!t->is_contiguous() || t->scalar_type() != (wide ? ScalarType::Double : ScalarType::Float))
      fail("mean and rstd must be those that the forward operator returned.");
  }
}

// `wanted`: see schemas.cpp.
inline bool wants(int64_t wanted, int which) {
  return (wanted >> which & 1) != 0;
}

inline Tensor absent(const Tensor& like) {
  return torch::stable::new_empty(like, {0});
}

inline Tensor sums(const Tensor& like, const Extent& e, bool wide) {
  return torch::stable::new_empty(like, {e.n, e.c}, wide ? ScalarType::Double : ScalarType::Float);
}

// Memory for a kernel, of torch's allocator and on its stream.
class Workspace {
 public:
  Workspace(const Tensor& x, int64_t count, bool wide) : tensor_(absent(x)) {
    if (count > 0) tensor_ = torch::stable::new_empty(x, {count}, wide ? ScalarType::Double : ScalarType::Float);
  }
  void* get() { return tensor_.numel() > 0 ? tensor_.mutable_data_ptr() : nullptr; }

 private:
  Tensor tensor_;
};

// For the gradient of an operand: its shape and dtype, in the memory layout of x. (Not empty_like: the layout of a
// slice takes torch.compile, with dynamic shapes, very long to reason about.)
inline Tensor gradient_like(const Tensor& operand, const Tensor& x) {
  const bool last = x.stride(1) == 1 && x.stride(3) != 1;
  return torch::stable::empty(
      operand.sizes(), operand.scalar_type(), torch::headeronly::Layout::Strided, operand.device(), std::nullopt,
      last ? torch::headeronly::MemoryFormat::ChannelsLast : torch::headeronly::MemoryFormat::Contiguous);
}

inline bool is_channels_last(const Tensor& t, const Extent& e) {
  return e.pixels() > 1 && e.c > 1 && t.stride(1) == 1 && t.stride(3) != 1;
}

// Spread `items` over torch's threads, each range worth at least some ten thousand elements.
template <class F>
void for_items(int64_t items, int64_t elements_each, const F& f) {
  if (items <= 0) return;
  const int64_t grain = elements_each >= 16384 ? 1 : 16384 / (elements_each > 0 ? elements_each : 1);
  torch::stable::parallel_for(0, items, grain, f);
}

}  // namespace hida
