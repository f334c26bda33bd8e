"""The GPU benchmark on a CPU, and on the FAKE of TensorRT: that it judges, times and reports.

No time that is taken here is written among the results of the repository: nothing runs on a GPU.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

# Programs, and not a package: they find each other in the folder that the first one lies in.
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import gpu
import gpu_contenders
import gpu_report
from gpu_busy import covered
from gpu_device import Device, device_of, state_of_gpu
from gpu_engines import open_alone, plan_path
from gpu_job import Contender, Files, Job, Loaded, Pixels
from gpu_measure import Truths, measure
from gpu_parity import judge, truth_of
from gpu_results import Results, Row, Table, load_json, save_json
from gpu_rounds import Pace, in_bursts, ratio_of, summary_of
from gpu_trial import Trial, tried, try_apart, try_out

from fake_cuda import FakeCuda
from fake_engines import install_fake, model_of, write_fake_engine
from fcn_deploy.artifacts import sha256
from fcn_deploy.backends.ort import OrtBackend
from fcn_deploy.backends.tensorrt_flavour import has_gpu
from fcn_deploy.engine_files import passport_path
from fcn_deploy.recipe import Shapes
from fcn_deploy.segment import Segmenter
from small_models import photos, small_model

ROOT = Path(__file__).parents[1]
CPU = Device("CPU", False, "", "", lambda: None, None)
BRIEF = Pace(rounds=2, burst_s=0.001, most=3, least=2)
PROTO = small_model(1, classes=5, stride=8, learned=0.05)
CROPS, IMAGE = (2, 64, 96), (160, 160)


@pytest.fixture(scope="module")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A network of two layers; it has no checkpoint, because PyTorch does not know it."""
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    onnx.save_model(PROTO, path)
    return Files(path.with_suffix(".none"), path, path)


def job_of(files: Files, shape: tuple[int, ...], folder: Path, device: str = "cpu") -> Job:
    path = folder / f"{len(shape)}.npy"
    pixels = photos(3, *(shape if len(shape) == 3 else (1, *shape)))
    np.save(path, pixels if len(shape) == 3 else pixels[0])
    return Job(files, path, shape, device, folder, tile=96, overlap=32)


@pytest.fixture
def crops_job(small_files: Files, tmp_path: Path) -> Job:
    return job_of(small_files, CROPS, tmp_path)


@pytest.fixture(scope="module")
def oracle() -> Iterator[OrtBackend]:
    with OrtBackend(model_of(PROTO), Path("oracle"), "CPUExecutionProvider") as backend:
        yield backend


def rows_of(
    contenders: list[Contender], job: Job, oracle: OrtBackend, device: Device = CPU
) -> dict[str, Row]:
    """Trials in this process, the gate, and the race."""
    trials = {c.name: tried(try_out(c, [job]), 1)[0] for c in contenders}
    truth = truth_of(oracle, job)
    return measure(contenders, job, trials, Truths(truth, truth, "oracle"), device, BRIEF)


# The whole program.


