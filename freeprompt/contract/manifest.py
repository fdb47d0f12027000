"""The manifest of a bundle: every constant of the model, every tensor, every file.

Nothing that describes a model is written in code a second time: export writes it here, everything else reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec

from freeprompt.contract.errors import BundleError
from freeprompt.contract.parity import Parity

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"

# The rule of the reference implementation: self-attention maps of at most 32 x 32 tokens are replaced.
REPLACED_TOKENS = 1024

# Bounds far above any model's: a damaged number is an error here and not an allocation of terabytes later.
Positive = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
Natural = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
TokenId = Annotated[int, msgspec.Meta(ge=0, le=(1 << 31) - 1)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
DataType = Literal["float16", "float32", "int32", "int64"]


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph. A dimension is a number, or a name where it may vary."""

    name: str
    dtype: DataType
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}[{','.join(str(d) for d in self.shape)}] {self.dtype}"


@dataclass(frozen=True)
class FusedGraph:
    """The form of a graph that ONNX Runtime runs: fused attention and the like, which the standard does not have.

    ``operators`` counts the nodes that stand for several; it reads the same weights file.
    """

    file: str
    operators: dict[str, Natural]
    parity: tuple[Parity, ...]


@dataclass(frozen=True)
class CudaGraph:
    """The form of a graph with kernels that only ONNX Runtime's CUDA provider has.

    Made from the fused form; reads the same weights file. No CPU can run it, so that it has no parity: whether a GPU
    computes it right is found on that GPU. ``operators`` counts the nodes of operators that the standard does not have.
    """

    file: str
    operators: dict[str, Natural]


@dataclass(frozen=True)
class Float32Part:
    """What stays float32 in a float16 bundle.

    Attributes:
        graph: "unet" (all graphs cut from it) or the name of a graph.
        part: name of the module in the checkpoint; "" is the whole graph.
        reason: why, with what was measured.
    """

    graph: str
    part: str
    reason: str


@dataclass(frozen=True)
class HalfPrecision:
    """How the export made sure that half precision holds the numbers of a model.

    Attributes:
        limit: above it a number stays float32.
        activations: graph -> the largest magnitude between its modules, in float32 on seeded inputs.
        logits: attention layer -> the largest magnitude of q k^T / sqrt(d).
        float32_parts: what stays float32.
        unneeded: what the checkpoint's configuration asks to keep in float32 and the measurement does not.
    """

    limit: Annotated[float, msgspec.Meta(ge=0.0)]
    activations: dict[str, Annotated[float, msgspec.Meta(ge=0.0)]]
    logits: dict[str, Annotated[float, msgspec.Meta(ge=0.0)]]
    float32_parts: tuple[Float32Part, ...]
    unneeded: tuple[Float32Part, ...] = ()


@dataclass(frozen=True)
class KnownAnswer:
    """Inputs of a graph and what its model computes from them, in float32 PyTorch.

    Both map names of the graph to names of tensors in the file ``Manifest.known_answers``.
    """

    inputs: dict[str, str]
    outputs: dict[str, str]


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX graph. ``macs`` counts multiply-adds of one row at the native size (0: not counted).

    ``file`` is standard ONNX; ``fused``, where there is one, computes the same on ONNX Runtime, and ``cuda``, where
    there is one, on its CUDA provider.
    """

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parity: tuple[Parity, ...]
    parity_threshold: Annotated[float, msgspec.Meta(ge=0.0)]
    macs: Natural = 0
    fused: FusedGraph | None = None
    known_answer: KnownAnswer | None = None
    # None: exported before there were any; on CUDA the fused form is run.
    cuda: CudaGraph | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Every ONNX file of this graph."""
        return (self.file, *(form.file for form in (self.fused, self.cuda) if form is not None))


@dataclass(frozen=True)
class FileSpec:
    """A file of the bundle; ``path`` is relative to it, with forward slashes."""

    path: str
    bytes: Natural
    sha256: Sha256


@dataclass(frozen=True)
class LayerSpec:
    """A self-attention layer; ``number`` counts from 1 in forward order.

    ``level`` is log2 of the downsampling against the latents, ``tokens`` the side of the N x N map at the native size.
    """

    number: Positive
    name: str
    level: Natural
    tokens: Positive
    heads: Positive
    channels: Positive
    replaced: bool
    recordable: bool = False


@dataclass(frozen=True)
class SchedulerSpec:
    """Constants of the DDIM schedule; ``alphas_cumprod`` in double precision, one for each training timestep."""

    alphas_cumprod: Annotated[tuple[Annotated[float, msgspec.Meta(ge=0.0, le=1.0)], ...], msgspec.Meta(min_length=2)]
    prediction_type: Literal["epsilon", "v_prediction"]
    timestep_spacing: Literal["leading", "trailing", "linspace"]
    steps_offset: Natural
    set_alpha_to_one: bool


@dataclass(frozen=True)
class TextSpec:
    """The text encoder: tokens per prompt, width of an embedding, and the ids that frame and pad a prompt."""

    tokens: Positive
    channels: Positive
    bos_token_id: TokenId
    eos_token_id: TokenId
    pad_token_id: TokenId


@dataclass(frozen=True)
class LatentSpec:
    """The autoencoder: channels, pixels per latent, scaling factor, and the native image size in pixels.

    ``multiple``: latents' height and width must be multiples of this, for the U-Net's down- and upsampling to meet.
    """

    channels: Positive
    scale: Positive
    scaling_factor: float
    height: Positive
    width: Positive
    multiple: Positive


@dataclass(frozen=True)
class Manifest:
    """Everything about a bundle. Raises nothing itself: ``manifest_file.manifest_from_json`` checks what it reads."""

    format_version: int
    producer: str
    model: str
    precision: Literal["float32", "float16"]
    opset: Positive
    latents: LatentSpec
    text: TextSpec
    scheduler: SchedulerSpec
    layers: tuple[LayerSpec, ...]
    cross_layers: Positive
    graphs: dict[str, GraphSpec]
    tokenizer: str
    files: tuple[FileSpec, ...]
    notes: dict[str, str] = field(default_factory=dict)
    # None: float32, or exported before this was measured.
    half_precision: HalfPrecision | None = None
    # A safetensors file. None: exported before there were any; what runs such a bundle is not checked.
    known_answers: str | None = None

    @property
    def replaced_layers(self) -> tuple[int, ...]:
        """Numbers of the layers whose maps are replaced by default."""
        return tuple(layer.number for layer in self.layers if layer.replaced)

    def graph(self, name: str) -> GraphSpec:
        """The graph of that name. Raises BundleError if the bundle has none."""
        try:
            return self.graphs[name]
        except KeyError:
            raise BundleError(f"the bundle has no graph {name!r}; it has {', '.join(sorted(self.graphs))}") from None
