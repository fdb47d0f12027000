"""The parts of ``benchmarks.gpu_check``, each importing what it needs when it runs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu import measure
from benchmarks.gpu.report import cuda_form_table, merge, profile_table, table
from benchmarks.gpu.results import Results, machine_facts
from freeprompt.contract.bundle import Bundle
from freeprompt.contract.session import Backend


class Check:
    """The parts, on one pair of folders.

    Args:
        work: checkpoint, bundle and engines (gigabytes); may be lost and made again.
        out: what is measured, and the references of the parity.
        dry: a tiny model on the CPU.
        again: measure again what is there.
    """

    def __init__(self, work: Path, out: Path, dry: bool = False, again: bool = False) -> None:
        self.work, self.out, self.dry, self.again = work, out, dry, again
        self.effort = measure.DRY if dry else measure.Effort()
        self.device = "cpu" if dry else "cuda"
        work.mkdir(parents=True, exist_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        self._bundle: Bundle | None = None

    @property
    def checkpoint(self) -> Path:
        return self.work / "checkpoint"

    @property
    def bundle(self) -> Bundle:
        if self._bundle is None:
            self._bundle = Bundle.open(self.work / "bundle", verify=False)
        return self._bundle

    def results(self, part: str) -> Results:
        return Results(self.out / f"part-{part}.json", self.again)

    def export(self) -> None:
        """A checkpoint with random weights and the bundle made from it, in half precision."""

        def run() -> dict[str, Any]:
            from freeprompt.export.exporter import ExportSettings, export_checkpoint

            start = time.perf_counter()
            if not (self.checkpoint / "model_index.json").exists():
                self._save_checkpoint()
            settings = ExportSettings(precision="float32" if self.dry else "float16")
            export_checkpoint(
                self.checkpoint, self.work / "bundle", settings, True, lambda line: print(line, flush=True)
            )
            size = sum(file.bytes for file in self.bundle.manifest.files)
            return {"seconds": time.perf_counter() - start, "bytes": size}

        # A bundle that is there is used as it is.
        if not (self.work / "bundle" / "manifest.json").exists():
            Results(self.out / "part-export.json", again=True).once("export", run)

    def references(self) -> None:
        """PyTorch in float32: a step at every number of rows, and the literal method's edit."""
        from benchmarks.gpu.torch_parts import refer_edit, refer_steps

        once = self.results("references").once
        where = (self.bundle, self.checkpoint, self.device)
        once("steps", lambda: refer_steps(*where, self.effort.rows, self.out))
        once("edit", lambda: refer_edit(*where, self.out))

    def machine(self) -> None:
        """Device, versions, and the peak of its matrix units."""
        results = self.results("machine")
        results.once(f"facts, Python {sys.version_info.major}.{sys.version_info.minor}", machine_facts)
        if not self.dry:
            from benchmarks.gpu.torch_parts import matrix_peak

            results.once("matrix peak", lambda: {"operations_per_second": matrix_peak(self.device)})

    def torch_eager(self) -> None:
        self._torch("torch-eager", compiled=False)

    def torch_compile(self) -> None:
        self._torch("torch-compile", compiled=True)

    def literal(self) -> None:
        """The published method with its maps."""
        from benchmarks.gpu.torch_parts import time_literal

        self.results("literal").once(
            "time of edits", lambda: time_literal(self.bundle, self.checkpoint, self.device, self.effort)
        )

    def ort_cpu(self) -> None:
        self._measure("ort-cpu", lambda: _onnxruntime("cpu"))

    def cuda_build(self) -> None:
        """The graphs' forms for CUDA; what follows runs them where they are right and not slower."""
        from benchmarks.gpu.engines import check_forms

        # The notes lie in the bundle, and are lost with it.
        there = any(self.bundle.engines.glob("cuda/*.json"))
        results = Results(self.out / "part-cuda-build.json", self.again or not there)
        check_forms(self.bundle, _onnxruntime("cuda"), results.once)

    def ort_cuda(self) -> None:
        self._measure("ort-cuda", lambda: _onnxruntime("cuda"))

    def ort_cuda_fused(self) -> None:
        """By the fused forms, whatever ``cuda_build`` has found."""

        def create() -> Backend:
            from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend

            return OnnxRuntimeBackend("cuda", cuda_form=False)

        self._measure("ort-cuda-fused", create)

    def ort_tensorrt(self) -> None:
        self._measure("ort-tensorrt", lambda: _onnxruntime("tensorrt"))

    def tensorrt_build(self) -> None:
        """Engines for steps of up to three rows and whole edits, one at a time, since a build cannot be resumed."""
        from benchmarks.gpu.engines import build_engines

        build_engines(self.bundle, self.effort.rows, self.results("tensorrt-build").once, more=False)

    def tensorrt_build_more(self) -> None:
        """Engines for the other numbers of rows and graphs."""
        from benchmarks.gpu.engines import build_engines

        build_engines(self.bundle, self.effort.rows, self.results("tensorrt-build-more").once, more=True)

    def tensorrt_rtx_build(self) -> None:
        """The same with TensorRT-RTX, on any machine: W goes to the one with the GPU, where they are checked."""
        from benchmarks.gpu.engines import build_engines

        once = self.results("tensorrt-rtx-build").once
        build_engines(self.bundle, self.effort.rows, once, more=False, name="tensorrt-rtx", gpu=False)

    def tensorrt_rtx(self) -> None:
        """The engines of ``tensorrt-rtx-build``: seconds of the first and of the second opening, then as the others."""
        results = self.results("tensorrt-rtx")
        for number in ("first", "second"):
            results.once(f"{number} opening", self._open_rtx)
        self._measure("tensorrt-rtx", lambda: _tensorrt(True, "tensorrt-rtx"))

    def _open_rtx(self) -> dict[str, Any]:
        """Kernels are compiled, and compared with the CPU, at the first; the second finds them kept."""
        start = time.perf_counter()
        backend = _tensorrt(True, "tensorrt-rtx")
        session = backend.open(self.bundle, "step")
        session.run(measure.step_feeds(self.bundle, backend, 2))["next_latents"].numpy()
        return {"seconds": time.perf_counter() - start}

    def tensorrt(self) -> None:
        self._measure("tensorrt", lambda: _tensorrt(True))

    def tensorrt_no_graph(self) -> None:
        self._measure("tensorrt-no-graph", lambda: _tensorrt(False))

    def profile(self) -> None:
        """Where the time of a step of two rows goes, on every backend that this Python has."""
        from benchmarks.gpu.profiles import profiles

        results = self.results("profile")
        for name, measured in profiles(self.bundle, self.checkpoint, self.dry):
            results.once(name, measured)

    def report(self) -> None:
        """Merge the parts and print the table."""
        parts = merge(self.out)
        macs = self.bundle.manifest.graph("step").macs
        (self.out / "gpu_check.json").write_text(json.dumps({"macs_per_row": macs, "parts": parts}, indent=1) + "\n")
        for section in (table(parts, macs), cuda_form_table(parts), profile_table(parts)):
            print("\n".join(section))

    def _measure(
        self,
        part: str,
        create: Callable[[], Backend],
        records: tuple[str, ...] = ("none", "exact"),
        effort: measure.Effort | None = None,
    ) -> None:
        once = self.results(part).once
        measure.measure_backend(once, self.bundle, create, self.out, effort or self.effort, records)

    def _torch(self, part: str, compiled: bool) -> None:
        def create() -> Backend:
            import torch

            from benchmarks.peers.torch_editor import TorchBackend

            dtype = torch.float32 if self.dry else torch.float16
            return TorchBackend(self.checkpoint, self.device, dtype, compiled)

        effort = self.effort
        if compiled:  # each number of rows takes a minute to compile; an edit has these
            effort = replace(effort, rows=(1, 2, 3))
        # The record graph has no counterpart that stops half-way.
        self._measure(part, create, ("none",), effort)

    def _save_checkpoint(self) -> None:
        if self.dry:
            from tests.tiny import tiny_pipeline

            tiny_pipeline().save_pretrained(self.checkpoint)
        else:
            from benchmarks.full_size.sd15 import save_random_checkpoint

            save_random_checkpoint(self.checkpoint)


def _onnxruntime(name: str) -> Backend:
    from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend

    return OnnxRuntimeBackend(name)


def _tensorrt(cuda_graphs: bool, name: str = "tensorrt") -> Backend:
    """An engine that came from elsewhere is used: who calls this knows where it was built."""
    from freeprompt.engines.tensorrt.backend import TensorRTBackend
    from freeprompt.engines.tensorrt.library import load_library

    return TensorRTBackend(load_library(name), trust=name == "tensorrt-rtx", cuda_graphs=cuda_graphs)
