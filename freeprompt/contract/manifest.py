"""The manifest of a bundle: every constant of the model, every tensor, every file.

Nothing that describes a model is written in code a second time: export writes it here, everything else reads it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec

from freeprompt.contract.errors import BundleError
from freeprompt.contract.precision import HalfPrecision
from freeprompt.contract.storage.strict_json import check_json

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
class Parity:
    """How one graph compared with the model it was exported from, on seeded inputs.

    ``relative_l2`` is ||onnx - torch|| / ||torch|| over all outputs, torch computed in float32.
    """

    shapes: str
    relative_l2: Annotated[float, msgspec.Meta(ge=0.0)]
    max_abs: Annotated[float, msgspec.Meta(ge=0.0)]


@dataclass(frozen=True)
class FusedGraph:
    """The form of a graph that ONNX Runtime runs: fused attention and the like, which the standard does not have.

    ``operators`` counts the nodes that stand for several; it reads the same weights file.
    """

    file: str
    operators: dict[str, Natural]
    parity: tuple[Parity, ...]


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

    ``file`` is standard ONNX; ``fused``, where there is one, computes the same on ONNX Runtime.
    """

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parity: tuple[Parity, ...]
    parity_threshold: Annotated[float, msgspec.Meta(ge=0.0)]
    macs: Natural = 0
    fused: FusedGraph | None = None
    known_answer: KnownAnswer | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Every ONNX file of this graph."""
        return (self.file,) if self.fused is None else (self.file, self.fused.file)


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
    """Everything about a bundle. Raises nothing itself: ``manifest_from_json`` checks what it reads."""

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


@dataclass(frozen=True)
class _Versioned:
    format_version: int


@dataclass(frozen=True)
class _Sealed:
    manifest_sha256: Sha256


_UNSEALED = b"0" * 64
# Of a parser's message, which may quote all of a value.
_MESSAGE = 500


def manifest_to_json(manifest: Manifest) -> bytes:
    """Readable, deterministic JSON that begins with a checksum of itself.

    Every file has its SHA-256 in the manifest; ``manifest_sha256`` does the same for the manifest,
    where one flipped digit of a coefficient would otherwise be a slightly different model. It is the
    SHA-256 of the whole text with 64 zeros in its place.
    """
    text = msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=1)
    text = b'{\n "manifest_sha256": "' + _UNSEALED + b'",' + text[1:] + b"\n"
    return text.replace(_UNSEALED, hashlib.sha256(text).hexdigest().encode(), 1)


def manifest_from_json(data: bytes) -> Manifest:
    """Parse and check a manifest.

    Raises:
        BundleError: not JSON, another format version, a checksum that differs, a field missing,
            of a wrong type or out of range, a key twice, or values that contradict each other.
    """
    from freeprompt.contract.manifest_check import contradiction  # which reads what is defined here

    try:
        check_json(data)
        version = msgspec.json.decode(data, type=_Versioned).format_version
        if version != FORMAT_VERSION:
            raise BundleError(
                f"{MANIFEST_NAME} has format version {version}, this freeprompt reads {FORMAT_VERSION}; "
                "export the checkpoint again, or install the version that wrote it"
            )
        sha256 = msgspec.json.decode(data, type=_Sealed).manifest_sha256
        unsealed = data.replace(sha256.encode(), _UNSEALED, 1)
        if hashlib.sha256(unsealed).hexdigest() != sha256:
            raise BundleError(f"{MANIFEST_NAME} is damaged or was edited (its SHA-256 differs): copy the bundle again")
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST_NAME} cannot be read: {str(error)[:_MESSAGE]}") from error
    problem = contradiction(manifest)
    if problem is not None:
        raise BundleError(f"{MANIFEST_NAME} contradicts itself: {problem}")
    return manifest
