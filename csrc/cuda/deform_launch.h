// What the files of deform_conv2d launch of one another, and the workspace that they share.
#pragma once

#include "deform_gather.h"

namespace hida {
namespace cuda {

constexpr int64_t kAlign = kWorkspaceAlign;

// Hands out parts of the workspace; without memory, it adds up what would be needed.
class Arena {
 public:
  explicit Arena(void* memory) : at_(static_cast<char*>(memory)) {}
  template <class T>
  T* take(int64_t count) {
    char* here = at_ ? at_ + used_ : nullptr;
    used_ += (count * int64_t(sizeof(T)) + kAlign - 1) / kAlign * kAlign;
    return reinterpret_cast<T*>(here);
  }
  int64_t used() const { return used_; }

 private:
  char* at_;
  int64_t used_ = 0;
};

inline int64_t over(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
inline int64_t padded_to(int64_t a, int64_t b) {
  return over(a, b) * b;
}

// f(M{}): the kernels' numbers.
template <class F>
void with_math(const Convolution& d, F f) {
  switch (d.math) {
    case Dtype::f64:
      return f(Fp64{});
    case Dtype::bf16:
      return f(Bf16{});
    case Dtype::f16:
      return f(Fp16{});
    default:
      return d.tf32 ? f(Tf32{}) : f(Fp32{});
  }
}

// `weight`: where the packed weights are, with zeros after them.
Job start_job(const Convolution&, const DeformPlan&, void* weight = nullptr);
// Images [first, first + count) of an (n, c, h, w) tensor to channels last, pieces of `piece` channels padded.
template <class M>
void pack_lines(const Image&, const Extent&, int64_t first, int64_t count, int piece, int padded, void* to,
                const Launch&);
template <class M>
void pack_weight(const Job&, const DeformPlan&, void* to, const Launch&);
// What pieces, padding and layouts come to: fills these fields of a plan.
void plan_layout(const Convolution&, DeformPlan&);
// Bytes of workspace to aim at.
int64_t aim_of(const Convolution&, const Choice&);
// Memory that packed x, dy, weights take.
int64_t bytes_of_x(const Convolution&, const DeformPlan&, int64_t images);
int64_t bytes_of_grad(const Convolution&, const DeformPlan&, int64_t images);
int64_t bytes_of_weight(const Convolution&, const DeformPlan&);
// (taps, C_out, line).
int64_t numbers_of_weight(const Convolution&, const DeformPlan&);
// Images [first, first + count) of x or dy, channels last: packed into `memory`, or, where that is null, in place.
template <class M>
Lines lines_of(const Image&, const Extent&, int64_t first, int64_t count, int piece, int padded, void* memory,
               const Launch&);
// The same of x, for a job's images at work.
template <class M, class J>
void take_x(J& job, const DeformPlan& plan, int64_t count, void* memory, const Launch& l) {
  job.x = lines_of<M>(job.d.x, job.d.in, job.first, count, plan.piece, plan.padded, memory, l);
  job.row = int(job.x.row / kPerVec<M>);
  job.step = int(job.x.step / kPerVec<M>);
}
// f(images at work) for one lot of images after the other: sets job.first and job.pixels.
template <class J, class F>
void for_lots(J& job, int64_t images, F f) {
  for (job.first = 0; job.first < job.d.in.n; job.first += images) {
    const int64_t count = std::min(images, job.d.in.n - job.first);
    job.pixels = count * job.d.out.pixels();
    f(count);
  }
}

// For how many times 64 of `numbers` taps, or chunks, samples are found at once, at `extra` bytes more for each: what
// shared memory holds that three blocks share, 48 KB each at most, in equal parts. One more is for what reads zeros.
template <class M>
constexpr int bytes_of_samples = kTileSide * int(sizeof(Sample<typename M::Real>));
template <class M, int Rows>
int run_of(int64_t numbers, int extra, const Launch& l) {
  const int64_t room = std::min<int64_t>(l.shared / 3 - 1024, 48 << 10) - kTileBytes<M, Rows> - bytes_of_samples<M>;
  const int64_t most = std::max<int64_t>(2, room / (bytes_of_samples<M> + extra));
  return int(over(numbers, over(numbers, most)));
}

// Few pixels (deform_conv_tiny.cu). tiny_takes: can do it; tiny_splits: a plan's splits, forward.
void tiny_forward(const Convolution&, const DeformPlan&, void* workspace, const Launch&);
void tiny_backward(const Convolution&, const DeformPlan&, void* workspace, const Launch&);
bool tiny_takes(const Convolution&);
int64_t tiny_splits(const Convolution&, const Launch&);
int64_t tiny_bytes(const Convolution&, const DeformPlan&, bool backward);

// y = Σ partial + bias over (splits, C_out, pixels).
template <class M>
void finish_forward(const Job&, const void* partial, int64_t splits, const Launch&);

// dW (deform_conv_grad_weight.cu): adds that of the images at work to `sums`, Real (splits, taps, C_out, line), begun
// with the first image; then puts it where it is wanted.
int rows_of_weights(const Convolution&, const DeformPlan&);
template <class M>
void add_weight_gradient(const Job&, const DeformPlan&, void* sums, const Launch&);
template <class M>
void finish_weight_gradient(const Job&, const DeformPlan&, const void* sums, const Launch&);

// dx (deform_conv_grad_input.cu). The lists (deform_conv_cells.cu): for each cell of the input, the sampling points of
// a deformable group in it, in order; of the images at work.
struct CellLists {
  int *count, *start, *cursor;
  uint32_t* list;  // tap · pixels of an image + pixel
  void* sorted;    // CellPoint
};
CellLists take_lists(Arena&, const Convolution&, int64_t images);
template <class M>
void add_input_gradient(const Job&, const CellLists&, const Launch&);

}  // namespace cuda
}  // namespace hida
