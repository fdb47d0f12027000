"""How a checkpoint is exported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from freeprompt.contract.errors import UsageError
from freeprompt.export.graph.trace import DEFAULT_OPSET

Reporter = Callable[[str], None]
Precision = Literal["float32", "float16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "float16")
GRAPHS = ("memory", "latency")
Spacing = Literal["auto", "checkpoint", "leading", "trailing", "linspace"]
SPACINGS: tuple[Spacing, ...] = ("auto", "checkpoint", "leading", "trailing", "linspace")


@dataclass(frozen=True)
class ExportSettings:
    """How a checkpoint is exported.

    Attributes:
        precision: of the weights; latents, guidance and scheduler are float32 either way.
        opset: ONNX operator set.
        graphs: "memory" holds the one step graph that does everything; "latency" also the graphs that record and
            use recorded hidden states, which share its weights on disk.
        float32: what stays float32 in a float16 bundle besides what the export finds: names of graphs ("vae_decoder")
            and of attention layers ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1", whose maps then are),
            with * and ? as in file names.
        spacing: of the timesteps; "auto" is the method's ("leading"; "trailing" for models that were trained for it),
            "checkpoint" what the saved scheduler has, the others are diffusers' names.
        variant: of the checkpoint's weights, such as "fp16"; None takes those without, or the only variant there is.
    """

    precision: Precision = "float32"
    opset: int = DEFAULT_OPSET
    graphs: str = "latency"
    float32: tuple[str, ...] = ()
    spacing: Spacing = "auto"
    variant: str | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"unknown precision {self.precision!r}; use {' or '.join(PRECISIONS)}")
        if self.graphs not in GRAPHS:
            raise UsageError(f"unknown graphs {self.graphs!r}; use {' or '.join(GRAPHS)}")
        if self.spacing not in SPACINGS:
            raise UsageError(f"unknown spacing {self.spacing!r}; use {', '.join(SPACINGS)}")
        if not 18 <= self.opset <= 23:
            raise UsageError(f"opset must be from 18 to 23, not {self.opset}")
        if self.float32 and self.precision == "float32":
            raise UsageError("everything is float32 already; parts can be kept so in a float16 bundle only")

    def keeps(self, name: str) -> bool:
        """Whether a graph or an attention layer is asked to stay float32."""
        return any(fnmatchcase(name, pattern) for pattern in self.float32)

    def check_names(self, names: Sequence[str]) -> None:
        """Raises UsageError if something is asked to stay float32 that is none of ``names``."""
        for pattern in self.float32:
            if not any(fnmatchcase(name, pattern) for name in names):
                known = ", ".join(names[:4])
                raise UsageError(f"nothing is called {pattern!r} that could stay float32; there are {known}, ...")
