"""Opening a bundle: nothing in it is used before it has been checked."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from freeprompt.contract.bundle_files import BundleFiles
from freeprompt.contract.errors import BundleError
from freeprompt.contract.files import read_regular, restore_folder
from freeprompt.contract.manifest import MANIFEST_NAME, GraphSpec, LayerSpec, Manifest
from freeprompt.contract.manifest_file import manifest_from_json

# A manifest is some tens of kilobytes; a file of gigabytes at its place must not be read into memory.
MAX_MANIFEST_BYTES = 16 << 20
ENGINES_FOLDER = "engines"
_CHECKPOINT_NAME = "model_index.json"  # what a folder of diffusers has in a manifest's place


@dataclass(frozen=True)
class Bundle:
    """A checked bundle. ``sha256`` is the manifest's, which holds every file's: it identifies the whole.

    What is read from it later is what was checked when it was opened, whatever happens to its folder meanwhile; its
    open files are closed when the last copy of it is gone. ``path`` is absolute.
    """

    path: Path
    manifest: Manifest
    sha256: str
    files: BundleFiles = field(repr=False, compare=False)

    @classmethod
    def open(cls, path: str | Path, verify: bool = True) -> Bundle:
        """Open the bundle at ``path``.

        Args:
            path: the folder that holds manifest.json.
            verify: compare each file's SHA-256; False checks presence and size only, for a bundle just verified.

        Raises:
            BundleError: missing, damaged, or of another format.
        """
        folder = Path(path)
        try:
            data = _read_manifest(folder)
            manifest = manifest_from_json(data)
            folder = folder.absolute()
            files = BundleFiles(folder, manifest.files, verify)
        except OSError as error:
            raise BundleError(f"cannot read the bundle at {folder}: {error}") from error
        except ValueError as error:  # a NUL in a path
            raise BundleError(f"the bundle's path cannot be used: {error}") from error
        return cls(folder, manifest, hashlib.sha256(data).hexdigest(), files)

    def read(self, name: str) -> bytes:
        """A file of the bundle as it was when the bundle was opened.

        Raises:
            BundleError: there is no such file, or it was changed and not kept (``freeprompt.contract.bundle_files``).
        """
        return self.files.read(name)

    def graph_name(self, graph: str, fused: bool = False) -> str:
        """Name of a graph's ONNX file within the bundle. Raises BundleError if there is no such graph.

        Args:
            graph: its name.
            fused: the form for ONNX Runtime, where the bundle has it.
        """
        spec = self.manifest.graph(graph)
        return spec.fused.file if fused and spec.fused else spec.file

    def cuda_name(self, graph: str) -> str:
        """Name of the ONNX file with a graph's form for ONNX Runtime's CUDA provider.

        Raises:
            BundleError: there is no such graph, or it has no such form.
        """
        form = self.manifest.graph(graph).cuda
        if form is None:
            raise BundleError(
                f"graph {graph} of {self.path} has no form for CUDA, since an earlier version of freeprompt exported "
                "it: export the checkpoint again with this one; until then --backend cuda runs its fused form"
            )
        return form.file

    def file(self, name: str) -> Path:
        """Absolute path of a file of the bundle, for tools: what is there by now need not be what was checked."""
        return (self.path / name).resolve()

    def graph_path(self, graph: str, fused: bool = False) -> Path:
        """Absolute path of a graph's ONNX file, as ``file``. Raises BundleError if there is no such graph."""
        return self.file(self.graph_name(graph, fused))

    def graph_snapshot(self, graph: str, fused: bool = False) -> contextlib.AbstractContextManager[Path]:
        """A private folder with copies of a graph's ONNX file and its weights, for libraries that read by path.

        Raises:
            BundleError: there is no such graph, or a file was changed since the bundle was opened.
            OutputError: the copies cannot be written.
        """
        return self.files.snapshot(self._parts(self.graph_name(graph, fused)))

    def graph_sha256(self, graph: str, fused: bool = False) -> str:
        """Hash of a graph's ONNX file and of the weights it refers to, from the manifest's hashes.

        Raises:
            BundleError: there is no such graph, or its file was changed since the bundle was opened.
        """
        return self.onnx_sha256(self.graph_name(graph, fused))

    def onnx_sha256(self, *names: str) -> str:
        """Hash of ONNX files of the bundle and of the weights they refer to, from the manifest's hashes.

        Raises:
            BundleError: there is no such file, or it was changed since the bundle was opened.
        """
        parts = {part for name in names for part in self._parts(name)}
        digest = hashlib.sha256()
        for spec in sorted(self.manifest.files, key=lambda spec: spec.path):
            if spec.path in parts:
                digest.update(f"{spec.path}\0{spec.sha256}\n".encode())
        return digest.hexdigest()

    def _parts(self, name: str) -> tuple[str, ...]:
        """Names of an ONNX file and of those that it refers to.

        ONNX keeps the name of an external file as plain bytes, so that looking for it needs no parser.
        """
        content = self.files.read(name)
        return (name, *(s.path for s in self.manifest.files if s.path != name and s.path.encode() in content))

    @property
    def engines(self) -> Path:
        """Folder of the engines built from this bundle (not part of its hashes)."""
        return self.path / ENGINES_FOLDER


def _read_manifest(folder: Path) -> bytes:
    file = folder / MANIFEST_NAME
    # Where an export that replaced it was killed between two renames, what it replaced is put back.
    if not folder.is_dir() and not restore_folder(folder):
        raise BundleError(f"no bundle at {folder}: it is not a folder")
    if not file.is_file() and (folder / _CHECKPOINT_NAME).is_file():
        raise BundleError(
            f"{folder} is a diffusers checkpoint and no bundle: export it first, with "
            f"freeprompt export {folder} -o {folder.resolve().name}.bundle"
        )
    if not file.is_file():
        raise BundleError(f"no bundle at {folder}: it has no {MANIFEST_NAME}")
    return read_regular(file, MAX_MANIFEST_BYTES)


__all__ = ["Bundle", "GraphSpec", "LayerSpec", "Manifest"]
