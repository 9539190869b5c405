"""A small residual net of convolutions and batch norms, for images: `model=convnet`.

After He et al. (1512.03385), for images of a few pixels: a convolution of 3 x 3; stages of residual
blocks of two such convolutions, each stage after the first with half the pixels a side; the mean
over positions, and a linear layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class _Block(nn.Module):
    """x + conv(relu(conv(x))), each convolution before a batch norm."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(into, out, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(out)
        self.second = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(out)
        same = into == out and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(into, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, into, H, W] to [B, out, H / stride, W / stride]."""
        y = F.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        return F.relu(y + self.skip(x))


class ConvNet(nn.Module):
    """Images to logits.

    Args:
        channels: Channels of the images.
        classes: Logits.
        widths: Channels of each stage.
        depth: Blocks in a stage.
    """

    def __init__(self, channels: int, classes: int, widths: Sequence[int], depth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(widths[0])
        before = [widths[0], *widths[:-1]]
        sizes = [
            (into if block == 0 else width, width, 2 if block == 0 and stage else 1)
            for stage, (into, width) in enumerate(zip(before, widths, strict=True))
            for block in range(depth)
        ]
        self.blocks = nn.ModuleList(_Block(*size) for size in sizes)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] to [B, classes]."""
        x = F.relu(self.stem_norm(self.stem(images)))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def build(
    channels: int = 1, classes: int = 10, widths: Sequence[int] = (16, 32), depth: int = 1
) -> nn.Module:
    """The net, its weights drawn by torch; what `model.factory` calls.

    Raises:
        ValueError: A number that is not positive, or no stage.
    """
    if min(channels, classes, depth, *widths, len(widths)) < 1:
        raise ValueError(
            f"channels={channels}, classes={classes}, widths={list(widths)}, depth={depth}: each "
            "must be 1 or more, and there must be a stage"
        )
    return ConvNet(channels, classes, widths, depth)
