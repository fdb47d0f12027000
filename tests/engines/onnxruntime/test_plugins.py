"""Plug-in providers: how they are found and registered, on packages and a registry that stand for them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import onnxruntime as ort
import pytest

from freeprompt.contract.errors import BackendError, UsageError
from freeprompt.engines import doctor, provider_report
from freeprompt.engines.backend_name import ProviderSpec
from freeprompt.engines.onnxruntime import plugins
from freeprompt.engines.onnxruntime.provider import Provider, find_provider
from freeprompt.engines.select import create_backend
from tests.engines.onnxruntime.plugin_package import FakeRegistry, device, write_package


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Whatever is written here is installed, and nothing else."""
    monkeypatch.syspath_prepend(tmp_path)
    found = metadata.distributions
    monkeypatch.setattr(metadata, "distributions", lambda: found(path=[str(tmp_path)]))
    before = set(sys.modules)
    yield tmp_path
    for module in set(sys.modules) - before:
        if (tmp_path / module).is_dir():
            del sys.modules[module]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> FakeRegistry:
    return FakeRegistry().install(monkeypatch)


def find(text: str, threads: int | None = None) -> Provider:
    return find_provider(ProviderSpec.parse(text), threads)


def test_packages_are_found_by_their_names_and_libraries_and_not_imported(folder: Path) -> None:
    failing = "raise RuntimeError('imported')"
    for name in ("onnxruntime-ep-one", "maker-ep-two", "step-by-step", "onnxruntime_epoch"):
        write_package(folder, name, more=failing)
    (folder / "half_ep_removed-1.0.dist-info").mkdir()
    write_package(folder, "pure-ep-python")
    (folder / "pure_ep_python-1.2.dist-info" / "RECORD").write_text("pure_ep_python/__init__.py,,\n")
    found = plugins.find_packages()
    assert [(p.name, p.distribution, p.version) for p in found] == [
        ("maker_ep_two", "maker-ep-two", "1.2"),
        ("one", "onnxruntime-ep-one", "1.2"),
    ]


@pytest.mark.parametrize(
    "name", ["some", "Some", "onnxruntime_ep_some", "onnxruntime-ep-some", "SomeExecutionProvider"]
)
def test_a_plugin_answers_to_each_of_its_names(folder: Path, registry: FakeRegistry, name: str) -> None:
    library = write_package(folder, "onnxruntime-ep-some", "SomeExecutionProvider")
    # The library chooses among devices under a second name, which comes first here.
    registry.devices = {str(library): [device("Some.AUTO", library), device("SomeExecutionProvider", library, "NPU")]}
    provider = find(name)
    assert (provider.ep_name, provider.device, provider.fused) == ("SomeExecutionProvider", "npu", False)
    assert provider.session_providers(None) == []  # type: ignore[arg-type]
    assert provider.cuda_device is None


def test_a_plugin_is_registered_once(folder: Path, registry: FakeRegistry) -> None:
    library = write_package(folder, "onnxruntime-ep-again", "AgainExecutionProvider")
    registry.devices = {str(library): [device("AgainExecutionProvider", library)]}
    assert find("again").ep_name == find("again").ep_name == "AgainExecutionProvider"
    assert registry.registered == {"onnxruntime_ep_again": str(library)}
    # By the program around, under a name of its own.
    registry.registered = {"mine": str(library)}
    assert find("again").ep_name == "AgainExecutionProvider"
    assert registry.registered == {"mine": str(library)}


