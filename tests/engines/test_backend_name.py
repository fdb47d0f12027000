"""Names of backends as users write them."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from freeprompt.contract.errors import BackendError, UsageError
from freeprompt.engines.backend_name import ProviderSpec, name_to_key, parse_backend
from freeprompt.engines.select import create_backend


@pytest.mark.parametrize("name", ["auto", "tensorrt"])
def test_names_that_are_not_onnx_runtimes(name: str) -> None:
    assert parse_backend(name) is None


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("cpu", "ort:cpu"),
        ("cpu", "ort:CPUExecutionProvider"),
        ("cuda", "ort:CUDA"),
        ("ort:tensorrt", "ort:TensorrtExecutionProvider"),
        ("ort:nxrt_ep_cpu", "ort:nxrt-ep-cpu"),
    ],
)
def test_spellings_of_one_provider(name: str, same: str) -> None:
    one, other = parse_backend(name), parse_backend(same)
    assert one is not None and other is not None and one.key == other.key


@pytest.mark.parametrize(
    "name", ["cpu", "cuda", "ort:tensorrt", "ort:openvino,device=gpu:1,a=b,c=", "ort:x,library=/y.so"]
)
def test_a_backends_name_is_what_was_typed(name: str) -> None:
    spec = parse_backend(name)
    assert str(spec) == name
    assert parse_backend(str(spec)) == spec


def test_options() -> None:
    config = '{"CPU": {"A": [1, 2], "B": "x,y=}"}}'
    spec = parse_backend(f"ort:openvino,load_config={config},device=npu,cache_dir=a b=c,library=/lib/x.so,n=")
    assert spec == ProviderSpec(
        "openvino", (("load_config", config), ("cache_dir", "a b=c"), ("n", "")), device="npu", library="/lib/x.so"
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ort-tensorrt", "there is no backend 'ort-tensorrt' any more: it is called ort:tensorrt now"),
        ("cuda-graph", "there is no backend 'cuda-graph' any more: use cuda, or tensorrt, which captures"),
        ("gpu", "unknown backend 'gpu'; known are auto, cpu, cuda, tensorrt, tensorrt-rtx, and ort:NAME"),
        ("cuda,device_id=1", "unknown backend"),
        ("ort:", "names no execution provider: expected ort:NAME"),
        ("ort: cpu", "names no execution provider"),
        ("ort:../x.so", "names no execution provider"),
        ("ort:a=b", "names no execution provider"),
        ("ort:x,", "expected option=value of ort:x, not ''"),
        ("ort:x,a", "expected option=value of ort:x, not 'a'"),
        ("ort:x,a,b=1", "expected option=value of ort:x, not 'a'"),
        ("ort:x,=1", "expected option=value of ort:x, not '=1'"),
        ("ort:x,a=1,a=2", "option 'a' of ort:x is there twice"),
        ("ort:x,a={", "option 'a' of ort:x begins as JSON and is none"),
        ("ort:x,a={}b", "option 'a' of ort:x has something after its JSON: 'b'"),
        ("ort:x,a=" + "[" * 100_000, "begins as JSON and is none"),
        ("ort:x,a=\x1b[2J", "has characters that cannot be printed: '\\x1b[2J'"),
        ("ort:x,device=tpu", "is cpu, gpu or npu, or gpu:1 for the second, not 'tpu'"),
        ("ort:x,device=", "is cpu, gpu or npu"),
        ("ort:x,library=", "is the path of a plug-in's shared library"),
    ],
)
def test_names_that_are_none(name: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_backend(name)
    assert said in str(raised.value)


WORDS = st.sampled_from(
    ["ort:", "cpu", "cuda", "nxrt_ep_cpu", ",", "=", "{", "}", '"', "[", "device", "library", "~", "/"]
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.lists(WORDS).map("".join), st.lists(WORDS).map(lambda words: "ort:x," + "".join(words))))
@example("ort:x,library=~nobody-of-that-name/x.so")
@example("ort:x,library=" + "x" * 5000)
def test_any_text_is_a_backend_or_an_error_of_ours(text: str) -> None:
    with contextlib.suppress(UsageError, BackendError):
        create_backend(text, threads=1)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,9}", fullmatch=True),
        st.recursive(
            st.text('ab{}[],="\\ é'), lambda values: st.lists(values) | st.dictionaries(st.text("ab,=}"), values)
        ),
    )
)
def test_options_come_out_as_they_went_in(options: dict[str, object]) -> None:
    """Values that are JSON, and others that hold no comma and do not begin like it."""
    texts = {
        name: json.dumps(value, ensure_ascii=False)
        if isinstance(value, (dict, list))
        else str(value).replace(",", "").lstrip("{[")
        for name, value in options.items()
    }
    own = {name: texts.pop(name) for name in ("device", "library") if name in texts}
    assert own.keys() <= {"device", "library"}
    spec = ProviderSpec.parse(",".join(("x", *(f"{name}={value}" for name, value in texts.items()))))
    assert dict(spec.options) == texts


def test_keys_are_the_same_for_every_spelling() -> None:
    assert {name_to_key(name) for name in ("nv_tensorrt_rtx", "NvTensorRTRTXExecutionProvider")} == {"nvtensorrtrtx"}
