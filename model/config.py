"""The configuration of an encoder: one space that includes BERT and GroupBERT. It needs no PyTorch."""

# ruff: noqa: RUF009 (key() makes a dataclasses.field)
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Dict, Iterator, List, Literal, NamedTuple, Optional, Sequence, Tuple

from ipu.keys import AT_LEAST_1, BELOW_1, TOKENS, KeyGroup, key
from ipu.placement import nearest_divisors, nearest_multiples

Norm = Literal["pre", "post"]
FeedForward = Literal["dense", "grouped", "grouped_projected"]
NORMS: Tuple[Norm, ...] = ("pre", "post")
FEED_FORWARDS: Tuple[FeedForward, ...] = ("dense", "grouped", "grouped_projected")
# Far above any model for IPUs, and low enough that no product of sizes overflows 64 bits.
FEATURES, LAYERS, TOKEN_IDS = "[1, 65536]", "[1, 1000]", "[8, 2000000]"


class Fault(NamedTuple):
    """An error in a field of a ModelConfig."""

    field: str
    text: str

    def __str__(self) -> str:
        return f"{self.field} {self.text}"


class ModelConfigError(ValueError):
    """An invalid model configuration; `faults` has every error."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("invalid model: " + "; ".join(map(str, faults)))
        self.faults = tuple(faults)


@dataclass(frozen=True)
class EncoderKeys(KeyGroup):
    """The keys of the encoder; none: the family's default."""

    hidden_size: int = key("weights", "features per token", bounds=FEATURES)
    num_layers: int = key("weights", "encoder layers", bounds=LAYERS)
    num_heads: int = key("weights", "attention heads; must divide hidden_size", bounds=AT_LEAST_1)
    intermediate_size: Optional[int] = key(
        "weights", "inner size of a dense feed-forward; none: 4 * hidden_size", None, FEATURES
    )
    vocab_size: int = key("weights", "rows of the embedding table", 30522, TOKEN_IDS)
    max_position_embeddings: int = key("weights", "longest sequence that the model accepts", 512, TOKENS)
    norm: Optional[Norm] = key(
        "weights", "LayerNorm before or after each module; none: the family's default", None
    )
    convolution: Optional[bool] = key(
        "weights", "a convolution module in each layer; none: the family's default", None
    )
    feed_forward: Optional[FeedForward] = key(
        "weights", "dense, grouped, or grouped with an output projection; none: the family's default", None
    )
    ffn_groups: int = key("weights", "number of groups of the grouped feed-forward projection", 4, AT_LEAST_1)
    conv_group_size: int = key("weights", "channels per group of the convolution", 16, AT_LEAST_1)
    conv_kernel_size: int = key("weights", "width of the convolution in tokens; odd", 7, "[1, 65535]")
    hidden_dropout: float = key("weights", "dropout of embeddings and residual branches", 0.0, BELOW_1)
    attention_dropout: float = key("weights", "dropout of attention probabilities", 0.0, BELOW_1)
    layer_norm_eps: float = key("weights", "added to the variance; 1e-3 is safe in float16", 1e-3, "(0, 1)")


@dataclass(frozen=True)
class ModelConfig(EncoderKeys):
    """The architecture of an encoder.

    `intermediate_size` is the feed-forward's inner size; 4 * hidden_size is stored as None, which means it.

    `norm`: "pre" is `x + dropout(f(LN(x)))` with one more LayerNorm after the last layer, "post" is `LN(x +
    dropout(f(x)))`. `convolution` adds a convolution and a second feed-forward before the attention of each
    layer. `feed_forward`: "dense", "grouped" (the second projection is `ffn_groups` independent matmuls) or
    "grouped_projected" (a dense projection follows, which mixes the groups). `conv_group_size` is the number
    of channels per group, not the number of groups. Raises ModelConfigError.
    """

    norm: Norm = "post"
    convolution: bool = False
    feed_forward: FeedForward = "dense"
    type_vocab_size: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        faults = _faults(self)
        if faults:
            raise ModelConfigError(faults)
        if self.intermediate_size == 4 * self.hidden_size:
            object.__setattr__(self, "intermediate_size", None)

    @property
    def inner_size(self) -> int:
        """The feed-forward's inner size."""
        return self.intermediate_size or 4 * self.hidden_size

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def is_bert(self) -> bool:
        return (self.norm, self.convolution, self.feed_forward) == ("post", False, "dense")

    @property
    def is_groupbert(self) -> bool:
        return (self.norm, self.convolution, self.feed_forward) == ("pre", True, "grouped_projected")


