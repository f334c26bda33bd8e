"""Files of a run: written whole or not at all, and found by the names that users give."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest

from fcn_deploy.artifacts import (
    atomic_path,
    find_model,
    is_part,
    newest_run,
    sha256,
    write_atomically,
)
from fcn_deploy.errors import EngineError, EnvironmentFault, ModelError, UsageError


def write(path: Path, *, second: int) -> Path:
    """An empty-ish file that was last written at that second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"model")
    os.utime(path, (second, second))
    return path


def write_half(path: Path, error: BaseException) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"half of the ne")
        raise error


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("runs")


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (ValueError("bad"), ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(143), SystemExit),
        (OSError(errno.ENOSPC, "No space left on device"), EnvironmentFault),
    ],
)
def test_a_failed_write_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, old: bytes | None, error: BaseException, seen: type[BaseException]
) -> None:
    path = tmp_path / "model.onnx"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(seen):
        write_half(path, error)
    assert names(tmp_path) == ([] if old is None else ["model.onnx"])
    assert old is None or path.read_bytes() == old


def test_the_old_file_is_seen_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert temporary.parent == path.parent  # a rename works within one file system only
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["model.onnx"]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b" / "mask.png", b"content")
    assert (tmp_path / "a" / "b" / "mask.png").read_bytes() == b"content"


def test_a_place_that_cannot_be_written_is_an_environment_fault(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"in the way")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    for path in (file / "mask.png", file / "deep" / "mask.png", tmp_path / "folder"):
        with pytest.raises(EnvironmentFault) as caught:
            write_atomically(path, b"content")
        assert str(path) in caught.value.problem
        assert caught.value.remedy
        assert caught.value.exit_code == 5
    assert names(tmp_path) == ["file", "folder"]
    assert file.read_bytes() == b"in the way"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077])
def test_new_files_get_what_the_umask_gives(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "mask.png", b"content")
        assert stat.S_IMODE((tmp_path / "mask.png").stat().st_mode) == 0o666 & ~umask
    finally:
        after = os.umask(before)
    assert after == umask


def test_sha256_reads_the_whole_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000  # more than one block
    (tmp_path / "plan").write_bytes(content)
    assert sha256(tmp_path / "plan") == hashlib.sha256(content).hexdigest()


def test_the_newest_run_is_the_one_that_was_written_to_last(runs: Path) -> None:
    write(runs / "road" / "last.safetensors", second=100)
    write(runs / "town" / "best.safetensors", second=200)
    write(runs / "no-model" / "train.json", second=900)
    assert newest_run() == runs / "town"
    write(runs / "road" / "model.onnx", second=300)  # exporting again makes a run the newest
    assert newest_run() == runs / "road"
    write(runs / "town" / "train.json", second=400)
    assert newest_run() == runs / "town"


@pytest.mark.parametrize("suffixes", [(".onnx",), (".plan",), (".safetensors",)])
def test_without_any_run_the_user_is_told_how_to_get_one(
    runs: Path, suffixes: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError, match="no run") as caught:
        find_model(None, suffixes=suffixes)
    assert "fcn-deploy train" in caught.value.remedy


def test_a_named_file_is_taken_as_it_is(tmp_path: Path) -> None:
    model = write(tmp_path / "my.model", second=1)
    assert find_model(model, suffixes=(".onnx",)) == model


def test_nothing_named_means_the_newest_run(runs: Path) -> None:
    write(runs / "old" / "model.onnx", second=100)
    new = write(runs / "new" / "model.onnx", second=200)
    assert find_model(None, suffixes=(".onnx", ".safetensors")) == new


def test_a_run_folder_gives_the_most_wanted_kind_and_its_best_file(runs: Path) -> None:
    run = runs / "road"
    best = write(run / "best.safetensors", second=10)
    write(run / "last.safetensors", second=20)
    assert find_model(run, suffixes=(".onnx", ".safetensors")) == best
    write(run / "model.fp16.onnx", second=40)
    assert find_model(run, suffixes=(".onnx", ".safetensors")).name == "model.fp16.onnx"
    plain = write(run / "model.onnx", second=30)
    assert find_model(run, suffixes=(".onnx", ".safetensors")) == plain
    assert find_model(run, suffixes=(".safetensors", ".onnx")) == best
    write(run / "b.plan", second=50)
    newest = write(run / "a.plan", second=60)
    assert find_model(run, suffixes=(".plan",)) == newest