@pytest.mark.skipif(has_gpu(), reason="there is a GPU: nothing is skipped")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "results"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "-o", str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "skipped: no NVIDIA GPU or driver" in ended.stdout
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def tried_out(
    toy_checkpoint: Path, toy_onnx: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What `--device cpu` writes of a trained network."""
    folder = tmp_path_factory.mktemp("bench")
    for source in (toy_checkpoint, toy_onnx):
        (folder / f"fcn16s-resnet18-learned{source.suffix}").symlink_to(source)
    words = f"--device cpu --network fcn16s:resnet18 --date 2001-02-03 --prepared {folder}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "monai", None)  # takes ten seconds to import
        gpu.main([*words.split(), "--work", str(folder / "work"), "-o", str(folder / "out")])
    return folder / "out"


def test_on_a_cpu_the_whole_program_runs(tried_out: Path) -> None:
    assert {path.suffix for path in tried_out.iterdir()} == {".json", ".md", ".png"}
    assert all(path.name.startswith("not-a-gpu") for path in tried_out.iterdir())
    results = load_json(tried_out / "not-a-gpu-cpu.json")
    assert not results.is_gpu
    assert results.environment["date"] == "2001-02-03"
    crops, image = results.tables
    right = {name for name, row in crops.rows.items() if row.samples}
    names = {contender.name for contender in gpu_contenders.CROPS["cpu"]}
    assert names - right == {"fcn-deploy, TensorRT fp16"}
    assert [n for n, row in image.rows.items() if not row.samples] == ["MONAI, PyTorch fp32"]
    for row in (*crops.rows.values(), *image.rows.values()):
        assert bool(row.reason) != bool(row.samples)
        if row.samples:
            assert row.verdict is not None
            assert row.verdict.wrong == 0
            assert len(row.samples) == results.rounds
            assert min(min(burst) for burst in row.samples) > 0


def test_the_tables_say_what_they_are_and_what_is_missing(tried_out: Path) -> None:
    text = (tried_out / "not-a-gpu-cpu.md").read_text()
    assert "**This is not a GPU result.**" in text
    assert "monai" in text
    tables = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert set(tables) == {10}  # every row has every column
    assert text == gpu_report.markdown(load_json(tried_out / "not-a-gpu-cpu.json"))


@pytest.mark.parametrize(
    "words",
    [
        "--device cpu",  # its results must not lie among those of GPUs
        "--images 2300",
        "--crops 1x500x512",
        "--crops 512x512",
        "--network vgg16",
    ],
)
def test_what_cannot_be_measured_is_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu.main(words.split())
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_the_makefile_runs_it() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "bench-gpu: $(READY)\n\t$(BIN)/python benchmarks/gpu.py" in makefile
    text = (ROOT / "benchmarks" / "README.md").read_text()
    assert "## On a GPU" in text
    parser_help = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    section = text.split("## On a GPU")[1]
    shown = {w.strip("`[],.") for w in section.split() if w.strip("`[]").startswith("--")}
    assert len(shown) > 4
    assert all(option in parser_help for option in shown), shown


# Who is wrong gets no time.


def answering(labels: Pixels) -> Contender:
    return Contender("fixed", lambda _: Loaded(lambda _: labels, lambda: None), "fp32")


def test_wrong_labels_get_no_time(crops_job: Job, oracle: OrtBackend) -> None:
    truth = truth_of(oracle, crops_job)
    right = rows_of([answering(truth.labels)], crops_job, oracle)["fixed"]
    assert right.samples
    assert not right.reason
    clearest = np.unravel_index(int(truth.lead.argmax()), truth.lead.shape)
    wrong = truth.labels.copy()
    wrong[clearest] += 1
    row = rows_of([answering(wrong)], crops_job, oracle)["fixed"]
    assert row.reason == "labels are wrong at 1 pixels"
    assert row.samples == []
    cut = rows_of([answering(truth.labels[:1])], crops_job, oracle)["fixed"]
    assert not cut.samples


def test_close_races_may_be_decided_otherwise(crops_job: Job, oracle: OrtBackend) -> None:
    truth = truth_of(oracle, crops_job)
    closest = np.unravel_index(int(truth.lead.argmin()), truth.lead.shape)
    other = truth.labels.copy()
    other[closest] += 1
    tied = replace(truth, lead=np.where(truth.labels != other, np.float32(0), truth.lead))
    assert judge(other, tied, "fp32") == (0, 1, truth.labels.size)
    nearly = replace(tied, lead=np.where(truth.labels != other, 0.005 * truth.span, truth.lead))
    assert judge(other, nearly, "fp16").wrong == 0
    assert judge(other, nearly, "fp32").wrong == 1


@pytest.mark.parametrize("shape", [CROPS, IMAGE])
def test_the_truth_is_arg_max_and_the_margin_that_sorting_finds(
    shape: tuple[int, ...], small_files: Files, oracle: OrtBackend, tmp_path: Path
) -> None:
    job = job_of(small_files, shape, tmp_path)
    pixels = job.load()
    whole = truth_of(oracle, job, in_one_piece=True)
    logits = oracle.logits(pixels if len(shape) == 3 else pixels[None])
    ranked = np.sort(logits, 1)
    np.testing.assert_array_equal(whole.labels.reshape(-1), logits.argmax(1).reshape(-1))
    np.testing.assert_allclose(
        whole.lead.reshape(-1), (ranked[:, -1] - ranked[:, -2]).reshape(-1), atol=1e-6
    )
    assert whole.span == pytest.approx(float(logits.max() - logits.min()))
    if len(shape) == 2:
        tiled = truth_of(oracle, job)
        expected = Segmenter(oracle).segment(pixels, tile=(96, 96), overlap=32)
        assert judge(expected, tiled, "fp32").wrong == 0
        assert judge(expected, whole, "fp32").wrong > 0  # crops see no further than their borders


# The race.


def test_rounds_begin_with_another_one_and_failures_end_nobody_elses_race() -> None:
    order: list[str] = []

    def run(name: str) -> float:
        order.append(name)
        if name == "fails" and len(order) > 30:
            raise RuntimeError("out of memory\nmore")
        return {"slow": 2.0, "fast": 1.0, "fails": 1.0, "clockless": math.nan}[name]

    works = {name: partial(run, name) for name in ("slow", "fast", "fails", "clockless")}
    samples, failed = in_bursts(works, Pace(4, 0.0, 5, 2), lambda: None)
    assert set(samples) == {"slow", "fast"}
    assert failed == {
        "fails": "RuntimeError: out of memory",
        "clockless": "its clock returned no number",
    }
    assert [len(burst) for burst in samples["slow"]] == [2] * 4
    # Three runs a burst. The warm-up round begins with the last one, who fails there for good.
    assert order[:12:3] == ["clockless", "slow", "fast", "fails"]
    assert order[12:21:3] == ["slow", "fast", "fails"]
    assert order[21] == "fast"
    ratio = ratio_of(samples["fast"], [[2.0], [4.0], [1.0], [2.0]])
    assert ratio == (2.0, 1.0, 4.0)


def test_summaries_are_of_all_measurements() -> None:
    summary = summary_of([[1.0] * 18, [3.0, 5.0]])
    assert summary.median == 1.0
    assert 3.0 <= summary.p95 < 5.0
    assert summary.measured == 20
    assert Pace(burst_s=1.0, most=50, least=3).repeats(0.1) == 10
    assert Pace(burst_s=1.0, most=50, least=3).repeats(9.0) == 3
    assert Pace(burst_s=1.0, most=50, least=3).repeats(1e-9) == 50


def test_work_of_streams_that_overlap_counts_once() -> None:
    assert covered([(0, 2), (1, 3), (5, 6), (5.2, 5.4)]) == pytest.approx(4)
    assert covered([]) == 0


def dies(_: Job) -> Loaded:
    os._exit(7)


def hangs(_: Job) -> Loaded:
    time.sleep(600)
    raise AssertionError


def test_a_contender_that_ends_its_process_is_left_out(crops_job: Job) -> None:
    (trial,) = try_apart(Contender("dies", dies), [crops_job], 300)
    assert trial.reason == "its process ended with code 7"


def test_a_contender_that_takes_too_long_is_left_out(crops_job: Job) -> None:
    first, second = try_apart(Contender("hangs", hangs), [crops_job, crops_job], 0.01)
    assert first.reason.startswith("took longer than")
    assert second.reason


# On the FAKE of TensorRT: the code is that of a GPU, the times are nobody's.


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    device = FakeCuda(seed=3)
    install_fake(monkeypatch, device)
    return device


def with_engine(job: Job) -> Job:
    """The same job, with an engine for it where the benchmark looks for one."""
    count, *hw = job.crops
    size = (hw[0], hw[1])
    plan = plan_path(job, "tensorrt")
    passport = write_fake_engine(plan, PROTO, profiles=(Shapes(size, size, size, count),))
    known = replace(passport, source_sha256=sha256(job.files.onnx))
    passport_path(plan).write_text(known.to_json())
    return job


def engines(*, image: bool = False) -> list[Contender]:
    """Those of the real list that this FAKE can be."""
    listed = gpu_contenders.IMAGES["cuda"] if image else gpu_contenders.ENGINES
    return [c for c in listed if c.name.startswith("fcn-deploy, TensorRT fp16")]


def test_engines_are_judged_and_run_in_turns(
    fake: FakeCuda, small_files: Files, oracle: OrtBackend, tmp_path: Path
) -> None:
    job = with_engine(job_of(small_files, CROPS, tmp_path, "cuda"))
    rows = rows_of(engines(), job, oracle, device_of(fake))
    assert len(rows) == 4
    for name, row in rows.items():
        assert row.verdict is not None, row.reason
        assert row.verdict.wrong == 0
        assert row.memory_bytes is not None
        assert row.memory_bytes > 0
        # The FAKE's events tell no time: no number may come of them.
        assert row.reason == ("its clock returned no number" if row.alone else ""), name
        assert bool(row.samples) != row.alone
    assert fake.calls["cudaGraphLaunch"] > 10
    fake.require_nothing_left()


def test_images_through_an_engine(
    fake: FakeCuda, small_files: Files, oracle: OrtBackend, tmp_path: Path
) -> None:
    job = with_engine(job_of(small_files, IMAGE, tmp_path, "cuda"))
    (row,) = rows_of(engines(image=True), job, oracle, device_of(fake)).values()
    assert row.verdict is not None, row.reason
    assert row.verdict.wrong == 0
    assert row.samples
    fake.require_nothing_left()


def test_an_engine_of_another_network_is_not_measured(
    fake: FakeCuda, small_files: Files, tmp_path: Path
) -> None:
    job = with_engine(job_of(small_files, CROPS, tmp_path, "cuda"))
    changed = tmp_path / "small.onnx"
    onnx.save_model(small_model(2, classes=5, stride=8), changed)
    other = replace(job, files=replace(job.files, onnx=changed))
    assert plan_path(other, "tensorrt") == plan_path(job, "tensorrt")
    for contender in engines():
        # It would be built again, which the FAKE has no builder for.
        (trial,) = tried(try_out(contender, [other]), 1)
        assert trial.reason
    fake.require_nothing_left()


def test_the_engine_alone_replays_what_it_recorded(
    fake: FakeCuda, small_files: Files, oracle: OrtBackend, tmp_path: Path
) -> None:
    job = with_engine(job_of(small_files, CROPS, tmp_path, "cuda"))
    loaded = open_alone(job, flavour="tensorrt")
    for seed in range(5):
        crops = photos(seed, *CROPS)
        np.save(job.pixels, crops)
        truth = truth_of(oracle, job)
        assert judge(loaded.labels(crops), truth, "fp32").wrong == 0
    assert fake.calls["cudaGraphLaunch"] == 4
    assert fake.calls["cudaEventElapsedTime"] == 5
    loaded.close()
    fake.require_nothing_left()


# The report.


def table_of(rows: dict[str, Row]) -> Table:
    return Table("fcn32s:resnet18", "crops", "4x512x512", 1 << 20, "base", "eager", rows)


def fabricated(rows: dict[str, Row]) -> Results:
    here = {"date": "", "commit": "", "cpu": "", "cores": 1, "python": "", "packages": {}}
    return Results(here, "NVIDIA Made-Up 1", True, 2, {}, [table_of(rows)])


def cells_of(results: Results, name: str) -> list[str]:
    (line,) = [line for line in gpu_report.markdown(results).splitlines() if f"| {name} |" in line]
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_figures_of_a_row() -> None:
    base = Row(samples=[[0.010], [0.012]], busy_s=0.0055, memory_bytes=300 << 20)
    twice = Row(samples=[[0.005], [0.004]], alone=True, busy_s=0.004, memory_bytes=9)
    results = fabricated({"base": base, "twice": twice, "gone": Row(reason="a | b")})
    assert results.stem == "gpu-nvidia-made-up-1"
    assert cells_of(results, "base")[1:8] == [
        "11.0",
        "11.9",
        "364",
        "1.00 (1.00 to 1.00)",
        "50%",
        "300",
        "-",
    ]
    assert cells_of(results, "twice")[1:8] == ["4.50", "4.95", "889", "-", "-", "-", "-"]
    assert cells_of(results, "gone") == ["gone", *["-"] * 7, "a / b"]


def test_numbers_that_are_none_do_not_reach_the_file(tmp_path: Path) -> None:
    good = fabricated({"base": Row(samples=[[0.01]])})
    path = save_json(good, tmp_path)
    assert load_json(path) == good
    assert json.loads(path.read_text())["is_gpu"] is True
    with pytest.raises(ValueError, match="JSON compliant"):
        save_json(fabricated({"base": Row(samples=[[math.nan]])}), tmp_path)


def test_what_nvidia_smi_says(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "NVIDIA X, 580.1, P0, 1980, 1980, 3201, 41, [N/A], 3, 512\n"

    def run(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 0, said, "")

    monkeypatch.setattr(subprocess, "run", run)
    state = state_of_gpu()
    assert state["clocks.sm"] == "1980"
    assert state["driver_version"] == "580.1"
    results = replace(fabricated({"base": Row(samples=[[0.01]])}), states={"before": state})
    text = gpu_report.markdown(results)
    assert "Before: SM at 1980 of 1980 MHz, 41 °C." in text
    assert "driver 580.1" in text
    said = "no devices were found\n"
    assert state_of_gpu() == {}
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    assert state_of_gpu() == {}


def test_a_trial_without_a_device_has_no_memory(crops_job: Job, oracle: OrtBackend) -> None:
    truth = truth_of(oracle, crops_job)
    assert tried(try_out(answering(truth.labels), [crops_job]), 1) == [Trial()]
