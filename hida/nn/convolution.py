"""torch's convolutions, with kernels of their own where a level has few pixels; parameters and names are torch's."""

from __future__ import annotations

from torch import Tensor, nn

from hida.ops.cpu.convolution import conv2d, conv_transpose2d


class Conv2d(nn.Conv2d):
    """``torch.nn.Conv2d`` without dilation and groups: (N, C_in, H, W) → (N, C_out, H', W')."""

    stride: tuple[int, int]
    padding: tuple[int, int]

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.weight, self.bias, self.stride, self.padding)


class Upsample(nn.ConvTranspose2d):
    """Transposed convolution 4×4, stride 2, padding 1: (N, C_in, H, W) → (N, C_out, 2H, 2W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # no output_size: there is one only
        return conv_transpose2d(x, self.weight, self.bias)
