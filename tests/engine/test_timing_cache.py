"""Measurements of kernels: one file for each GPU and release, and never a reason to fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from fake_builder import FakeBuilding
from fake_cuda import FakeCuda
from fcn_deploy.engine import build_engine
from fcn_deploy.engine.timing_cache import (
    keep_timing_cache,
    read_timing_cache,
    timing_cache_path,
)
from fcn_deploy.recipe import EngineOptions, Shapes
from small_models import small_model


def gpu(name: str, *capability: int) -> FakeCuda:
    return FakeCuda(name=name, capability=(capability[0], capability[1]))


def test_each_gpu_and_release_has_its_own_file(tmp_path: Path) -> None:
    old, new = FakeBuilding("10.3").flavour, FakeBuilding("11.4").flavour
    orin, ada = gpu("Orin (nvgpu)", 8, 7), gpu("NVIDIA RTX 4000 Ada Generation", 8, 9)
    paths = [
        timing_cache_path(tmp_path, old, orin),
        timing_cache_path(tmp_path, new, orin),
        timing_cache_path(tmp_path, old, ada),
        # The same chip under another name has other clocks, and the same name may be another chip.
        timing_cache_path(tmp_path, old, gpu("NVIDIA RTX 4000 SFF Ada Generation", 8, 9)),
        timing_cache_path(tmp_path, old, gpu("NVIDIA RTX 4000 Ada Generation", 12, 0)),
    ]
    assert len(set(paths)) == len(paths)
    assert paths[0] == tmp_path / "tensorrt-10.3.0-orin-nvgpu-sm87.timing"
    assert timing_cache_path(tmp_path, old, gpu("Orin (nvgpu)", 8, 7)) == paths[0]


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "", "Straße 🚲", "\\", "x" * 200])
def test_whatever_a_gpu_is_called_the_file_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    path = timing_cache_path(tmp_path, FakeBuilding("10.3").flavour, gpu(name, 8, 7))
    assert path.parent == tmp_path
    path.touch()


def test_what_was_measured_is_there_for_the_next_build(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "of" / "caches" / "a.timing"
    assert read_timing_cache(path) == b""  # none yet, but wanted
    keep_timing_cache(path, FakeBuilding("10.16").config)
    assert read_timing_cache(path) == b"measured"


def test_where_none_is_wanted_none_is_read_or_kept() -> None:
    assert read_timing_cache(None) is None
    building = FakeBuilding("10.16")
    keep_timing_cache(None, building.config)
    assert building.calls == []


def test_a_build_that_measured_nothing_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.timing"
    path.write_bytes(b"earlier")
    building = FakeBuilding("10.16")
    building.config.answers["get_timing_cache"] = lambda: None
    keep_timing_cache(path, building.config)
    assert path.read_bytes() == b"earlier"


def test_a_place_that_cannot_be_used_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    (tmp_path / "folder.timing").mkdir()
    for path in (tmp_path / "file" / "a.timing", tmp_path / "folder.timing"):
        assert read_timing_cache(path) == b""
        keep_timing_cache(path, FakeBuilding("10.16").config)
    assert (tmp_path / "file").read_bytes() == b"in the way"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder.timing"]


def test_rtx_measures_nothing_and_keeps_nothing(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    source = tmp_path / "model.onnx"
    source.write_bytes(small_model().SerializeToString())
    shapes = Shapes(opt_hw=(64, 64), max_hw=(64, 64), max_batch=1)
    options = EngineOptions(flavour="rtx", profiles=(shapes,))
    cache = tmp_path / "cache"
    build_engine(source, tmp_path / "model.plan", options, crops=None, cache=cache)
    assert not cache.exists()
