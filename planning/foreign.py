"""Programs that published measurements are of and that this project doesn't train, in plain PyTorch.

Written from the papers: shapes and operations are those of the published models, so that the cost model meets
what they computed. They are captured, never run.
"""

from __future__ import annotations

from typing import Callable, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

# Marks a tensor from which activations are computed again, as poptorch.recomputationCheckpoint does.
Mark = Callable[[Tensor], Tensor]


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs)
    )


class Bottleneck(nn.Module):
    """A unit of ResNet-50 (He and others, 2015); its 3x3 convolution has the stride, as in version 1.5."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.narrow = _convolution(inputs, width, 1)
        self.spatial = _convolution(width, width, 3, stride)
        self.widen = _convolution(width, outputs, 1)
        changes = stride > 1 or inputs != outputs
        self.shortcut = _convolution(inputs, outputs, 1, stride) if changes else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        made = torch.relu(self.spatial(torch.relu(self.narrow(images))))
        result: Tensor = torch.relu(self.widen(made) + self.shortcut(images))
        return result


class ResNet50(nn.Module):
    """ResNet-50 for images [batch, 3, side, side] of 8 bits; returns the loss with labels, logits without.

    :param checkpoints: numbers (stage, unit), from 1, of the units whose outputs are checkpoints.
    """

    def __init__(self, checkpoints: Sequence[Tuple[int, int]], mark: Mark, classes: int = 1000) -> None:
        super().__init__()
        self.stem = _convolution(3, 64, 7, 2)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        units: List[nn.Module] = []
        self._marked = set()
        width_in = 64
        for stage, (width, count) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
            for unit in range(1, count + 1):
                if (stage, unit) in checkpoints:
                    self._marked.add(len(units))
                units.append(Bottleneck(width_in, width, 2 if stage > 1 and unit == 1 else 1))
                width_in = 4 * width
        self.units = nn.ModuleList(units)
        self.classifier = nn.Linear(width_in, classes)
        self._mark = mark

    def forward(self, images: Tensor, labels: Optional[Tensor] = None) -> Tensor:
        hidden = self.pool(torch.relu(self.stem(images.to(self.classifier.weight.dtype))))
        for number, unit in enumerate(self.units):
            hidden = unit(hidden)
            if number in self._marked:
                hidden = self._mark(hidden)
        logits: Tensor = self.classifier(hidden.mean(dim=(2, 3)))
        return logits if labels is None else _loss(logits, labels)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.float(), labels)


class Attention(nn.Module):
    """Multi-head self-attention, with queries, keys and values in three products."""

    def __init__(self, hidden: int, heads: int, width: Optional[int] = None, bias: bool = True) -> None:
        super().__init__()
        width = width or hidden
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(hidden, width, bias=bias) for _ in range(3))
        self.result = nn.Linear(width, hidden, bias=bias)

    def forward(self, hidden: Tensor, source: Optional[Tensor] = None) -> Tensor:
        source = hidden if source is None else source

        def split(values: Tensor) -> Tensor:
            batch, length, width = values.shape
            return values.view(batch, length, self.heads, width // self.heads).transpose(1, 2)

        query, key, value = split(self.query(hidden)), split(self.key(source)), split(self.value(source))
        scores = (query @ key.transpose(-1, -2)) * (query.shape[-1] ** -0.5)
        mixed = (torch.softmax(scores, dim=-1) @ value).transpose(1, 2).flatten(2)
        result: Tensor = self.result(mixed)
        return result


class VisionLayer(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.before_attention, self.before_dense = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.attention = Attention(hidden, heads)
        self.widen, self.narrow = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attention(self.before_attention(hidden))
        dense: Tensor = self.narrow(nn.functional.gelu(self.widen(self.before_dense(hidden))))
        return hidden + dense


class VisionTransformer(nn.Module):
    """ViT-B/16 (Dosovitskiy and others, 2020) for images of 224x224: 196 patches and a class token.

    :param layers_per_ipu: the first IPU also has the patches, the last one the classifier.
    :param begin: called with (layer, path, IPU) for the first module of each IPU; None on one IPU.
    """

    def __init__(
        self,
        layers_per_ipu: Sequence[int],
        mark: Mark,
        begin: Optional[Callable[[nn.Module, str, int], nn.Module]] = None,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        hidden = 768
        self.patches = nn.Conv2d(3, hidden, 16, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, hidden))
        self.positions = nn.Parameter(torch.zeros(1, 197, hidden))
        self.layers = nn.ModuleList([VisionLayer(hidden, 12) for _ in range(sum(layers_per_ipu))])
        self.norm, self.classifier = nn.LayerNorm(hidden), nn.Linear(hidden, classes)
        self._mark = mark
        if begin is not None:
            first = 0
            for ipu, count in enumerate(layers_per_ipu):
                if ipu and count:
                    self.layers[first] = begin(self.layers[first], f"layers.{first}", ipu)
                first += count

    def forward(self, images: Tensor, labels: Optional[Tensor] = None) -> Tensor:
        patches = self.patches(images.to(self.token.dtype)).flatten(2).transpose(1, 2)
        token = self.token.expand(patches.shape[0], -1, -1)
        hidden = torch.cat((token, patches), dim=1) + self.positions
        for layer in self.layers:
            hidden = self._mark(layer(hidden))
        logits: Tensor = self.classifier(self.norm(hidden)[:, 0])
        return logits if labels is None else _loss(logits, labels)
