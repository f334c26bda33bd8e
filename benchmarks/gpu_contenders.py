"""Who takes part: on batches of crops, and on images that are cut into crops.

Nothing heavy is imported before a contender is opened, so that a missing package is a line in the
table, and not the end of the benchmark.
"""

from __future__ import annotations

from functools import partial

from gpu_job import Contender, Job, Loaded

REFERENCE = "PyTorch fp32"
HALF = "PyTorch half, channels last"

OURS = "fcn-deploy"
ALONE = "engine alone"
"""In the name of what leaves out the copies, and so cannot be compared with the others."""


def _network(job: Job, *, half: bool, tf32: bool = False, compiled: bool = False) -> Loaded:
    from gpu_torch import open_network

    return open_network(job, half=half, tf32=tf32, compiled=compiled)


def _monai(job: Job, *, half: bool) -> Loaded:
    from gpu_torch import open_monai

    return open_monai(job, half=half)


def _eager_tiles(job: Job) -> Loaded:
    from gpu_torch import open_eager_tiles

    return open_eager_tiles(job)


def _session(job: Job, *, provider: str, half: bool) -> Loaded:
    from gpu_ort import open_session

    return open_session(job, provider=provider, half=half)


def _engine(job: Job, *, flavour: str, graphs: bool = True) -> Loaded:
    from gpu_engines import open_engine

    return open_engine(job, flavour=flavour, graphs=graphs)


def _alone(job: Job, *, flavour: str, graphs: bool = True) -> Loaded:
    from gpu_engines import open_alone

    return open_alone(job, flavour=flavour, graphs=graphs)


_TRT = f"{OURS}, TensorRT fp16"
_RTX = f"{OURS}, TensorRT-RTX fp16"
_ORT = f"{OURS}, ONNX Runtime"

ENGINES = (
    Contender(_TRT, partial(_engine, flavour="tensorrt")),
    Contender(f"{_TRT}, no CUDA graphs", partial(_engine, flavour="tensorrt", graphs=False)),
    Contender(f"{_TRT}, {ALONE}", partial(_alone, flavour="tensorrt")),
    Contender(
        f"{_TRT}, {ALONE}, no CUDA graphs", partial(_alone, flavour="tensorrt", graphs=False)
    ),
    Contender(_RTX, partial(_engine, flavour="rtx")),
    Contender(f"{_RTX}, {ALONE}", partial(_alone, flavour="rtx")),
)

CROPS = {
    "cuda": (
        *ENGINES,
        Contender(f"{_ORT} TensorRT fp16", partial(_session, provider="tensorrt", half=True)),
        Contender(f"{_ORT} TensorRT-RTX fp16", partial(_session, provider="rtx", half=True)),
        Contender(f"{_ORT} CUDA fp16", partial(_session, provider="cuda", half=True)),
        Contender(f"{_ORT} CUDA fp32", partial(_session, provider="cuda", half=False), "fp32"),
        Contender("torch.compile half, channels last", partial(_network, half=True, compiled=True)),
        Contender(HALF, partial(_network, half=True)),
        # TF32 rounds to as many digits as FP16 has.
        Contender("PyTorch TF32", partial(_network, half=False, tf32=True)),
        Contender(REFERENCE, partial(_network, half=False), "fp32"),
    ),
    "cpu": (
        Contender(_TRT, partial(_engine, flavour="tensorrt")),
        Contender(f"{_ORT} CPU fp16", partial(_session, provider="cpu", half=True)),
        Contender(f"{_ORT} CPU fp32", partial(_session, provider="cpu", half=False), "fp32"),
        Contender(REFERENCE, partial(_network, half=False), "fp32"),
    ),
}
"""Labels of a batch of crops, by the kind of device."""

MONAI = "MONAI, PyTorch half"
UNTILED = f"{HALF}, in one piece"

IMAGES = {
    "cuda": (
        Contender(_TRT, partial(_engine, flavour="tensorrt")),
        Contender(_RTX, partial(_engine, flavour="rtx")),
        Contender(f"{_ORT} CUDA fp16", partial(_session, provider="cuda", half=True)),
        Contender(f"{OURS}, PyTorch fp32", _eager_tiles, "fp32"),
        Contender(MONAI, partial(_monai, half=True)),
        Contender(UNTILED, partial(_network, half=True), in_one_piece=True),
    ),
    "cpu": (
        Contender(f"{_ORT} CPU fp32", partial(_session, provider="cpu", half=False), "fp32"),
        Contender(f"{OURS}, PyTorch fp32", _eager_tiles, "fp32"),
        Contender("MONAI, PyTorch fp32", partial(_monai, half=False), "fp32"),
        Contender(
            f"{REFERENCE}, in one piece", partial(_network, half=False), "fp32", in_one_piece=True
        ),
    ),
}
"""Labels of a large image, by the kind of device; cut into overlapping crops unless said."""

BASELINES = {
    "cuda": {"crops": HALF, "images": MONAI},
    "cpu": {"crops": REFERENCE, "images": "MONAI, PyTorch fp32"},
}
"""What speeds are given as multiples of, by the kind of device."""
