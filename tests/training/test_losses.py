"""Losses and schedules against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fcn_deploy.training.losses import Loss, class_weights
from fcn_deploy.training.schedule import rate


def example(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 6, 5, generator=generator)
    labels = torch.randint(0, 4, (2, 6, 5), generator=generator).to(torch.uint8)
    labels[0, :2] = 255
    return logits, labels


@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_that_of_pytorch(weighted: bool) -> None:
    logits, labels = example()
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0]) if weighted else None
    loss = Loss("cross-entropy", weights)
    entropy, extra = loss(logits, labels, loss.weight_of(labels))
    expected = F.cross_entropy(logits, labels.long(), weight=weights, ignore_index=255)
    assert torch.allclose(entropy, expected)
    assert extra == 0


def test_the_parts_of_a_step_add_up_to_the_whole() -> None:
    logits, labels = example()
    loss = Loss("cross-entropy", torch.tensor([0.5, 1.0, 2.0, 3.0]))
    weight = loss.weight_of(labels)
    parts = [loss(logits[n : n + 1], labels[n : n + 1], weight)[0] for n in range(2)]
    assert torch.allclose(sum(parts, torch.tensor(0.0)), loss(logits, labels, weight)[0])


def test_the_chapters_loss_is_summed_over_images() -> None:
    logits, labels = example()
    labels[labels == 255] = 0
    loss = Loss("cross-entropy-sum")
    total, _ = loss(logits, labels, loss.weight_of(labels))
    each = F.cross_entropy(logits, labels.long(), reduction="none").mean((1, 2))
    assert torch.allclose(total, each.sum())


def test_a_batch_of_nothing_but_ignored_pixels_teaches_nothing() -> None:
    logits, labels = example()
    logits.requires_grad_()
    labels[:] = 255
    loss = Loss("cross-entropy+dice", torch.ones(4))
    entropy, dice = loss(logits, labels, loss.weight_of(labels))
    (entropy + dice).backward()  # type: ignore[no-untyped-call]
    assert entropy == dice == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def soft_dice(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    loss = Loss("cross-entropy+dice")
    return loss(logits, labels.to(torch.uint8), loss.weight_of(labels))[1]


def test_dice_is_zero_for_the_truth_and_one_for_its_opposite() -> None:
    _, labels = example()
    truth = F.one_hot(torch.where(labels == 255, 0, labels).long(), 4).permute(0, 3, 1, 2)
    assert soft_dice(100.0 * truth, labels.long()) < 1e-5
    assert soft_dice(100.0 * truth.roll(1, 1), labels.long()) > 0.999


def test_dice_counts_each_class_alike_and_ignores_what_does_not_count() -> None:
    # Two classes, of 9 pixels and of 1: all predicted as the first gives (18/19, 0).
    labels = torch.zeros(1, 2, 6, dtype=torch.int64)
    labels[0, 0, 0] = 1
    labels[0, :, 5] = 255
    logits = torch.zeros(1, 3, 2, 6)
    logits[:, 0] = 100
    logits[:, 2, :, 5] = 1000
    assert soft_dice(logits, labels).item() == pytest.approx(1 - (18 / 19) / 2)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradients_are_those_of_the_definition(weighted: bool) -> None:
    logits, labels = example()
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0]) if weighted else None
    loss = Loss("cross-entropy+dice", weights)
    ours, reference = (logits.clone().requires_grad_() for _ in range(2))
    entropy, dice = loss(ours, labels, loss.weight_of(labels))
    (2 * entropy + 3 * dice).backward()  # type: ignore[no-untyped-call]

    counted = (labels != 255)[:, None]
    chance = reference.softmax(1) * counted
    truth = F.one_hot(torch.where(labels == 255, 0, labels).long(), 4).permute(0, 3, 1, 2) * counted
    both, sizes = (chance * truth).sum((0, 2, 3)), (chance**2 + truth).sum((0, 2, 3))
    expected_dice = (1 - 2 * both / sizes).mean()
    expected = F.cross_entropy(reference, labels.long(), weight=weights, ignore_index=255)
    (2 * expected + 3 * expected_dice).backward()  # type: ignore[no-untyped-call]
    assert torch.allclose(entropy, expected)
    assert torch.allclose(dice, expected_dice)
    assert ours.grad is not None
    assert reference.grad is not None
    assert torch.allclose(ours.grad, reference.grad, atol=1e-7)


def test_certain_mistakes_cost_what_they_must() -> None:
    logits = torch.zeros(1, 2, 1, 1)
    logits[0, 1] = 500
    labels = torch.zeros(1, 1, 1, dtype=torch.uint8)
    loss = Loss("cross-entropy")
    assert loss(logits, labels, loss.weight_of(labels))[0] == 500


def test_class_weights_follow_their_definitions() -> None:
    masks = [
        np.repeat(np.array([0, 1, 255], np.uint8), (80, 20, 40)).reshape(14, 10),
        np.zeros((10, 10), np.uint8),
    ]
    share = np.array([180, 20, 0]) / 200
    log = class_weights("log", masks, 3)
    assert log is not None
    assert log[0] / log[1] == pytest.approx(math.log(1.02 + share[1]) / math.log(1.02 + share[0]))
    assert log[2] == log[1]
    median = class_weights("median", masks, 3)
    assert median is not None
    # Class 1 has a fifth of the one image that it occurs in.
    assert median[1] / median[0] == pytest.approx(0.9 / 0.2)
    for weights in (log, median):
        assert float(weights[0] * 180 + weights[1] * 20) / 200 == pytest.approx(1)
    assert class_weights("none", iter(()), 3) is None
    assert class_weights("log", [np.full((3, 3), 255, np.uint8)], 3) is None


@pytest.mark.parametrize("kind", ["constant", "poly", "cosine"])
def test_the_rate_rises_and_then_stays_or_falls(kind: str) -> None:
    rates = [rate(kind, step, 100, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert all(0 < value <= 1 for value in rates)
    assert rates[:9] == sorted(rates[:9])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert (rates[-1] < 0.02) == (kind != "constant")
    assert rate(kind, 0, 100, 0) == 1


def test_poly_has_the_power_of_deeplab() -> None:
    assert rate("poly", 75, 100, 0) == pytest.approx(0.25**0.9)
