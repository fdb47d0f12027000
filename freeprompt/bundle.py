"""Opening a bundle: nothing in it is used before it has been checked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Union

from freeprompt.errors import BundleError
from freeprompt.files import file_to_sha256
from freeprompt.manifest import (
    MANIFEST_NAME,
    FileSpec,
    GraphSpec,
    LayerSpec,
    Manifest,
    manifest_from_json,
)

# A manifest is some tens of kilobytes; a file of gigabytes at its place must not be read into memory.
MAX_MANIFEST_BYTES = 16 << 20
ENGINES_FOLDER = "engines"
_CHECKPOINT_NAME = "model_index.json"  # what a folder of diffusers has in a manifest's place


@dataclass(frozen=True)
class Bundle:
    """A checked bundle. ``sha256`` is the manifest's, which holds every file's: it identifies the whole."""

    path: Path
    manifest: Manifest
    sha256: str

    @classmethod
    def open(cls, path: Union[str, Path], verify: bool = True) -> Bundle:
        """Open the bundle at ``path``.

        Args:
            path: the folder that holds manifest.json.
            verify: compare each file's SHA-256; False checks presence and size only, for a bundle just verified.

        Raises:
            BundleError: missing, damaged, or of another format.
        """
        folder = Path(path)
        file = folder / MANIFEST_NAME
        try:
            if not folder.is_dir():
                raise BundleError(f"no bundle at {folder}: it is not a folder")
            if not file.is_file() and (folder / _CHECKPOINT_NAME).is_file():
                raise BundleError(
                    f"{folder} is a diffusers checkpoint and no bundle: export it first, with "
                    f"freeprompt export {folder} -o {folder.resolve().name}.bundle"
                )
            if not file.is_file():
                raise BundleError(f"no bundle at {folder}: it has no {MANIFEST_NAME}")
            if file.stat().st_size > MAX_MANIFEST_BYTES:
                raise BundleError(f"{file} is larger than {MAX_MANIFEST_BYTES} bytes: not a manifest")
            data = file.read_bytes()
            manifest = manifest_from_json(data)
            for spec in manifest.files:
                _check_file(folder, spec, verify)
            sha256 = file_to_sha256(file)
        except OSError as error:
            raise BundleError(f"cannot read the bundle at {folder}: {error}") from error
        except ValueError as error:  # a NUL in a path
            raise BundleError(f"the bundle's path cannot be used: {error}") from error
        return cls(folder, manifest, sha256)

    def file(self, name: str) -> Path:
        """Absolute path of a file of the bundle."""
        return (self.path / name).resolve()

    def graph_path(self, graph: str, fused: bool = False) -> Path:
        """Absolute path of a graph's ONNX file. Raises BundleError if there is no such graph.

        Args:
            graph: its name.
            fused: the form for ONNX Runtime, where the bundle has it.
        """
        spec = self.manifest.graph(graph)
        return self.file(spec.fused.file if fused and spec.fused else spec.file)

    def graph_sha256(self, graph: str, fused: bool = False) -> str:
        """Hash of a graph's ONNX file and of the weights it refers to, from the manifest's hashes.

        ONNX keeps the name of an external file as plain bytes, so that looking for it needs no parser.

        Raises:
            BundleError: there is no such graph.
        """
        path = self.graph_path(graph, fused)
        content = path.read_bytes()
        digest = hashlib.sha256()
        for spec in sorted(self.manifest.files, key=lambda spec: spec.path):
            if self.file(spec.path) == path or spec.path.encode() in content:
                digest.update(f"{spec.path}\0{spec.sha256}\n".encode())
        return digest.hexdigest()

    @property
    def engines(self) -> Path:
        """Folder of the engines built from this bundle (not part of its hashes)."""
        return self.path / ENGINES_FOLDER


def _check_file(folder: Path, spec: FileSpec, verify: bool) -> None:
    relative = PurePosixPath(spec.path)
    if relative.is_absolute() or not relative.parts or ".." in relative.parts or "\\" in spec.path or ":" in spec.path:
        raise BundleError(f"{MANIFEST_NAME} names {spec.path!r}, which is not inside the bundle")
    path = folder / relative
    if not path.is_file():
        raise BundleError(f"{spec.path} is missing from the bundle at {folder}")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"{spec.path} is a link to outside the bundle")
    size = path.stat().st_size
    if size != spec.bytes:
        raise BundleError(f"{spec.path} has {size} bytes, the manifest says {spec.bytes}: copy the bundle again")
    if verify and file_to_sha256(path) != spec.sha256:
        raise BundleError(f"{spec.path} is damaged (its SHA-256 differs): copy the bundle again")


__all__ = ["Bundle", "GraphSpec", "LayerSpec", "Manifest"]
