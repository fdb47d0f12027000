"""Half precision: what float16 cannot hold is found, stays float32 and is told; PyTorch's own float16 is the oracle."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import UsageError
from freeprompt.engines.comparison import compare, profile_to_sizes, seeded_inputs
from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend
from freeprompt.export.checkpoint.constants import checkpoint_to_latents, checkpoint_to_text
from freeprompt.export.checkpoint.load import Checkpoint, load_checkpoint, quiet
from freeprompt.export.checkpoint.scheduler import config_to_scheduler
from freeprompt.export.exporter import export_checkpoint
from freeprompt.export.graph import stage_export
from freeprompt.export.graph.parity import THRESHOLDS
from freeprompt.export.graph.unet import UnetExport
from freeprompt.export.graph.writer import GraphWriter
from freeprompt.export.model.calibration import Calibration, checkpoint_to_calibration
from freeprompt.export.model.cases import step_cases
from freeprompt.export.model.half import halve
from freeprompt.export.model.layers import Architecture, set_routed_attention, unet_to_architecture
from freeprompt.export.model.modules import StepGraph, VaeDecoderGraph
from freeprompt.export.model.ranges import LIMIT, Ranges, module_to_ranges, unet_to_ranges
from freeprompt.export.model.stages import checkpoint_to_stages
from freeprompt.export.settings import ExportSettings
from tests.cli.runner import call
from tests.conftest import ROOT, cached_folder
from tests.engines.onnxruntime.cuda_reference import to_standard
from tests.shapes import shapes_of
from tests.tiny import tiny_pipeline

# Large queries and keys, whose product is above 65504; and queries that are so by themselves.
LOGITS = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
QUERIES = "up_blocks.1.attentions.0.transformer_blocks.0.attn1"


@pytest.fixture(scope="module")
def overflowing_checkpoint() -> Path:
    """The small pipeline with weights that float16 overflows on in two attention layers and in the decoder."""
    with cached_folder("overflowing", ROOT / "tests" / "tiny.py", Path(__file__)) as (folder, fill):
        if fill:
            pipeline = tiny_pipeline()
            modules = dict(pipeline.unet.named_modules())
            with torch.no_grad():
                modules[LOGITS].to_q.weight.mul_(300.0)
                modules[LOGITS].to_k.weight.mul_(300.0)
                modules[QUERIES].to_q.weight.mul_(50_000.0)
                modules[QUERIES].to_k.weight.mul_(1e-4)
                pipeline.vae.decoder.conv_in.weight.mul_(100_000.0)
            with quiet():
                pipeline.save_pretrained(folder / "checkpoint")
        name = folder.name.split(".")[0]
    return ROOT / "build" / "tests" / name / "checkpoint"


@pytest.fixture(scope="module")
def overflowing_bundle(overflowing_checkpoint: Path) -> Path:
    sources = (ROOT / "export", ROOT / "tests" / "tiny.py", Path(__file__), ROOT / "freeprompt" / "manifest.py")
    with cached_folder("overflowing-bundle", *sources) as (folder, fill):
        if fill:
            export_checkpoint(overflowing_checkpoint, folder / "bundle", ExportSettings("float16"))
        name = folder.name.split(".")[0]
    return ROOT / "build" / "tests" / name / "bundle"


@pytest.fixture
def checkpoint(overflowing_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(str(overflowing_checkpoint))


def calibrate(checkpoint: Checkpoint) -> Calibration:
    latents, text = checkpoint_to_latents(checkpoint), checkpoint_to_text(checkpoint)
    return checkpoint_to_calibration(checkpoint, latents, text, config_to_scheduler(checkpoint.scheduler))


def routed(checkpoint: Checkpoint) -> Architecture:
    architecture = unet_to_architecture(checkpoint.unet, 16, 16)
    set_routed_attention(checkpoint.unet, architecture)
    return architecture


def measure(checkpoint: Checkpoint) -> Ranges:
    c = calibrate(checkpoint)
    return unet_to_ranges(checkpoint.unet, c.samples, c.timesteps, c.texts)


def relative_l2(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


def run(module: nn.Module, args: Sequence[Tensor]) -> Tensor:
    with torch.no_grad():
        result: Any = module(*args)
    first: Tensor = result[0] if isinstance(result, tuple) else result
    return first


def test_measured_logits_are_those_of_diffusers(checkpoint: Checkpoint) -> None:
    """By diffusers' own processor and function of attention scores, before its softmax, in double precision."""
    routed(checkpoint)
    ranges = measure(checkpoint)
    unet = copy.deepcopy(checkpoint.unet).double()
    unet.set_attn_processor(AttnProcessor())
    expected: dict[str, float] = {}
    for name in ranges.logits:
        attn = unet.get_submodule(name)
        seen: dict[str, Tensor] = {}
        for part in ("to_q", "to_k"):
            attn.get_submodule(part).register_forward_hook(
                lambda m, a, out, part=part, seen=seen: seen.update({part: out})
            )

        def after(module: Any, args: Any, output: Any, name: str = name, seen: dict[str, Tensor] = seen) -> None:
            q, k = (module.head_to_batch_dim(seen[part]) for part in ("to_q", "to_k"))
            found = float((q @ k.transpose(1, 2) * module.scale).abs().max())
            expected[name] = max(found, expected.get(name, 0.0))

        attn.register_forward_hook(after)
    c = calibrate(checkpoint)
    with torch.no_grad():
        for sample, timestep, text in zip(c.samples.double(), c.timesteps, c.texts.double(), strict=True):
            unet(sample[None], timestep[None], text[None])
    assert len(expected) == 8
    assert ranges.logits == pytest.approx(expected, rel=1e-4)


