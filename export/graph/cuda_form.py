"""A third form of each graph, with kernels that only ONNX Runtime's CUDA provider has.

ONNX Runtime's transformer optimizer (``onnxruntime.transformers``) does most of it: group norms with their SiLU and the
addition before them, layer norms with theirs. What it does not see in these graphs is prepared for it or done beside it
(``cuda_rewrites``): group norms are put into the one form that it knows, the gated linear unit is fused, and
convolutions read images with channels last. The file holds no weights: it names those of the other two forms, which
ONNX Runtime turns round once while it loads.

No CPU can run it, so that nothing here says it is right: ``freeprompt build --backend cuda`` compares and times it on
the GPU that is to run it, and without that it is not used.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

# Without it the optimizer does less and does not say so: that it is missing must be an error.
import sympy  # noqa: F401
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_tensor, uses_external_data
from onnxruntime import __version__ as onnxruntime_version
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_by_fusion

from freeprompt.contract.errors import ExportError
from freeprompt.contract.graphs import TEXT_ENCODER, VAE_DECODER, VAE_ENCODER
from freeprompt.export.graph.cuda_rewrites import DOMAIN, fuse_gated, prepare_group_norms, to_channels_last
from freeprompt.export.quiet import quiet

# The optimizer's own names of the models that it knows, by our names of graphs; every other is cut from the U-Net.
_MODEL_TYPES = {TEXT_ENCODER: "clip", VAE_ENCODER: "vae", VAE_DECODER: "vae"}
# Above it weights stay where they are: rewriting needs biases, scales and shapes only.
_SMALL_BYTES = 1 << 16


@dataclass(frozen=True)
class CudaForm:
    """A graph in its form for CUDA.

    Attributes:
        model: the ONNX file; weights are named relative to the folder of the form that it was made from.
        operators: how many nodes there are of each operator that the standard does not have.
    """

    model: bytes
    operators: dict[str, int]


def fuse_for_cuda(path: Path, graph: str) -> CudaForm:
    """Rewrite the ONNX file of a graph.

    Args:
        path: of the fused form, in which attention is fused already; its weights lie beside it.
        graph: its name.

    Raises:
        ExportError: this version of ONNX Runtime's optimizer cannot do it.
        OSError: the graph cannot be read.
    """
    kind = _MODEL_TYPES.get(graph, "unet")
    options = FusionOptions(kind)
    # Attention is fused (fused_form.py), and looking for it again would find none.
    options.enable_attention = False
    # Done by ``to_channels_last``, since the optimizer's own way copies the weights.
    options.enable_nhwc_conv = False
    try:
        model = onnx.load(path, load_external_data=False)
        named = _load_small(model, path.parent)
        group_norms = prepare_group_norms(model)
        fuse_gated(model)
        model.producer_name = "pytorch"  # what the optimizer wants to read before it works without complaint
        with quiet():
            optimizer = optimize_by_fusion(model, kind, optimization_options=options)
            to_channels_last(optimizer.model)
            if kind != "clip":
                optimizer.merge_adjacent_transpose()
                optimizer.postprocess()
            optimizer.topological_sort()
        result = optimizer.model
        result.producer_name = "freeprompt"
        _name_again(result, named)
        data = result.SerializeToString()
    except OSError:
        raise
    except Exception as error:  # the optimizer raises whatever its rules meet
        raise ExportError(
            f"graph {graph} could not be fused for ONNX Runtime's CUDA provider by onnxruntime {onnxruntime_version}: "
            f"{error!r}"
        ) from error
    count = Counter(node.op_type for node in result.graph.node if node.domain == DOMAIN)
    fused = count["GroupNorm"] + count["SkipGroupNorm"]
    if fused != group_norms:
        # One that is left would scale half precision images by float32 numbers: not a graph that can be run.
        raise ExportError(
            f"onnxruntime {onnxruntime_version} fused {fused} of {group_norms} group norms of graph {graph} for its "
            "CUDA provider; export with another version of onnxruntime"
        )
    return CudaForm(data, dict(sorted(count.items())))


def _load_small(model: Any, folder: Path) -> dict[str, tuple[Any, bytes]]:
    """Read into the model what the rules look at.

    Returns:
        name -> the tensor as it was, naming another file, and its values.
    """
    named = {}
    for tensor in model.graph.initializer:
        if uses_external_data(tensor) and (ExternalDataInfo(tensor).length or 0) <= _SMALL_BYTES:
            reference = onnx.TensorProto.FromString(tensor.SerializeToString())
            load_external_data_for_tensor(tensor, str(folder))
            tensor.ClearField("external_data")
            tensor.data_location = tensor.DEFAULT
            named[tensor.name] = (reference, tensor.raw_data)
    return named


def _name_again(model: Any, named: dict[str, tuple[Any, bytes]]) -> None:
    """Give what was read, and came through as it was, back to the file that it is in."""
    for tensor in model.graph.initializer:
        reference, values = named.get(tensor.name, (None, b""))
        if (
            reference is not None
            and tensor.raw_data == values
            and (tensor.data_type, tensor.dims) == (reference.data_type, reference.dims)
        ):
            tensor.CopyFrom(reference)
