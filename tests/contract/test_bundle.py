"""Opening a bundle: each kind of damage is named, nothing outside it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from freeprompt.contract.bundle import MAX_MANIFEST_BYTES, Bundle
from freeprompt.contract.errors import BundleError
from freeprompt.contract.files import file_to_sha256
from freeprompt.contract.manifest import Manifest
from freeprompt.contract.manifest_file import manifest_from_json, manifest_to_json
from tests.damage import Json, copy_bundle, edit_manifest, read_manifest, seal, write_manifest


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return copy_bundle(tiny_bundle, tmp_path / "bundle")


def file_names(tiny_bundle: Path) -> list[str]:
    return [file["path"] for file in read_manifest(tiny_bundle)["files"]]


def test_opens(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    assert opened.sha256 == file_to_sha256(bundle / "manifest.json")
    assert opened.graph_path("step") == (bundle / "step.onnx").resolve()
    assert Bundle.open(str(bundle), verify=False).manifest == opened.manifest
    with pytest.raises(BundleError, match="no graph 'nothing'; it has record, step"):
        opened.graph_path("nothing")


def test_every_file_is_listed(tiny_bundle: Path) -> None:
    there = {p.relative_to(tiny_bundle).as_posix() for p in tiny_bundle.rglob("*") if p.is_file()}
    assert there == {*file_names(tiny_bundle), "manifest.json"}


def test_round_trip_and_determinism(tiny_bundle: Path) -> None:
    data = (tiny_bundle / "manifest.json").read_bytes()
    manifest = manifest_from_json(data)
    assert manifest_to_json(manifest) == data
    assert manifest_from_json(manifest_to_json(manifest)) == manifest
    noted = replace(manifest, notes={"b": "ü", "a": "\n"}, graphs=dict(reversed(manifest.graphs.items())))
    turned = replace(noted, notes={"a": "\n", "b": "ü"}, graphs=manifest.graphs)
    assert manifest_to_json(noted) == manifest_to_json(turned)
    assert manifest_from_json(manifest_to_json(noted)) == noted


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no bundle at .*none: it is not a folder"):
        Bundle.open(tmp_path / "none")


def test_a_file_instead_of_a_folder(bundle: Path) -> None:
    with pytest.raises(BundleError, match="it is not a folder"):
        Bundle.open(bundle / "manifest.json")


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"it has no manifest\.json"):
        Bundle.open(tmp_path)
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(BundleError, match=r"it has no manifest\.json"):
        Bundle.open(tmp_path)


def test_path_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        Bundle.open(f"{tmp_path}/a\0b")
    with pytest.raises(BundleError):
        Bundle.open(tmp_path / ("x" * 5000))


def test_each_file_missing_cut_longer_or_changed(bundle: Path) -> None:
    for name in file_names(bundle):
        path = bundle / name
        whole = path.read_bytes()
        path.unlink()
        with pytest.raises(BundleError, match=f"{name} is missing"):
            Bundle.open(bundle)
        for other in (whole[:-1], whole + b"\0", b""):
            path.write_bytes(other)
            with pytest.raises(BundleError, match=f"{name} has {len(other)} bytes, the manifest says {len(whole)}"):
                Bundle.open(bundle, verify=False)
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(BundleError, match=f"{name} is damaged"):
            Bundle.open(bundle)
        Bundle.open(bundle, verify=False)  # it says what it does not look at
        path.unlink()
        path.mkdir()
        with pytest.raises(BundleError, match=f"{name} is missing"):
            Bundle.open(bundle)
        path.rmdir()
        path.write_bytes(whole)
    Bundle.open(bundle)


def test_every_bit_of_the_manifest_counts(bundle: Path) -> None:
    data = (bundle / "manifest.json").read_bytes()
    for at in range(0, len(data), 97):
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        with pytest.raises(BundleError, match=r"manifest\.json"):
            manifest_from_json(bytes(flipped))
        with pytest.raises(BundleError, match=r"manifest\.json"):
            manifest_from_json(data[:at])


@pytest.mark.parametrize("version", [0, 2, -1, 10**30])
def test_other_format_version(bundle: Path, version: int) -> None:
    # Another version may have any other fields: it must be named before they are looked at.
    write_manifest(bundle, {"format_version": version})
    with pytest.raises(BundleError, match=f"format version {version}, this freeprompt reads 1"):
        Bundle.open(bundle)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "1", '"x"', "{", "\ufeff{}", '{"format_version": "1"}'])
def test_what_is_no_manifest(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json cannot be read"):
        Bundle.open(bundle)


def test_deep_nesting_and_bad_text() -> None:
    for data in (b"[" * 1_000_000, b'{"a":' * 1_000_000, b'{"format_version": 1, "notes": ' + b"[" * 100_000, b"\xff"):
        with pytest.raises(BundleError, match=r"manifest\.json cannot be read"):
            manifest_from_json(data)


def test_huge_manifest_is_not_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (bundle / "manifest.json").open("r+b") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("read"))
    with pytest.raises(BundleError, match="larger than"):
        Bundle.open(bundle)


def test_without_a_checksum(bundle: Path) -> None:
    edit_manifest(bundle, lambda m: m.pop("manifest_sha256"))
    with pytest.raises(BundleError, match="manifest_sha256"):
        Bundle.open(bundle)


def walk(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of a few representative places: of a list only the first item."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key, item in value.items():
            found += walk(item, (*path, key))
    elif isinstance(value, list) and value:
        found += walk(value[0], (*path, 0))
    return found


def parent_of(manifest: Json, path: tuple[Any, ...]) -> Any:
    value: Any = manifest
    for key in path[:-1]:
        value = value[key]
    return value


def test_each_field_missing_or_of_another_type(bundle: Path) -> None:
    original = read_manifest(bundle)
    # Absent they are empty, zero or none; everything else has to be there.
    optional = {"notes", "macs", "recordable", "half_precision", "unneeded", "known_answer", "known_answers"}
    optional |= {"fused", "cuda"}
    paths = [p for p in walk(original) if p[0] not in ("format_version", "manifest_sha256")]
    assert len(paths) > 100
    checked = 0
    for path in paths:
        name = path[-1]
        if isinstance(name, str) and name not in optional and path[:-1] != ("graphs",) and "operators" not in path[:-1]:
            data = read_manifest(bundle)
            del parent_of(data, path)[name]
            # A tensor of a known answer is missed where it is compared with the graph's signature.
            reason = "contradicts itself" if "known_answer" in path[:-2] else "cannot be read"
            with pytest.raises(BundleError, match=rf"manifest\.json {reason}") as raised:
                manifest_from_json(seal_of(data))
            assert name in str(raised.value)
            checked += 1
        wrongs: tuple[object, ...] = (None, True, "\u0000", [[]], {"x": []}, -1.5)
        for wrong in wrongs:
            data = read_manifest(bundle)
            parent = parent_of(data, path)
            if isinstance(parent[name], bool) and wrong is True:
                continue
            if isinstance(wrong, str) and isinstance(parent[name], str):
                continue  # any text is a text
            if wrong == -1.5 and name in ("scaling_factor", "parity_threshold"):
                continue
            if wrong is None and name in ("fused", "cuda", "half_precision", "known_answer"):
                continue
            parent[name] = wrong
            with pytest.raises(BundleError, match=r"manifest\.json"):
                manifest_from_json(seal_of(data))
            checked += 1
    assert checked > 500


def seal_of(manifest: Json) -> bytes:
    import json

    return seal(json.dumps({**manifest, "manifest_sha256": "0" * 64}))


def test_unknown_fields_are_for_later_versions(bundle: Path) -> None:
    edit_manifest(bundle, lambda m: m.update(later="x"))
    assert isinstance(Bundle.open(bundle).manifest, Manifest)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "nan"])
def test_numbers_that_are_none(bundle: Path, number: str) -> None:
    text = (bundle / "manifest.json").read_text()
    checksum = read_manifest(bundle)["manifest_sha256"]
    text = text.replace(checksum, "0" * 64, 1).replace('"scaling_factor": 0.5', f'"scaling_factor": {number}')
    assert number in text
    with pytest.raises(BundleError, match=r"manifest\.json cannot be read"):
        manifest_from_json(seal(text))


def setting(*path: Any, to: Any) -> Callable[[Json], None]:
    def edit(manifest: Json) -> None:
        parent_of(manifest, path)[path[-1]] = to

    return edit


def step_input(name: str, shape: list[Any]) -> Callable[[Json], None]:
    def edit(manifest: Json) -> None:
        tensor = next(t for t in manifest["graphs"]["step"]["inputs"] if t["name"] == name)
        tensor["shape"] = shape

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m["layers"].reverse(), "numbered 1, 2, 3"),
        (lambda m: m["layers"].clear(), "numbered 1, 2, 3"),
        (lambda m: m["layers"].append(m["layers"][0]), "numbered 1, 2, 3"),
        (lambda m: m["layers"].pop(), "map_row"),
        (lambda m: m["files"].append(m["files"][0]), "listed twice"),
        (lambda m: m["files"].pop(0), "is used but not listed"),
        (setting("tokenizer", to="other.json"), r"other\.json is used but not listed"),
        (setting("latents", "height", to=60), "not a multiple of 8"),
        (setting("latents", "width", to=65), "not a multiple of 8"),
        (setting("latents", "width", to=1 << 20), None),
        (setting("latents", "scaling_factor", to=0), "scaling_factor is 0"),
        (setting("latents", "channels", to=3), "latents"),
        (setting("text", "tokens", to=76), "76"),
        (setting("text", "tokens", to=1 << 40), "tokens"),
        (setting("text", "channels", to=31), "31"),
        (setting("text", "pad_token_id", to=1 << 31), "pad_token_id"),
        (setting("cross_layers", to=3), "cross_map_row"),
        (setting("scheduler", "steps_offset", to=1000), "steps_offset 1000"),
        (setting("scheduler", "alphas_cumprod", to=[0.5]), "alphas_cumprod"),
        (setting("scheduler", "alphas_cumprod", to=[0.5, 0.5]), "fall strictly"),
        (setting("scheduler", "alphas_cumprod", to=[0.5, 0.6]), "fall strictly"),
        (setting("scheduler", "alphas_cumprod", to=[1.5, 0.6]), "alphas_cumprod"),
        (setting("scheduler", "alphas_cumprod", to=[0.5, -0.1]), "alphas_cumprod"),
        (setting("scheduler", "prediction_type", to="sample"), "sample"),
        (setting("scheduler", "timestep_spacing", to="other"), "other"),
        (setting("precision", to="int8"), "int8"),
        (setting("files", 0, "sha256", to="0" * 63), "sha256"),
        (setting("files", 0, "sha256", to="A" * 64), "sha256"),
        (setting("files", 0, "bytes", to=-1), "bytes"),
        (step_input("latents", ["latents", 4, "height"]), "latents"),
        (step_input("map_row", ["layers", "rows"]), "map_row"),
    ],
)
def test_contradictions(bundle: Path, edit: Callable[[Json], Any], message: str | None) -> None:
    if message is None:

        def edit_both(manifest: Json) -> None:
            manifest["latents"].update(width=1 << 20, height=1 << 20)

        edit, message = edit_both, "pixels"
    edit_manifest(bundle, edit)
    with pytest.raises(BundleError, match=message) as raised:
        Bundle.open(bundle)
    assert "manifest.json" in str(raised.value)
