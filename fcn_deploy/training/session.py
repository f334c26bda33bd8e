"""The moving parts of a training: network, optimizer, epoch, history."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from itertools import count, islice

import numpy as np
import torch
from torch.utils.data import DataLoader

from fcn_deploy.backends.eager import EagerBackend
from fcn_deploy.dataset import Dataset, Pair
from fcn_deploy.errors import CheckFailedError, FcnDeployError
from fcn_deploy.evaluate import evaluate
from fcn_deploy.metrics import Scores, scores
from fcn_deploy.segment import Segmenter
from fcn_deploy.spec import ModelSpec
from fcn_deploy.training.acceleration import pick_precision, worth_compiling
from fcn_deploy.training.augment import Augmentation
from fcn_deploy.training.batch_norm import share_batch_norm
from fcn_deploy.training.config import TrainConfig
from fcn_deploy.training.decoded import DecodedPairs
from fcn_deploy.training.distributed import Ranks, any_rank, from_first, together, total
from fcn_deploy.training.examples import Example, Examples, Shuffle, gathered
from fcn_deploy.training.losses import Loss, class_weights
from fcn_deploy.training.network import SCORE_STRIDE, Deployed, build_network
from fcn_deploy.training.progress import EpochReport, Listener
from fcn_deploy.training.schedule import rate
from fcn_deploy.training.shares import Shares
from fcn_deploy.training.update import Batch, Updates

_TELL_EVERY_S = 0.25

Sized = tuple[Pair, tuple[int, int]]
"""A labelled image with its height and width."""


class Session:
    """The moving parts of a training: network, optimizer, epoch, history."""

    def __init__(
        self,
        dataset: Dataset,
        train_pairs: list[Sized],
        val_pairs: list[Pair],
        config: TrainConfig,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        self.dataset, self.val_pairs, self.config, self.device = dataset, val_pairs, config, device
        self.ranks = ranks
        self.epoch = 0
        self.history: list[EpochReport] = []
        self.best: EpochReport | None = None
        self.spec = ModelSpec(
            classes=dataset.classes,
            palette=dataset.palette,
            head=config.head,
            backbone=config.backbone,
            score_stride=SCORE_STRIDE[config.head],
        )
        self.precision = from_first(lambda: pick_precision(config.precision, device), ranks)
        self.shuffle = Shuffle(len(train_pairs), config.seed)
        self.shares = Shares(self.shuffle, config.batch_size, ranks)
        self._loader = self._open(train_pairs)
        self.steps = math.ceil(len(self._loader) / config.accumulate)
        """Steps of the optimizer in an epoch."""
        pixels = config.crop_hw[0] * config.crop_hw[1]
        # What ranks say to each other in between, the compiler does not take.
        self.compiled = ranks.world == 1 and worth_compiling(
            config.compile, device, self.steps * config.epochs, pixels
        )
        self.loss = self._loss(train_pairs)
        torch.manual_seed(config.seed)
        network = build_network(self.spec, upsampling_init=config.upsampling_init)
        if config.freeze_backbone:
            network.body.requires_grad_(False)
        if config.freeze_upsampling:
            for layer in network.upsampling_layers():
                layer.requires_grad_(False)
        self.network = network

    def _open(self, pairs: list[Sized]) -> DataLoader[Example | FcnDeployError]:
        config = self.config
        names, sizes = [pair for pair, _ in pairs], [hw for _, hw in pairs]
        limit_mib = config.cache_mib // self.ranks.beside
        decoded = DecodedPairs(self.dataset, names, sizes, limit_mib)
        augmentation = Augmentation(
            config.crop_hw, config.scale, config.stretch, config.color, config.flip
        )
        return DataLoader(
            Examples(decoded, augmentation, config.seed),
            batch_sampler=self.shares,
            collate_fn=gathered,
            num_workers=config.workers,
            pin_memory=self.device.type == "cuda",
            persistent_workers=config.workers > 0,
            prefetch_factor=4 if config.workers else None,
        )

    def _loss(self, pairs: list[Sized]) -> Loss:
        kind, count = self.config.class_weights, len(self.dataset.classes)
        masks = (self.dataset.labels(pair.mask) for pair, _ in pairs)
        weights = from_first(lambda: class_weights(kind, masks, count), self.ranks)
        on_device = None if weights is None else weights.to(self.device)
        return Loss(self.config.loss, on_device, self.ranks)

    def start(self) -> Updates:
        """Move the network, whose weights are complete now, to the device."""
        # Images come as NHWC; convolutions in that order save a third of the step on CPUs.
        self.network.to(self.device).to(memory_format=torch.channels_last)
        if self.ranks.world > 1:
            share_batch_norm(self.network, self.device)
        model = Deployed(self.network, self.spec).to(self.device)
        return Updates(
            model, self.loss, self.config, precision=self.precision, compiled=self.compiled
        )

    def run_epoch(self, updates: Updates, listener: Listener) -> EpochReport:
        """Train one epoch, validate, and keep the result in the history."""
        self.shuffle.epoch = self.epoch
        updates.train_mode()
        totals = torch.zeros(3, dtype=torch.float64, device=self.device)
        started = told = time.perf_counter()
        examples = 0
        for step, batches in enumerate(self._groups()):
            totals += updates.step(batches, self._lr(self.epoch * self.steps + step))
            examples += len(batches) * self.shares.size
            now = time.perf_counter()
            # Asking for the figures makes a GPU wait. All ranks ask for them at the same time, so
            # that all of them see when they are not finite.
            due = now - told > _TELL_EVERY_S or step + 1 == self.steps
            if any_rank(due and self.ranks.first, self.ranks):
                loss, accuracy = self._means(totals)
                now = told = time.perf_counter()
                listener.on_step(
                    step + 1,
                    self.steps,
                    loss=loss,
                    accuracy=accuracy,
                    examples_per_s=examples / (now - started),
                )
        loss, accuracy = self._means(totals)
        speed = examples / (time.perf_counter() - started)
        self.epoch += 1
        evaluation = self._validate(updates, listener) if self.is_due() else None
        report = EpochReport(
            epoch=self.epoch,
            loss=loss,
            train_accuracy=accuracy,
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

    def _groups(self) -> Iterator[list[Batch]]:
        """This rank's part of the batches of each step."""
        batches = self.batches()
        for _ in range(self.steps):
            with together(self.ranks):
                group = list(islice(batches, self.config.accumulate))
            yield group

    def batches(self) -> Iterator[Batch]:
        """This rank's part of the batches of the epoch.

        Raises:
            InputError: An image can no longer be read.
            DataError: The same of a mask.
        """
        for batch in self._loader:
            if isinstance(batch, FcnDeployError):
                raise batch
            yield batch

    def _lr(self, step: int) -> float:
        config = self.config
        warmup = round(config.warmup_epochs * self.steps)
        return config.first_lr * rate(config.schedule, step, config.epochs * self.steps, warmup)

    def _means(self, totals: torch.Tensor) -> tuple[float, float]:
        """Loss and accuracy over the counted pixels so far."""
        loss, right, counted = totals.tolist()
        if not math.isfinite(loss):
            raise CheckFailedError(
                f"The loss is no longer finite, in epoch {self.epoch + 1}.",
                "Train with a smaller --lr; the checkpoints so far are kept.",
            )
        return loss / max(counted, 1), right / max(counted, 1)

    def _validate(self, updates: Updates, listener: Listener) -> Scores:
        """Each rank judges some of the images; it is the sum of what they count that matters."""
        model = Segmenter(EagerBackend(updates.deployed, self.spec, self.device))
        images, world = len(self.val_pairs), self.ranks.world
        done = count(world, world)

        def tell(*_: object) -> None:
            listener.on_validation(min(next(done), images), images)

        own = self.val_pairs[self.ranks.rank :: world]
        with together(self.ranks):
            confusion = evaluate(model, self.dataset, own, on_image=tell).confusion
        return scores(total(torch.from_numpy(confusion), self.ranks).numpy().astype(np.int64))