@pytest.mark.parametrize(
    ("suffix", "command"),
    [(".onnx", "export"), (".plan", "build-engine"), (".safetensors", "train")],
)
def test_a_run_without_that_kind_names_the_command_that_makes_it(
    runs: Path, suffix: str, command: str
) -> None:
    write(runs / "road" / "train.json", second=10)
    with pytest.raises(ModelError, match="road") as caught:
        find_model(runs / "road", suffixes=(suffix,))
    assert f"fcn-deploy {command}" in caught.value.remedy


def test_a_name_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.onnx"):
        find_model(tmp_path / "gone.onnx", suffixes=(".onnx",))


@pytest.mark.parametrize("suffix", [".plan", ".onnx", ".safetensors"])
def test_half_a_file_of_a_killed_run_is_never_taken(runs: Path, suffix: str) -> None:
    whole = write(runs / "road" / f"model.fp16{suffix}", second=10)
    # As after kill -9: this is how atomic_path names its files, not a name that is made up here.
    with atomic_path(runs / "town" / f"model.fp16{suffix}") as temporary:
        leftover = temporary.name
        temporary.write_bytes(b"whole")
    write(runs / "road" / leftover, second=20)
    assert find_model(runs / "road", suffixes=(suffix,)) == whole
    (runs / "town" / f"model.fp16{suffix}").unlink()
    write(runs / "town" / leftover, second=30)
    assert newest_run() == runs / "road"


def test_a_dangling_link_in_a_run_does_no_harm(runs: Path) -> None:
    write(runs / "road" / "model.onnx", second=10)
    (runs / "road" / "calibration").symlink_to("unmounted")
    assert newest_run() == runs / "road"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "Free some space there"), (errno.EACCES, "Make it writable")],
)
def test_the_remedy_fits_the_cause(tmp_path: Path, number: int, remedy: str) -> None:
    with pytest.raises(EnvironmentFault, match=remedy), atomic_path(tmp_path / "mask.png"):
        raise OSError(number, "why")


def test_parts_of_an_engine_are_not_picked_as_models(runs: Path) -> None:
    run = runs / "road"
    for part in ("model.fp16.trunk.plan", "model.fp16.head.plan"):
        write(run / part, second=90)
    with pytest.raises(EngineError, match=r"holds no \.plan file"):
        find_model(run, suffixes=(".plan",))
    whole = write(run / "model.fp16.plan", second=10)
    assert find_model(run, suffixes=(".plan",)) == whole
    # A folder of parts alone is no run.
    write(runs / "parts" / "model.trunk.plan", second=500)
    assert newest_run() == run


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.fp16.trunk.plan", True),
        ("head.head.plan", True),
        ("model.fp16.plan", False),
        ("trunk.plan.json", False),
        ("model.trunk.onnx", False),
        ("my-trunk.plan", False),
        ("headroom.plan", False),
    ],
)
def test_what_a_part_is_called(name: str, part: bool) -> None:
    assert is_part(Path(name)) == part


def test_only_a_missing_plan_is_an_engine_that_could_be_built(runs: Path) -> None:
    write(runs / "road" / "train.json", second=10)
    wanted: list[tuple[Path, tuple[str, ...], bool]] = [
        (runs / "road", (".plan",), True),
        (runs / "road" / "gone.plan", (".plan",), True),
        (runs / "road", (".onnx",), False),
        (runs / "road" / "gone.onnx", (".plan",), False),
    ]
    for model, suffixes, engine in wanted:
        with pytest.raises(ModelError) as caught:
            find_model(model, suffixes=suffixes)
        assert isinstance(caught.value, EngineError) == engine
