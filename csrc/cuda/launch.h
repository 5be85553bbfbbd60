// What the operators ask of the CUDA kernels: plain structs in, no torch. Every launch is asynchronous on the given
// stream, allocates nothing and waits for nothing, so that it can be captured into a graph. Errors are thrown.
#pragma once

#include <cstdint>

#include "../arguments.h"

namespace hida {
namespace cuda {

// Where to launch, and what the chip offers.
struct Launch {
  void* stream = nullptr;  // cudaStream_t
  int cluster = 0;         // most blocks of a cluster; 1: the chip has none
  int multiprocessors = 0;
  int shared = 0;  // most bytes of shared memory that a block may ask for
  int device = 0;
};

// Makes a device current for this library's launches, and restores what was current before at the end. (device.cu)
class OnDevice {
 public:
  explicit OnDevice(int device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  void* before_;
};

// The chip's part of a Launch; the driver is asked once. (device.cu)
Launch chip_of(int device);

// Workspaces are counted in numbers of the computing type; where none is needed, null will do.
void info_acon(const InfoAcon& a, const Launch& l);
int64_t info_acon_backward_workspace(const InfoAcon& a, const Launch& l);
void info_acon_backward(const InfoAcon& a, void* workspace, const Launch& l);

// ida and, with a.activate off, instance_norm_modulate.
int64_t adapt_workspace(const Adapt& a, const Launch& l);
void adapt(const Adapt& a, void* workspace, const Launch& l);
int64_t adapt_backward_workspace(const Adapt& a, const Launch& l);
void adapt_backward(const Adapt& a, void* workspace, const Launch& l);

// Every image of a call, there or not, has to be of one dtype and one that leaky_norm_takes: channels_last, in packs.
bool leaky_norm_takes(const Image& image, const Extent& e);
int64_t leaky_norm_workspace(const LeakyNorm& a, const Launch& l);
void leaky_norm(const LeakyNorm& a, void* workspace, const Launch& l);
int64_t leaky_norm_backward_workspace(const LeakyNorm& a, const Launch& l);
void leaky_norm_backward(const LeakyNorm& a, void* workspace, const Launch& l);

}  // namespace cuda
}  // namespace hida