_LARGEST_SIZE = 1 << 24  # of any dimension; a larger one is a damaged file


def _faults(config: ModelConfig) -> List[Fault]:
    faults = []
    sizes = (
        "hidden_size num_layers num_heads vocab_size max_position_embeddings type_vocab_size "
        "ffn_groups conv_group_size conv_kernel_size"
    )
    optional = () if config.intermediate_size is None else ("intermediate_size",)
    for name in (*sizes.split(), *optional):
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            faults.append(Fault(name, f"is {value!r}, but must be a positive integer"))
        elif value > _LARGEST_SIZE:
            faults.append(Fault(name, f"is {str(value)[:40]}, but must be at most {_LARGEST_SIZE}"))
    for name, legal in (("norm", NORMS), ("feed_forward", FEED_FORWARDS)):
        if getattr(config, name) not in legal:
            faults.append(Fault(name, f"is {getattr(config, name)!r}, but must be one of {', '.join(legal)}"))
    if not isinstance(config.convolution, bool):
        faults.append(Fault("convolution", f"is {config.convolution!r}, but must be true or false"))
    for name in ("hidden_dropout", "attention_dropout"):
        value = getattr(config, name)
        if not _is_number(value) or not 0.0 <= value < 1.0:
            faults.append(Fault(name, f"is {value!r}, but must be a number of at least 0 and below 1"))
    if not _is_number(config.layer_norm_eps) or not 0.0 < config.layer_norm_eps < 1.0:
        faults.append(
            Fault("layer_norm_eps", f"is {config.layer_norm_eps!r}, but must be above 0 and below 1")
        )
    return faults or list(_misfits(config))  # _misfits divides by these


def _misfits(config: ModelConfig) -> Iterator[Fault]:
    """Illegal combinations of fields that are each legal."""
    hidden = config.hidden_size
    divided_by = [("num_heads", "")]
    if config.convolution:
        divided_by.append(("conv_group_size", " (or turn convolution off)"))
    if config.feed_forward != "dense":
        divided_by.append(("ffn_groups", " (or make feed_forward dense)"))
    for name, otherwise in divided_by:
        parts = getattr(config, name)
        if hidden % parts:
            yield Fault(
                name,
                f"{parts} does not divide hidden_size {hidden}; use {name} "
                f"{_either(nearest_divisors(hidden, parts))}, or hidden_size "
                f"{_either(nearest_multiples(hidden, parts))}{otherwise}",
            )
    inner = config.intermediate_size
    if inner not in (None, 4 * hidden) and config.feed_forward != "dense":
        yield Fault(
            "intermediate_size",
            f"is {inner}, but a grouped feed-forward's is 4 * hidden_size, {4 * hidden}; use none, or "
            "feed_forward dense",
        )
    kernel = config.conv_kernel_size
    if config.convolution and kernel % 2 == 0:
        yield Fault(
            "conv_kernel_size",
            f"{kernel} is even, so it has no middle token; use {kernel - 1} or {kernel + 1}",
        )


def _either(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _named_points() -> Dict[str, ModelConfig]:
    points = {}
    for size, hidden, layers, heads in (
        ("tiny", 128, 2, 2),
        ("mini", 256, 4, 4),
        ("medium", 512, 8, 8),
        ("base", 768, 12, 12),
        ("large", 1024, 24, 16),
    ):
        bert = ModelConfig(hidden_size=hidden, num_layers=layers, num_heads=heads, hidden_dropout=0.1)
        points[f"bert_{size}"] = bert
        points[f"groupbert_{size}"] = replace(
            bert, norm="pre", convolution=True, feed_forward="grouped_projected", hidden_dropout=0.0
        )
    return points


# The published sizes, with the dropout of their pretraining.
PRESETS = _named_points()
