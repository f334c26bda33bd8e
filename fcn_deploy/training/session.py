"""The moving parts of a training: network, optimizer, epoch, history."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from fcn_deploy.artifacts import BEST, LAST, TRAIN_RECORD, write_atomically
from fcn_deploy.backends.eager import EagerBackend
from fcn_deploy.dataset import Dataset, Pair
from fcn_deploy.errors import CheckFailedError, ModelError, UsageError
from fcn_deploy.evaluate import evaluate, require_same_classes
from fcn_deploy.metrics import Scores
from fcn_deploy.report import training_curves
from fcn_deploy.segment import Segmenter
from fcn_deploy.spec import IGNORE, ModelSpec
from fcn_deploy.training.augment import Examples, Shuffle
from fcn_deploy.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from fcn_deploy.training.config import TrainConfig
from fcn_deploy.training.network import SCORE_STRIDE, Deployed, build_network
from fcn_deploy.training.progress import EpochReport, Listener

CURVES_EVERY_S = 30


class Session:
    """The moving parts of a training: network, optimizer, epoch, history."""

    def __init__(
        self,
        dataset: Dataset,
        train_pairs: list[Pair],
        val_pairs: list[Pair],
        config: TrainConfig,
        device: torch.device,
    ) -> None:
        self.dataset, self.val_pairs, self.config, self.device = dataset, val_pairs, config, device
        self.epoch = 0
        self.drawn_at = -math.inf
        self.history: list[EpochReport] = []
        self.best: EpochReport | None = None
        self.spec = ModelSpec(
            classes=dataset.classes,
            palette=dataset.palette,
            head=config.head,
            backbone=config.backbone,
            score_stride=SCORE_STRIDE[config.head],
        )
        torch.manual_seed(config.seed)
        self.network = build_network(self.spec, upsampling_init=config.upsampling_init)
        self._freeze()
        # Images come as NHWC; convolutions in that order save a third of the step on CPUs.
        self.network.to(device).to(memory_format=torch.channels_last)
        self.model = Deployed(self.network, self.spec).to(device)
        self.lr = config.first_lr
        self.optimizer = self._optimizer()
        self.shuffle = Shuffle(len(train_pairs), config.seed)
        self.loader = DataLoader(
            Examples(dataset, train_pairs, config.crop_hw, config.seed),
            batch_size=config.batch_size,
            sampler=self.shuffle,
            num_workers=config.workers,
            # A last small batch would weigh as much as a full one, and upset batch norm.
            drop_last=len(train_pairs) >= config.batch_size,
            pin_memory=device.type == "cuda",
            persistent_workers=config.workers > 0,
        )

    def _freeze(self) -> None:
        if self.config.freeze_backbone:
            self.network.body.requires_grad_(False)
        if self.config.freeze_upsampling:
            for layer in self.network.upsampling_layers():
                layer.requires_grad_(False)

    def _optimizer(self) -> torch.optim.Optimizer:
        learned = [p for p in self.network.parameters() if p.requires_grad]
        if self.config.optimizer == "adam":
            return torch.optim.Adam(
                learned, self.lr, weight_decay=self.config.weight_decay, fused=True
            )
        return torch.optim.SGD(
            learned, self.lr, momentum=0.9, weight_decay=self.config.weight_decay, fused=True
        )

    def run_epoch(self, listener: Listener) -> EpochReport:
        """Train one epoch, validate, and keep the result in the history."""
        self.shuffle.epoch = self.epoch
        self.model.train()
        if self.config.freeze_backbone:
            self.network.body.eval()
        loss_sum = right = counted = 0.0
        examples, started, steps = 0, time.perf_counter(), len(self.loader)
        for step, (image, labels) in enumerate(self.loader):
            self._set_lr(self.epoch * steps + step, self.config.epochs * steps)
            image = image.to(self.device, non_blocking=True)
            labels = labels.to(self.device, non_blocking=True)
            loss, logits = self._step(image, labels)
            valid = labels != IGNORE
            pixels = int(valid.sum())
            loss_sum += loss * pixels
            right += int(((logits.argmax(1) == labels) & valid).sum())
            counted += pixels
            examples += len(image)
            speed = examples / (time.perf_counter() - started)
            listener.on_step(
                step + 1,
                steps,
                loss=loss_sum / max(counted, 1),
                accuracy=right / max(counted, 1),
                examples_per_s=speed,
            )
        speed = examples / (time.perf_counter() - started)
        self.epoch += 1
        evaluation = self._validate(listener) if self.is_due() else None
        report = EpochReport(
            epoch=self.epoch,
            loss=loss_sum / max(counted, 1),
            train_accuracy=right / max(counted, 1),
            val_accuracy=None if evaluation is None else evaluation.pixel_accuracy,
            val_mean_iou=None if evaluation is None else evaluation.mean_iou,
            examples_per_s=speed,
        )
        self.history.append(report)
        best = -1.0 if self.best is None else self.best.val_mean_iou or 0.0
        if evaluation is not None and (evaluation.mean_iou or 0.0) > best:
            self.best = report
        return report

    def is_due(self) -> bool:
        """Whether the epoch that was just trained is one to validate and to save."""
        return self.epoch % self.config.val_every == 0 or self.epoch == self.config.epochs

    def _step(self, image: Tensor, labels: Tensor) -> tuple[float, Tensor]:
        logits = self.network(self.model.normalise(image))
        # The mean over no pixels is NaN: a crop of nothing but ignored pixels teaches nothing.
        total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
        loss = total / (labels != IGNORE).sum().clamp(min=1)
        if not torch.isfinite(loss):
            raise CheckFailedError(
                f"The loss is no longer finite, in epoch {self.epoch + 1}.",
                "Train with a smaller --lr; the checkpoints so far are kept.",
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return float(loss.detach()), logits.detach()

    def _set_lr(self, step: int, steps: int) -> None:
        if self.config.schedule == "poly":
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * (1 - step / steps) ** 0.9

    def _validate(self, listener: Listener) -> Scores:
        model = Segmenter(EagerBackend(self.network, self.spec, self.device))
        done = count(1)

        def tell(*_: object) -> None:
            listener.on_validation(next(done), len(self.val_pairs))

        return evaluate(model, self.dataset, self.val_pairs, on_image=tell).scores

    def save(self, run: Path, data: Path, *, best: bool) -> None:
        """Write checkpoints, history and curves."""
        reached = self.history[-1] if self.history else None
        facts = {**asdict(self.config), "lr": self.lr, "epoch": self.epoch}
        del facts["device"], facts["workers"]  # of the machine, not of the model
        if Path(facts["weights"]).suffix:
            facts["weights"] = Path(facts["weights"]).name
        if reached is not None:
            facts |= {"val_mean_iou": reached.val_mean_iou, "val_accuracy": reached.val_accuracy}
        spec = replace(self.spec, training=facts)
        weights = self.network.state_dict()
        history = [asdict(report) for report in self.history]
        resume = {
            "epoch": self.epoch,
            "history": history,
            "best": self.best and self.best.epoch,
            "config": asdict(self.config),
        }
        if best:
            save_checkpoint(run / BEST, Checkpoint(spec, weights, {}, {}))
        save_checkpoint(run / LAST, Checkpoint(spec, weights, self._optimizer_tensors(), resume))
        record = {
            "data": str(data.resolve()),
            "config": asdict(self.config),
            "history": history,
            "best_epoch": resume["best"],
        }
        write_atomically(run / TRAIN_RECORD, json.dumps(record, indent=2).encode())
        # Drawing takes half a second: more than a short epoch can spare.
        due = time.monotonic() - self.drawn_at > CURVES_EVERY_S or self.epoch == self.config.epochs
        if self.history and due:
            training_curves(run / "curves.png", history)
            self.drawn_at = time.monotonic()

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        return {
            f"{index}.{name}": value
            for index, state in self.optimizer.state_dict()["state"].items()
            for name, value in state.items()
            if isinstance(value, Tensor)
        }

    def _match_layouts(self) -> None:
        """Lay the optimizer's tensors out as their weights are: fused kernels walk raw memory."""
        for weight, state in self.optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    state[name] = torch.empty_like(weight).copy_(value)

    def restore(self, path: Path) -> None:
        """Go on where ``path`` was written."""
        checkpoint = load_checkpoint(path)
        require_same_classes(checkpoint.spec, self.dataset)
        self._require_same_parts(checkpoint.resume.get("config", {}))
        load_weights(self.network, checkpoint.weights, path)
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in checkpoint.resume_tensors.items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = tensor
        try:
            self.epoch = int(checkpoint.resume["epoch"])
            self.history = [EpochReport(**report) for report in checkpoint.resume["history"]]
            best = checkpoint.resume["best"]
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})
            self._match_layouts()
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{path} was not written to be resumed.") from error
        self.best = next((report for report in self.history if report.epoch == best), None)

    def _require_same_parts(self, stored: dict[str, Any]) -> None:
        """Refuse settings under which the optimizer's state would go to other weights."""
        for name in ("head", "backbone", "optimizer", "freeze_backbone", "freeze_upsampling"):
            wanted = getattr(self.config, name)
            if stored.get(name, wanted) != wanted:
                raise UsageError(
                    f"The run was trained with {name} {stored[name]}, not {wanted}.",
                    "Start another run for that, with -o; --weights takes this one's checkpoint.",
                )
