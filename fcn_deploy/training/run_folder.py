"""What a training leaves in its run folder, and how it goes on from there."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fcn_deploy.artifacts import BEST, LAST, TRAIN_RECORD, write_atomically
from fcn_deploy.errors import ModelError, UsageError
from fcn_deploy.evaluate import require_same_classes
from fcn_deploy.report import training_curves
from fcn_deploy.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from fcn_deploy.training.config import TrainConfig
from fcn_deploy.training.progress import EpochReport
from fcn_deploy.training.session import Session
from fcn_deploy.training.update import Updates, match_layouts

CURVES_EVERY_S = 30
_OF_THE_MACHINE = ("device", "devices", "workers", "cache_mib", "compile")
_FIXED = ("head", "backbone", "optimizer", "freeze_backbone", "freeze_upsampling", "decay_all")
"""Settings under which the optimizer's state belongs to certain weights."""


class RunFolder:
    """Writes checkpoints, history and curves, each whole or not at all."""

    def __init__(self, run: Path, data: Path) -> None:
        self._run = run
        self._data = data
        self._drawn_at = -math.inf

    def save(self, session: Session, updates: Updates, *, best: bool) -> None:
        """Write what the training has come to; ``best`` also as the best."""
        config = session.config
        history = [asdict(report) for report in session.history]
        resume = {
            "epoch": session.epoch,
            "history": history,
            "best": session.best and session.best.epoch,
            "config": asdict(config),
            "scaler": updates.scaler.state_dict(),
            "averaged": updates.average and int(updates.average.n_averaged),
        }
        spec = replace(session.spec, training=_facts(session))
        weights = updates.deployed.state_dict()
        if best:
            save_checkpoint(self._run / BEST, Checkpoint(spec, weights, {}, {}))
        save_checkpoint(self._run / LAST, Checkpoint(spec, weights, _tensors(updates), resume))
        record = {
            "data": str(self._data.resolve()),
            "config": asdict(config),
            "precision": session.precision,
            "history": history,
            "best_epoch": resume["best"],
        }
        write_atomically(self._run / TRAIN_RECORD, json.dumps(record, indent=2).encode())
        # Drawing takes half a second: more than a short epoch can spare.
        due = time.monotonic() - self._drawn_at > CURVES_EVERY_S or session.epoch == config.epochs
        if session.history and due:
            training_curves(self._run / "curves.png", history)
            self._drawn_at = time.monotonic()

    def restore(self, session: Session) -> Updates:
        """Go on where the folder was left.

        Raises:
            ModelError: Its last checkpoint is not usable, or was not written to be resumed.
            UsageError: Settings that do not fit it.
            DataError: The data set has other classes.
        """
        path = self._run / LAST
        checkpoint = load_checkpoint(path)
        require_same_classes(checkpoint.spec, session.dataset)
        _require_same_parts(session.config, checkpoint.resume.get("config", {}))
        raw, moments = _parted(checkpoint.resume_tensors)
        load_weights(session.network, raw or checkpoint.weights, path)
        updates = session.start()
        try:
            session.epoch = int(checkpoint.resume["epoch"])
            session.history = [EpochReport(**report) for report in checkpoint.resume["history"]]
            best = checkpoint.resume["best"]
            groups = updates.optimizer.state_dict()["param_groups"]
            updates.optimizer.load_state_dict({"state": moments, "param_groups": groups})
            match_layouts(updates.optimizer)
            updates.scaler.load_state_dict(checkpoint.resume["scaler"])
            if updates.average is not None:
                load_weights(updates.average.module, checkpoint.weights, path)
                updates.average.n_averaged.fill_(int(checkpoint.resume["averaged"] or 0))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"{path} was not written to be resumed.") from error
        session.best = next((report for report in session.history if report.epoch == best), None)
        return updates


def _facts(session: Session) -> dict[str, Any]:
    """Settings and result, for the people who get the model."""
    config = session.config
    facts = {**asdict(config), "lr": config.first_lr, "epoch": session.epoch}
    facts |= {"precision": session.precision}
    for name in _OF_THE_MACHINE:
        del facts[name]
    if Path(facts["weights"]).suffix:
        facts["weights"] = Path(facts["weights"]).name
    if session.history:
        reached = session.history[-1]
        facts |= {"val_mean_iou": reached.val_mean_iou, "val_accuracy": reached.val_accuracy}
    return facts


def _tensors(updates: Updates) -> dict[str, Tensor]:
    """State of the optimizer by index and name, and of the network unless that is the result."""
    tensors = {
        f"{index}.{name}": value
        for index, state in updates.optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
    if updates.average is not None:
        tensors |= {f"network.{k}": v for k, v in updates.network.state_dict().items()}
    return tensors


def _parted(
    tensors: dict[str, Tensor],
) -> tuple[dict[str, Tensor], dict[int, dict[str, Tensor]]]:
    weights: dict[str, Tensor] = {}
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        if index == "network":
            weights[name] = tensor
        else:
            moments.setdefault(int(index), {})[name] = tensor
    return weights, moments


def _require_same_parts(config: TrainConfig, stored: dict[str, Any]) -> None:
    for name in _FIXED:
        wanted = getattr(config, name)
        if stored.get(name, wanted) != wanted:
            raise UsageError(
                f"The run was trained with {name} {stored[name]}, not {wanted}.",
                "Start another run for that, with -o; --weights takes this one's checkpoint.",
            )
    if bool(stored.get("ema", config.ema)) != bool(config.ema):
        raise UsageError(
            "A moving average of the weights cannot begin or end in the middle of a run.",
            "Leave --ema out, or start another run with -o.",
        )