def test_halving_everything_overflows_and_halving_the_rest_does_not(checkpoint: Checkpoint) -> None:
    architecture = routed(checkpoint)
    latents, text = checkpoint_to_latents(checkpoint), checkpoint_to_text(checkpoint)
    step = StepGraph(checkpoint.unet, ()).eval()
    cases = [case.step for case in step_cases(latents, text, architecture, "own")]
    expected = [run(step, case) for case in cases]
    ranges = measure(checkpoint)
    assert set(ranges.float32_parts()) == {QUERIES}
    assert set(ranges.upcast()) == {LOGITS}
    plain, kept = copy.deepcopy(step).half(), copy.deepcopy(step)
    set_routed_attention(kept.unet, architecture, ranges.upcast())
    halve(kept.unet, ranges.float32_parts())
    assert {p.dtype for p in kept.unet.get_submodule(QUERIES).parameters()} == {torch.float32}
    assert {p.dtype for n, p in kept.named_parameters() if QUERIES not in n} == {torch.float16}
    for case, want in zip(cases, expected, strict=True):
        assert not run(plain, case).isfinite().all(), "this checkpoint is to overflow in float16"
        assert relative_l2(run(kept, case), want) < THRESHOLDS["float16"]


def test_a_decoder_that_overflows_stays_float32(checkpoint: Checkpoint) -> None:
    decoder = VaeDecoderGraph(checkpoint.vae).eval()
    codes = calibrate(checkpoint).codes
    parts = module_to_ranges(decoder, lambda: decoder(codes)).float32_parts()
    assert set(parts) == {"vae.decoder"} and parts["vae.decoder"] > 65504
    assert not run(copy.deepcopy(decoder).half(), (codes,)).isfinite().all(), "this one is to overflow in float16"
    kept = copy.deepcopy(decoder)
    halve(kept, parts)
    assert relative_l2(run(kept, (codes,)), run(decoder, (codes,))) < THRESHOLDS["float16"]


@pytest.mark.parametrize(
    ("large", "parts"),
    [
        ((), ()),
        (("block.ff.net.0", "block.ff.net.2"), ("block.ff",)),  # block.ff.net is a list, which nobody calls
        (("block.ff.net.0", "block.attn.to_q"), ("block.attn", "block.ff")),
        (("block.ff", "block.ff.net.2"), ("block",)),
        (("block.ff.net.0", "block.ff", "block.attn.to_q"), ("block",)),
        (("block", "block.ff"), ("",)),
        (("",), ("",)),
    ],
)
def test_the_smallest_part_that_holds_what_is_large(large: tuple[str, ...], parts: tuple[str, ...]) -> None:
    names = ("", "block", "block.attn", "block.attn.to_q", "block.ff", "block.ff.net.0", "block.ff.net.2")
    activations = {name: 2 * LIMIT if name in large else 1.0 for name in names}
    assert tuple(sorted(Ranges(activations, {}, set(names)).float32_parts())) == parts