def test_a_library_that_another_thread_registers_meanwhile(
    folder: Path, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = write_package(folder, "onnxruntime-ep-raced", "RacedExecutionProvider")
    registry.devices = {str(library): [device("RacedExecutionProvider", library)]}

    def register(name: str, path: str) -> None:
        registry.register(name, path)
        registry.register(name, path)

    monkeypatch.setattr(ort, "register_execution_provider_library", register)
    assert find("raced").ep_name == "RacedExecutionProvider"


def test_a_library_by_its_path(folder: Path, registry: FakeRegistry, tmp_path: Path) -> None:
    library = tmp_path / "libmine.so"
    library.write_bytes(b"no library")
    registry.devices = {str(library): [device("cpu_ep", library)]}
    provider = find(f"mine,library={library},a=b")
    assert (provider.ep_name, provider.device, provider.fused) == ("cpu_ep", "cpu", True)
    assert provider.options == (("a", "b"),)
    assert registry.registered == {"mine": str(library)}


def test_a_provider_that_the_program_has_registered(folder: Path, registry: FakeRegistry) -> None:
    registry.registered, registry.devices = {"x": "/x"}, {"/x": [device("TheirsExecutionProvider", None)]}
    assert find("theirs").ep_name == "TheirsExecutionProvider"


def test_an_onnxruntime_that_does_not_say_where_a_device_comes_from(folder: Path, registry: FakeRegistry) -> None:
    """As 1.23 and 1.24 do not: then the name that the package gives says it."""
    library = write_package(folder, "onnxruntime-ep-older", "OlderExecutionProvider")
    others = [device("CPUExecutionProvider", None), device("OlderExecutionProvider", None)]
    registry.devices = {str(library): others}
    assert find("older").ep_name == "OlderExecutionProvider"


def test_which_of_its_devices(folder: Path, registry: FakeRegistry) -> None:
    library = write_package(folder, "onnxruntime-ep-many", "ManyExecutionProvider")
    name = "ManyExecutionProvider"
    registry.devices = {
        str(library): [device(name, library), device(name, library, "GPU"), device(name, library, "GPU", n="second")]
    }
    assert find("many").device == "cpu"
    assert find("many,device=gpu").device == "gpu"
    assert find("many,device=gpu:1").devices[0].ep_metadata["n"] == "second"
    for wanted in ("npu", "gpu:2"):
        with pytest.raises(BackendError, match="it lists these devices: cpu, gpu, gpu"):
            find(f"many,device={wanted}")


def test_what_decides_the_result_is_part_of_the_identity(folder: Path, registry: FakeRegistry) -> None:
    library = write_package(folder, "onnxruntime-ep-same", "SameExecutionProvider")
    found = [device("SameExecutionProvider", library), device("SameExecutionProvider", library, "GPU")]
    registry.devices = {str(library): found}
    identities = {find(text).identity for text in ("same", "same", "same,a=1", "same,a=2", "same,device=gpu")}
    assert len(identities) == 4
    library.write_bytes(b"another")
    assert find("same").identity not in identities


def test_openvino_is_told_to_keep_the_models_precision(folder: Path, registry: FakeRegistry) -> None:
    library = write_package(folder, "onnxruntime-ep-openvino", "OpenVINOExecutionProvider")
    name = "OpenVINOExecutionProvider"
    registry.devices = {
        str(library): [
            device(name, library, ov_device="CPU"),
            device(name, library, "GPU", ov_device="GPU.0"),
        ]
    }
    config = {
        text: json.loads(dict(find(text, 3).options)["load_config"]) for text in ("openvino", "openvino,device=gpu")
    }
    assert config["openvino"] == {"CPU": {"EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_NUM_THREADS": 3}}
    assert config["openvino,device=gpu"] == {"GPU": {"EXECUTION_MODE_HINT": "ACCURACY"}}
    assert dict(find("openvino,load_config={}").options) == {"load_config": "{}"}, "what the user says counts"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("raise ImportError('libx.so is missing')", "ImportError: libx.so is missing"),
        ("del get_library_path", "AttributeError"),
        ("def get_library_path(): raise FileNotFoundError('no library')", "FileNotFoundError: no library"),
    ],
)
def test_a_package_that_is_broken(folder: Path, registry: FakeRegistry, more: str, said: str) -> None:
    name = f"onnxruntime-ep-broken{abs(hash(more))}"
    write_package(folder, name, more=more)
    with pytest.raises(BackendError, match=rf"{name} 1\.2 cannot be used as a plug-in .*{said}.*install it again"):
        find(name)


def test_a_library_that_cannot_be_loaded(folder: Path, registry: FakeRegistry) -> None:
    library = write_package(folder, "onnxruntime-ep-foreign")
    registry.error = (
        f"[ONNXRuntimeError] : 1 : FAIL : Failed to load library {library} with error: libcudart.so.12: cannot open"
    )
    with pytest.raises(BackendError) as raised:
        find("foreign")
    said = (
        f"onnxruntime {ort.__version__} cannot load onnxruntime-ep-foreign 1.2: libcudart.so.12: cannot open; install"
    )
    assert str(raised.value).startswith(said)


def test_a_file_that_is_no_library(tmp_path: Path) -> None:
    """The real library's words."""
    (tmp_path / "x.so").write_text("no library")
    with pytest.raises(BackendError, match=r"cannot load .*x\.so: .*(file too short|invalid ELF header)"):
        create_backend(f"ort:x,library={tmp_path / 'x.so'}")
    with pytest.raises(BackendError, match=r"there is no file '/no/x\.so'"):
        create_backend("ort:x,library=/no/x.so")


