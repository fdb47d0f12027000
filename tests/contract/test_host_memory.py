"""How much memory there is said to be: of the machine, and of what containers leave."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from freeprompt.contract.host_memory import available_bytes, free_bytes

MIB = 1 << 20


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One with 1000 MiB free, 10 MiB of swap and a process of 100 MiB."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000 * MIB))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(free=10 * MIB))
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=100 * MIB))
    monkeypatch.setattr(psutil, "Process", lambda: process)


def system(root: Path, groups: str, **files: str) -> Path:
    """A file system with control groups."""
    files = {"proc/self/cgroup": groups, **{name.replace("__", "/"): text for name, text in files.items()}}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def group(folder: str, most: str, used: int, cached: int, version: int = 2) -> dict[str, str]:
    names = ("memory.max", "memory.current", "file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")
    return {
        f"{folder}/{names[0]}": f"{most}\n",
        f"{folder}/{names[1]}": f"{used}\n",
        f"{folder}/memory.stat": f"anon 5\n{names[2]} {cached}\n",
    }


def test_free_memory_of_the_machine(tmp_path: Path) -> None:
    assert available_bytes(system(tmp_path, "0::/\n")) == 1110 * MIB
    assert free_bytes(tmp_path) == 1000 * MIB


def test_a_system_without_control_groups(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) == 1110 * MIB


@pytest.mark.parametrize("name", ["virtual_memory", "swap_memory", "Process"])
@pytest.mark.parametrize("error", [psutil.AccessDenied(1), FileNotFoundError("/proc/meminfo"), ValueError("no number")])
def test_nothing_is_said_where_the_system_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: Exception
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(psutil, name, fail)
    assert available_bytes(system(tmp_path, "0::/\n")) is None


def test_nothing_is_said_where_groups_cannot_be_read(tmp_path: Path) -> None:
    assert available_bytes(system(tmp_path, "one line too short\n")) is None


@pytest.mark.parametrize("most", [str(300 * MIB), "max", str(1 << 60), "nonsense"])
def test_what_a_container_leaves(tmp_path: Path, most: str) -> None:
    files = group("sys/fs/cgroup/a/b", most, 200 * MIB, 50 * MIB)
    want = (300 - 200 + 50 if most == str(300 * MIB) else 1000) + 110
    assert available_bytes(system(tmp_path, "0::/a/b\n", **files)) == want * MIB
    assert free_bytes(tmp_path) == (want - 110) * MIB


def test_the_narrowest_group_counts(tmp_path: Path) -> None:
    files = {
        **group("sys/fs/cgroup/a/b", str(900 * MIB), 0, 0),
        **group("sys/fs/cgroup/a", str(400 * MIB), 100 * MIB, 0),
        **group("sys/fs/cgroup", "max", 0, 0),
        **group("sys/fs", str(MIB), 0, 0),  # no group
    }
    assert available_bytes(system(tmp_path, "0::/a/b\n", **files)) == (300 + 110) * MIB


def test_a_path_of_the_host_that_a_container_does_not_see(tmp_path: Path) -> None:
    files = group("sys/fs/cgroup", str(400 * MIB), 100 * MIB, 0)
    assert available_bytes(system(tmp_path, "0::/kubepods/pod1/c2\n", **files)) == (300 + 110) * MIB


def test_groups_of_the_first_version(tmp_path: Path) -> None:
    files = group("sys/fs/cgroup/memory/x", str(500 * MIB), 200 * MIB, 10 * MIB, version=1)
    groups = "3:cpu,cpuacct:/x\n2:memory,hugetlb:/x\n1:name=systemd:/x\n0::/x\n"
    assert available_bytes(system(tmp_path, groups, **files)) == (310 + 110) * MIB