def test_what_is_no_number_is_large() -> None:
    module = nn.Sequential(nn.Sequential(nn.Identity()))
    for value in (float("nan"), float("inf")):
        ranges = module_to_ranges(module, lambda value=value: module(torch.tensor([value, 1.0])))  # type: ignore[misc]
        assert ranges.largest[1] == float("inf")


def test_the_export_holds_what_was_measured(overflowing_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = Bundle.open(overflowing_bundle).manifest
    half = manifest.half_precision
    assert half is not None and half.limit == LIMIT < 65504
    kept = {(part.graph, part.part): part.reason for part in half.float32_parts}
    assert kept.keys() == {("vae_decoder", "vae.decoder"), ("unet", QUERIES), ("unet", LOGITS)}
    assert "activations reach" in kept["vae_decoder", "vae.decoder"]
    assert "attention logits reach" in kept["unet", LOGITS]
    assert half.logits[f"unet.{LOGITS}"] > 65504 > half.activations["text_encoder"]
    assert len(half.logits) == len(manifest.layers) + manifest.cross_layers
    for name, graph in manifest.graphs.items():
        # ONNX Runtime has shown that they are finite; above zero, since half of something is rounded everywhere.
        assert all(0 < parity.relative_l2 < THRESHOLDS["float16"] for parity in graph.parity), name
    outcome = call(capsys, "inspect", overflowing_bundle, "--all")
    assert outcome.code == 0
    for part in (*kept, ("unet", LOGITS)):
        assert f"float32: {'.'.join(part)}" in outcome.out
    # In short it is a line: the largest of each, and what stays float32.
    (line,) = (
        line for line in call(capsys, "inspect", overflowing_bundle).out.splitlines() if line.startswith("half ")
    )
    assert f"{LIMIT:g} allowed" in line and f"attention logit {max(half.logits.values()):.4g}" in line
    assert all(".".join(part) in line for part in kept)


def test_gelu_is_fused_in_half_precision_too(overflowing_bundle: Path) -> None:
    """The root of 2 that it divides by is another number there."""
    bundle = Bundle.open(overflowing_bundle)
    for graph in ("step", "record"):
        standard, fused = (
            [node.op_type for node in onnx.load(bundle.graph_path(graph, form), load_external_data=False).graph.node]
            for form in (False, True)
        )
        assert fused.count("Gelu") == standard.count("Erf") > 0 == fused.count("Erf")


def softmax_types(graph: Path) -> list[str]:
    model = onnx.shape_inference.infer_shapes(onnx.load(graph, load_external_data=False))
    types = {info.name: info.type.tensor_type.elem_type for info in model.graph.value_info}
    return [onnx.TensorProto.DataType.Name(types[n.input[0]]) for n in model.graph.node if n.op_type == "Softmax"]


def test_two_of_eight_layers_compute_their_maps_in_float32(overflowing_bundle: Path) -> None:
    for graph in ("step", "step_recorded", "step_recording"):
        types = softmax_types(overflowing_bundle / f"{graph}.onnx")
        assert (types.count("FLOAT"), types.count("FLOAT16")) == (2, 6), graph


def test_a_graph_that_disagrees_in_float16_is_exported_in_float32(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the calibration had met nothing large: the comparison then finds what overflows."""
    monkeypatch.setattr(stage_export, "module_to_ranges", lambda module, run: Ranges({"": 1.0}))
    lines: list[str] = []
    writer = GraphWriter(tmp_path, ExportSettings("float16"), lines.append)
    stages = checkpoint_to_stages(checkpoint, checkpoint_to_latents(checkpoint), checkpoint_to_text(checkpoint))
    (decoder,) = (stage for stage in stages if stage.name == "vae_decoder")
    stage_export.write_stage(decoder, writer, calibrate(checkpoint))
    (part,) = writer.half.to_spec().float32_parts
    assert (part.graph, part.part) == ("vae_decoder", "") and "not finite" in part.reason
    spec = writer.graphs["vae_decoder"]
    assert spec.parity_threshold == THRESHOLDS["float32"]
    assert all(parity.relative_l2 < THRESHOLDS["float32"] for parity in spec.parity)
    assert any("it stays float32" in line for line in lines)
    assert any(line.endswith(", 1 of 1 attention layers fused") for line in lines)


def test_a_configuration_that_says_upcast_attention_is_measured(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Stable Diffusion 2.1's says so. To obey costs the fused kernels; the one layer that needs it is found."""
    config = {**checkpoint.unet.config, "upcast_attention": True}
    unet = UNet2DConditionModel.from_config(config).eval()
    weights = tiny_pipeline().unet.state_dict()
    for part in ("to_q", "to_k"):
        weights[f"{LOGITS}.{part}.weight"] *= 300.0
    unet.load_state_dict(weights)
    latents, text = checkpoint_to_latents(checkpoint), checkpoint_to_text(checkpoint)
    architecture = unet_to_architecture(unet, 16, 16)
    set_routed_attention(unet, architecture)
    case = step_cases(latents, text, architecture, "own")[0].step
    want = run(StepGraph(unet, ()), case)
    writer = GraphWriter(tmp_path, ExportSettings("float16"), lambda line: None)
    export = UnetExport(unet, architecture, latents, text, writer)
    export.halve(calibrate(checkpoint))
    spec = writer.half.to_spec()
    assert [part.part for part in spec.float32_parts] == [LOGITS]
    (unneeded,) = spec.unneeded
    assert unneeded.graph == "unet" and unneeded.reason.startswith("upcast_attention in 7 layers, whose logits reach")
    assert relative_l2(run(export.module, case), want) < THRESHOLDS["float16"]


def test_what_is_asked_to_stay_float32_does(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Of the U-Net by layers, of a stage by its name; nothing else changes."""
    settings = ExportSettings("float16", float32=("unet.*.attn2", "vae_encoder"))
    writer = GraphWriter(tmp_path, settings, lambda line: None)
    latents, text = checkpoint_to_latents(checkpoint), checkpoint_to_text(checkpoint)
    architecture = unet_to_architecture(checkpoint.unet, 16, 16)
    calibration = calibrate(checkpoint)
    (stage,) = (s for s in checkpoint_to_stages(checkpoint, latents, text) if s.name == "vae_encoder")
    stage_export.write_stage(stage, writer, calibration)
    UnetExport(checkpoint.unet, architecture, latents, text, writer).halve(calibration)
    asked = {(part.graph, part.part) for part in writer.half.to_spec().float32_parts if part.reason == "asked for"}
    assert asked == {("vae_encoder", ""), *(("unet", name) for name in architecture.cross_layers)}
    assert writer.graphs["vae_encoder"].parity_threshold == THRESHOLDS["float32"]
    processors = checkpoint.unet.attn_processors
    assert all(processors[f"{name}.processor"].upcast for name in architecture.cross_layers)
    assert sum(p.upcast for p in processors.values()) == len(architecture.cross_layers) + 1, "and the one that must"


def test_names_that_nothing_has_are_told_before_anything_is_traced(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="everything is float32 already"):
        ExportSettings("float32", float32=("vae_decoder",))
    with pytest.raises(UsageError, match=r"nothing is called 'vae'.*there are text_encoder, .*vae_decoder, unet\.down"):
        export_checkpoint(checkpoint.name, tmp_path / "b", ExportSettings("float16", float32=("vae",)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("graph", ["step", "record", "vae_decoder"])
def test_half_precision_has_the_form_for_cuda(overflowing_bundle: Path, graph: str) -> None:
    """With float32 parts in between. Spelled out in standard operators, on the CPU, against the fused form.

    Bound: that of engines; it was 1e-5 for step and decoder, 4e-3 for recorded hidden states (largest differences are a
    rounding of numbers near 300).
    """
    bundle = Bundle.open(overflowing_bundle, verify=False)
    session = OnnxRuntimeBackend("cpu", 1).open_model(bundle, graph, to_standard(bundle.read(bundle.cuda_name(graph))))
    (profile, *_) = shapes_of(bundle.manifest, (64, 64), rows="2").profiles(graph)
    sizes = profile_to_sizes(profile)
    inputs = seeded_inputs(bundle.manifest, graph, sizes)
    expected = OnnxRuntimeBackend("cpu", 1).open(bundle, graph).run(inputs)
    values = [{n: a.numpy() for n, a in found.items()} for found in (expected, session.run(inputs))]
    assert compare("", *values).relative_l2 < THRESHOLDS["float16"]