def test_a_plugin_without_a_device_here(folder: Path, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(folder, "onnxruntime-ep-idle", "IdleExecutionProvider")
    for _ in range(2):
        with pytest.raises(BackendError, match=r"onnxruntime-ep-idle 1\.2 is registered and lists no device on this"):
            create_backend("ort:idle")
    report = doctor.examine()
    (idle,) = (one for one in report.providers if one.backend == "ort:idle")
    assert (idle.ep_name, idle.devices) == ("IdleExecutionProvider", ())
    line = "ort:idle IdleExecutionProvider, onnxruntime-ep-idle 1.2: registered, lists no device on this machine"
    assert line in [" ".join(line.split()) for line in doctor.report_to_lines(report)]


def test_doctor_lists_devices_and_what_cannot_be_loaded(folder: Path, registry: FakeRegistry) -> None:
    library = write_package(folder, "onnxruntime-ep-good", "GoodExecutionProvider")
    write_package(folder, "onnxruntime-ep-spoiled", more="raise ImportError('half an installation')")
    registry.devices = {str(library): [device("GoodExecutionProvider", library, FULL_DEVICE_NAME="A processor")]}
    lines = provider_report.providers_to_lines(provider_report.provider_reports("no driver"))
    text = "\n".join(" ".join(line.split()) for line in lines)
    assert "ort:good GoodExecutionProvider, onnxruntime-ep-good 1.2: CPU (A processor)" in text
    assert "ort:spoiled onnxruntime-ep-spoiled 1.2: " in text and "half an installation" in text
    assert "ort:cpu CPUExecutionProvider, built in" in text


def test_doctor_says_why_cuda_cannot_be_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "AzureExecutionProvider"])
    (line,) = provider_report.providers_to_lines(provider_report.provider_reports("no driver"))
    assert line == "  ort:cuda  CUDAExecutionProvider, built in: no driver"


def test_an_onnxruntime_that_knows_no_plugins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(folder, "onnxruntime-ep-early")
    monkeypatch.delattr(ort, "register_execution_provider_library")
    with pytest.raises(
        BackendError, match=r"knows no plug-in execution providers: for onnxruntime-ep-early 1\.2 install"
    ):
        find("early")
    with pytest.raises(BackendError, match="'ort:none' is not there"):
        find("none")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ort:none", r"no execution provider of that name; it has cpu.*, and plug-ins: .*library=PATH"),
        ("ort:nvtensorrtrtx", "pip install onnxruntime-ep-nv-tensorrt-rtx-cu12"),
        ("ort:openvino", "pip install onnxruntime-ep-openvino"),
        ("ort:tensorrt", "has no TensorrtExecutionProvider.*install onnxruntime-gpu instead of onnxruntime"),
    ],
)
def test_a_provider_that_is_not_there(folder: Path, name: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendError, match=f"backend '{name}' is not there: .*{said}"):
        create_backend(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ort:cpu,use_arena=1", "CPUExecutionProvider takes no options"),
        ("ort:cpu,device=cpu", "CPUExecutionProvider is built into onnxruntime"),
        ("ort:azure", "sends what it is given to a server"),
        ("ort:cuda,enable_cuda_graph=1", "no fixed addresses there; use --backend tensorrt"),
        ("ort:tensorrt,trt_cuda_graph_enable=1", "no fixed addresses there; use --backend tensorrt"),
        ("ort:cuda,user_compute_stream=1", "is an address"),
        ("ort:tensorrt,trt_engine_cache_path=/tmp", "engines are kept in the bundle"),
        ("ort:cuda,device_id=first", "option device_id is the number of a device, from 0 on, not 'first'"),
    ],
)
def test_options_that_cannot_be_meant(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        create_backend(name)


def test_options_of_what_is_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: names)
    cuda = find("cuda,device_id=1,arena_extend_strategy=kSameAsRequested")
    assert cuda.session_providers(None) == [  # type: ignore[arg-type]
        (names[1], {"use_tf32": "0", "device_id": "1", "arena_extend_strategy": "kSameAsRequested"})
    ]
    assert (cuda.device, cuda.cuda_device, cuda.fused) == ("cuda:1", 1, True)
    assert find("tensorrt").fused is False
    assert find("cuda").identity != cuda.identity
