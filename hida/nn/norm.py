"""Instance norm without parameters, together with the leaky ReLUs around it."""

from __future__ import annotations

from torch import Tensor, nn

from hida.ops.leaky_norm import leaky_norm


class InstanceNorm(nn.Module):
    """Normalise each plane of (N, C, H, W), behind and before a leaky ReLU of the given slopes; 1 is none."""

    def __init__(self, before: float = 1.0, after: float = 1.0) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        return leaky_norm(x, self.before, self.after)

    def extra_repr(self) -> str:
        return f"before={self.before:g}, after={self.after:g}"
