"""The TensorRT session on fakes that compute: numbers against the CPU backend, memory, captured graphs."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from freeprompt import Editor
from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError
from freeprompt.engines.comparison import seeded_inputs
from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend
from freeprompt.engines.tensorrt.backend import TensorRTSession
from tests.engines.conftest import Machine

SIZES = {"height": 16, "width": 16, "rows": 3, "latents": 1, "pinned": 1, "texts": 3}


def step_inputs(bundle: Bundle, **sizes: int) -> dict[str, Any]:
    return dict(seeded_inputs(bundle.manifest, "step", {**SIZES, **sizes}))


def on_cpu(bundle: Bundle, graph: str, inputs: dict[str, Any]) -> dict[str, Any]:
    session = OnnxRuntimeBackend("cpu", 1, fused=False).open(bundle, graph)
    return {name: array.numpy() for name, array in session.run(inputs).items()}


def assert_equal(got: Any, want: Any) -> None:
    """Of the same graph: engines are built from its standard form, so that the CPU runs that and not the fused one."""
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def opened(machine: Machine, bundle: Bundle, graph: str = "step", **build: Any) -> TensorRTSession:
    machine.build(bundle, graph, **build)
    machine.cuda.captures = machine.cuda.launches = 0
    return machine.backend.open(bundle, graph)


def test_every_run_equals_the_cpu_at_every_shape(machine: Machine, bundle: Bundle) -> None:
    """The first run is enqueued, the second captured, the third replayed; then the shapes change and change back."""
    session = opened(machine, bundle)
    for rows in (3, 1, 3, 2):
        for seed in range(3):
            inputs = step_inputs(bundle, rows=rows)
            inputs["latents"] = inputs["latents"] + np.float32(seed)
            assert_equal(session.run(inputs)["next_latents"].numpy(), on_cpu(bundle, "step", inputs)["next_latents"])
    assert machine.cuda.captures == 3
    assert machine.cuda.launches == 3 * 2 + 3
    assert session.fallbacks == ()


def test_results_stay_what_they_were_while_the_host_runs_ahead(bundle: Bundle) -> None:
    """A trajectory of 51 steps is kept; nothing waits for the device until the end."""
    machine = Machine.create()
    session = opened(machine, bundle, rows="1")
    inputs = step_inputs(bundle, rows=1)
    cpu = OnnxRuntimeBackend("cpu", 1, fused=False).open(bundle, "step")
    latents: Any = machine.backend.upload(inputs["latents"])
    expected = inputs["latents"]
    # Arrays of the host that are no tables are waited for; the runtime gives none of those within a loop.
    resident = {n: machine.backend.upload(inputs[n]) for n in ("pinned_latents", "encoder_hidden_states")}
    kept, wanted = [latents], [expected]
    done = machine.cuda.done
    for step in range(50):
        # Everything that varies is in small tables of which the host gives new ones each time.
        tables = {
            "timestep": np.full(1, 20 * step, np.float32),
            "latent_scale": np.full(1, 0.9 + 0.001 * step, np.float32),
        }
        latents = session.run({**inputs, **resident, **tables, "latents": latents})["next_latents"]
        expected = cpu.run({**inputs, **tables, "latents": expected})["next_latents"].numpy()
        kept.append(latents)
        wanted.append(expected)
    behind = machine.cuda.enqueued - machine.cuda.done
    assert behind > 10, "the host must not have waited for the last steps"
    assert machine.cuda.done > done
    for got, want in zip(kept, wanted):
        assert_equal(got.numpy(), want)


def test_memory_is_used_again_and_not_while_it_is_held(bundle: Bundle) -> None:
    machine = Machine.create()
    session = opened(machine, bundle, rows="1")
    inputs = step_inputs(bundle, rows=1)
    inputs["latents"] = machine.backend.upload(inputs["latents"])
    inputs["pinned_latents"] = inputs["latents"]
    inputs["encoder_hidden_states"] = machine.backend.upload(inputs["encoder_hidden_states"])
    for _ in range(3):
        session.run(inputs)
    gc.collect()
    mallocs, used = machine.cuda.mallocs, machine.backend.pool.used_bytes
    for _ in range(20):
        session.run(inputs)
    gc.collect()
    assert machine.cuda.mallocs == mallocs
    assert machine.backend.pool.used_bytes == used
    held = [session.run(inputs)["next_latents"] for _ in range(20)]
    assert len({array.address for array in held}) == 20  # type: ignore[attr-defined]


def test_an_unchanged_array_is_copied_once_and_host_tables_in_one_piece(bundle: Bundle) -> None:
    machine = Machine.create()
    session = opened(machine, bundle, rows="1")
    inputs = step_inputs(bundle, rows=1)
    for name in ("latents", "pinned_latents", "encoder_hidden_states"):
        inputs[name] = machine.backend.upload(inputs[name])
    session.run(inputs)
    session.run(inputs)
    enqueued, uploads = machine.cuda.enqueued, machine.cuda.uploads
    session.run(inputs)
    # One upload of all tables, one launch, one copy of the result.
    assert machine.cuda.uploads == uploads + 1
    assert machine.cuda.enqueued == enqueued + 3


@pytest.mark.parametrize("texts", [1, 2, 5])
def test_fewer_texts_than_the_engine_was_built_for(bundle: Bundle, texts: int) -> None:
    session = opened(Machine.create(), bundle, rows="3")
    inputs = step_inputs(bundle, texts=texts)
    assert_equal(session.run(inputs)["next_latents"].numpy(), on_cpu(bundle, "step", inputs)["next_latents"])


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_fewer_recorded_rows_and_outputs_that_are_cut(bundle: Bundle, rows: int) -> None:
    session = opened(Machine.create(), bundle, "record")
    inputs = dict(seeded_inputs(bundle.manifest, "record", {**SIZES, "rows": rows, "latents": rows, "pinned": 0}))
    got = session.run(inputs)
    want = on_cpu(bundle, "record", inputs)
    assert got.keys() == want.keys() and got
    for name, array in got.items():
        assert array.shape == want[name].shape
        assert_equal(array.numpy(), want[name])


def test_text_encoder_with_fewer_prompts(bundle: Bundle) -> None:
    session = opened(Machine.create(), bundle, "text_encoder")
    for texts in (2, 1):
        inputs = dict(seeded_inputs(bundle.manifest, "text_encoder", {"texts": texts}))
        got = session.run(inputs)["encoder_hidden_states"]
        assert got.shape[0] == texts
        assert_equal(got.numpy(), on_cpu(bundle, "text_encoder", inputs)["encoder_hidden_states"])


def test_a_whole_edit_equals_the_cpu(bundle: Bundle) -> None:
    machine = Machine.create()
    machine.build(bundle)
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    results = []
    for backend in (machine.backend, OnnxRuntimeBackend("cpu", 1, fused=False)):
        editor = Editor(bundle, backend)
        inversion = editor.invert(image, 5)
        results.append((inversion.trajectory, editor.edit_latents(inversion, ["a red cat"])))
    assert_equal(results[0][0], results[1][0])
    assert_equal(results[0][1], results[1][1])
    assert machine.cuda.launches > 0


def test_shapes_that_were_not_built_are_named(bundle: Bundle) -> None:
    session = opened(Machine.create(), bundle, rows="1,2")
    with pytest.raises(
        BackendError, match=r"not built for .*rows 3.*Engines exist for.*rows 1.*rows 2.*freeprompt build"
    ):
        session.run(step_inputs(bundle, rows=3))
    with pytest.raises(BackendError, match="height 24"):
        session.run(step_inputs(bundle, rows=1, height=24))


def test_more_texts_than_built_for_are_refused(bundle: Bundle) -> None:
    session = opened(Machine.create(), bundle, rows="1")
    with pytest.raises(BackendError, match="texts 9"):
        session.run(step_inputs(bundle, rows=1, texts=9))


def test_what_cannot_be_recorded_is_enqueued(machine: Machine, bundle: Bundle) -> None:
    machine.trt.breaks_capture = True
    session = opened(machine, bundle, rows="2")
    inputs = step_inputs(bundle, rows=2)
    want = on_cpu(bundle, "step", inputs)["next_latents"]
    for _ in range(4):
        assert_equal(session.run(inputs)["next_latents"].numpy(), want)
    assert machine.cuda.captures == 1, "it must not be tried again at every step"
    assert machine.cuda.launches == 0
    assert len(session.fallbacks) == 1 and "could not run the engine" in session.fallbacks[0]


def test_cuda_graphs_can_be_switched_off(bundle: Bundle) -> None:
    machine = Machine.create(cuda_graphs=False)
    session = opened(machine, bundle, rows="2")
    for _ in range(3):
        session.run(step_inputs(bundle, rows=2))
    assert machine.cuda.captures == 0


def test_recorded_graphs_notice_that_the_shared_scratch_moved(bundle: Bundle) -> None:
    machine = Machine.create()
    session = opened(machine, bundle, rows="2")
    inputs = step_inputs(bundle, rows=2)
    want = on_cpu(bundle, "step", inputs)["next_latents"]
    for _ in range(3):
        session.run(inputs)
    machine.backend._scratch.ensure(1 << 20)  # as another engine does that needs more; the old memory is freed
    for _ in range(3):
        assert_equal(session.run(inputs)["next_latents"].numpy(), want)
    assert machine.cuda.captures == 2
    assert machine.cuda.live_graphs == 1 + 0, "the graph with the old address must be destroyed"


def test_no_memory_left(bundle: Bundle) -> None:
    machine = Machine.create()
    session = opened(machine, bundle, rows="2")
    machine.cuda.limit = machine.cuda.used + 1000
    machine.backend.pool.trim()
    machine.cuda.limit = machine.cuda.used + 1000
    with pytest.raises(BackendError, match=r"GPU has no .* MB left.*free.*fewer rows"):
        session.run(step_inputs(bundle, rows=2))
    machine.cuda.limit = 1 << 30
    inputs = step_inputs(bundle, rows=2)
    assert_equal(session.run(inputs)["next_latents"].numpy(), on_cpu(bundle, "step", inputs)["next_latents"])


def test_memory_kept_for_later_is_given_up_before_failing(bundle: Bundle) -> None:
    machine = Machine.create()
    pool = machine.backend.pool
    pool.give_back(pool.take(1 << 20))
    machine.cuda.limit = machine.cuda.used + 4096
    pool.take(1 << 19)


def test_arrays_of_another_backend_are_refused(bundle: Bundle) -> None:
    session = opened(Machine.create(), bundle, rows="1")
    inputs = step_inputs(bundle, rows=1)
    inputs["latents"] = Machine.create().backend.upload(inputs["latents"])
    with pytest.raises(BackendError, match="another backend"):
        session.run(inputs)


def test_feeds_are_checked_like_everywhere(bundle: Bundle) -> None:
    session = opened(Machine.create(), bundle, rows="1")
    inputs = step_inputs(bundle, rows=1)
    with pytest.raises(BackendError, match="missing"):
        session.run({k: v for k, v in inputs.items() if k != "timestep"})
    with pytest.raises(BackendError, match="float64"):
        session.run({**inputs, "timestep": inputs["timestep"].astype(np.float64)})


def test_what_is_read_cannot_be_written(bundle: Bundle) -> None:
    array = Machine.create().backend.upload(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert array.shape == (2, 3) and array.dtype == np.float32 and array.nbytes == 24
    with pytest.raises(ValueError, match="read-only"):
        array.numpy()[0, 0] = 7


def test_upload_copies(bundle: Bundle) -> None:
    values = np.arange(4, dtype=np.int32)
    array = Machine.create().backend.upload(values)
    values[:] = 9
    np.testing.assert_array_equal(array.numpy(), [0, 1, 2, 3])


@pytest.mark.parametrize("engines", ["shared", "each"])
def test_engines_for_one_shape_or_for_all(bundle: Bundle, engines: str) -> None:
    machine = Machine.create()
    session = opened(machine, bundle, engines=engines)
    assert len(list((bundle.engines / "tensorrt").glob("*.engine"))) == {"shared": 1, "each": 3}[engines]
    for rows in (2, 1, 3):
        inputs = step_inputs(bundle, rows=rows)
        assert_equal(session.run(inputs)["next_latents"].numpy(), on_cpu(bundle, "step", inputs)["next_latents"])


def test_the_time_of_every_layer(machine: Machine, bundle: Bundle) -> None:
    """In a context of its own, so that what was captured into a CUDA graph stays as it is."""
    machine.trt.layers = [{"Name": "a", "LayerType": "gemm", "TacticName": "sm90_xmma"}, {"Name": "b"}]
    session = opened(machine, bundle, rows="2")
    inputs = step_inputs(bundle, rows=2)
    want = [session.run(inputs)["next_latents"].numpy() for _ in range(3)][-1]
    machine.trt.times = [("a", 2.0), ("b", 0.5), ("c", 0.25)]
    used, captures = machine.backend.pool.used_bytes, machine.cuda.captures
    times, layers = session.time_layers(inputs, runs=4, warm=2)
    assert times.samples == {"a": [2.0] * 4, "b": [0.5] * 4, "c": [0.25] * 4}
    assert layers == {"a": "a gemm sm90_xmma", "b": "b  "}
    assert machine.cuda.captures == captures
    np.testing.assert_array_equal(session.run(inputs)["next_latents"].numpy(), want)
    gc.collect()
    assert machine.backend.pool.used_bytes == used
