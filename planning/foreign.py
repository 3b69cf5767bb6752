"""Programs that published measurements are of and that this project doesn't train, in plain PyTorch.

Written from the papers: shapes and operations are those of the published models, so that the cost model meets
what they computed. They are captured, never run.
"""

from __future__ import annotations

from typing import Callable, List, Optional, Sequence, Tuple

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


class Dense(nn.Module):
    """Two linear layers; with `gated`, the first is multiplied by the activated gate (T5 version 1.1)."""

    def __init__(self, hidden: int, width: int, activation: Callable[[Tensor], Tensor], gated: bool) -> None:
        super().__init__()
        self.widen = nn.Linear(hidden, width, bias=not gated)
        self.gate = nn.Linear(hidden, width, bias=False) if gated else None
        self.narrow = nn.Linear(width, hidden, bias=not gated)
        self._activation = activation

    def forward(self, hidden: Tensor) -> Tensor:
        made = self.widen(hidden)
        made = self._activation(made) if self.gate is None else self._activation(self.gate(hidden)) * made
        result: Tensor = self.narrow(made)
        return result


class RootMeanSquareNorm(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))

    def forward(self, hidden: Tensor) -> Tensor:
        scale = torch.rsqrt(hidden.float().pow(2).mean(dim=-1, keepdim=True) + 1e-6)
        return self.weight * (hidden * scale.to(hidden.dtype))


class SequenceLayer(nn.Module):
    """A layer of a Transformer's encoder, or with `crosses` of its decoder; norms come first."""

    def __init__(
        self,
        hidden: int,
        heads: int,
        width: int,
        crosses: bool,
        dense: Dense,
        norm: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        bias = dense.narrow.bias is not None
        self.attention = Attention(hidden, heads, width, bias)
        self.crossing = Attention(hidden, heads, width, bias) if crosses else None
        self.dense = dense
        self.norms = nn.ModuleList([norm(hidden) for _ in range(3 if crosses else 2)])

    def forward(self, hidden: Tensor, source: Optional[Tensor] = None) -> Tensor:
        hidden = hidden + self.attention(self.norms[0](hidden))
        if self.crossing is not None:
            hidden = hidden + self.crossing(self.norms[1](hidden), source)
        result: Tensor = hidden + self.dense(self.norms[-1](hidden))
        return result


class MT5(nn.Module):
    """mT5 small (Xue and others, 2020): 8 + 8 layers, tables of 250,112 tokens that aren't tied.

    The table is on the first IPU, the encoder on the second, the decoder on the third, and the projection on
    the vocabulary on the fourth. Biases of relative positions are left out.
    """

    def __init__(self, begin: Callable[[nn.Module, str, int], nn.Module], mark: Mark) -> None:
        super().__init__()
        hidden, tokens = 512, 250_112

        def layers(crosses: bool) -> nn.ModuleList:
            made = []
            for _ in range(8):
                dense = Dense(hidden, 1024, nn.functional.gelu, gated=True)
                made.append(SequenceLayer(hidden, 6, 384, crosses, dense, RootMeanSquareNorm))
            return nn.ModuleList(made)

        self.table = nn.Embedding(tokens, hidden)
        self.encoder, self.decoder = layers(False), layers(True)
        self.encoder_norm, self.decoder_norm = RootMeanSquareNorm(hidden), RootMeanSquareNorm(hidden)
        projection = nn.Linear(hidden, tokens, bias=False)
        self.encoder[0] = begin(self.encoder[0], "encoder", 1)
        self.decoder[0] = begin(self.decoder[0], "decoder", 2)
        self.projection = begin(projection, "projection", 3)
        self._mark = mark

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        source, hidden = self.table(tokens), self.table(labels)
        for layer in self.encoder:
            source = self._mark(layer(source))
        source = self.encoder_norm(source)
        for layer in self.decoder:
            hidden = self._mark(layer(hidden, source))
        hidden = self.decoder_norm(hidden)
        return _loss(self.projection(hidden).flatten(0, 1), labels.flatten())


class ConformerLayer(nn.Module):
    """A Conformer block (Gulati and others, 2020): dense, attention, convolution, dense."""

    def __init__(self, hidden: int, heads: int, width: int, kernel: int) -> None:
        super().__init__()
        self.before, self.after = (Dense(hidden, width, nn.functional.silu, gated=False) for _ in range(2))
        self.attention = Attention(hidden, heads)
        self.into = nn.Conv1d(hidden, 2 * hidden, 1)
        self.depthwise = nn.Conv1d(hidden, hidden, kernel, padding=kernel // 2, groups=hidden)
        self.batch_norm = nn.BatchNorm1d(hidden)
        self.out = nn.Conv1d(hidden, hidden, 1)
        self.norms = nn.ModuleList([nn.LayerNorm(hidden) for _ in range(5)])

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + 0.5 * self.before(self.norms[0](hidden))
        hidden = hidden + self.attention(self.norms[1](hidden))
        made = nn.functional.glu(self.into(self.norms[2](hidden).transpose(1, 2)), dim=1)
        made = self.out(nn.functional.silu(self.batch_norm(self.depthwise(made))))
        hidden = hidden + made.transpose(1, 2)
        hidden = hidden + 0.5 * self.after(self.norms[3](hidden))
        result: Tensor = self.norms[4](hidden)
        return result


class Conformer(nn.Module):
    """WeNet's Conformer for speech: 12 blocks on three IPUs, and 6 decoder layers on a fourth."""

    def __init__(self, begin: Callable[[nn.Module, str, int], nn.Module], mark: Mark) -> None:
        super().__init__()
        hidden, tokens = 256, 4233
        self.first, self.second = nn.Conv2d(1, hidden, 3, 2), nn.Conv2d(hidden, hidden, 3, 2)
        self.projection = nn.Linear(hidden * 19, hidden)  # 80 features, halved twice
        self.blocks = nn.ModuleList([ConformerLayer(hidden, 4, 2048, 15) for _ in range(12)])
        table = nn.Embedding(tokens, hidden)
        decoder = []
        for _ in range(6):
            dense = Dense(hidden, 2048, torch.relu, gated=False)
            decoder.append(SequenceLayer(hidden, 4, hidden, True, dense, nn.LayerNorm))
        self.decoder = nn.ModuleList(decoder)
        self.classifier = nn.Linear(hidden, tokens)
        for ipu in (1, 2):
            self.blocks[4 * ipu] = begin(self.blocks[4 * ipu], f"blocks.{4 * ipu}", ipu)
        self.table = begin(table, "table", 3)
        self._mark = mark

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        made = torch.relu(self.second(torch.relu(self.first(features.unsqueeze(1)))))
        source = self.projection(made.transpose(1, 2).flatten(2))
        for block in self.blocks:
            source = self._mark(block(source))
        hidden = self.table(labels)
        for layer in self.decoder:
            hidden = self._mark(layer(hidden, source))
        return _loss(self.classifier(hidden).flatten(0, 1), labels.flatten())


class Products(nn.Module):
    """A chain of products of matrices, from the left.

    :param linear: the matrices lie in order over the tiles, not as the products' plans want them: they are
        copied.
    """

    def __init__(self, linear: bool = False) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        made = first.clone() if self.linear else first
        for other in others:
            made = made @ (other.clone() if self.linear else other)
        return made
