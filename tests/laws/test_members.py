"""Networks side by side: the loss mapped over stacked weights is the loss of each, and so are its gradients."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from forecaster.data.windows import Example, Window
from forecaster.model.regressor import Regressor, build
from forecaster.spec import Spec
from forecaster.training.loss import teacher_forced_loss
from tests.laws.test_every_combination import scaled

HEADS = ["point", "quantile", "gaussian", "student_t", "neg_binomial", "categorical"]
SCALINGS = ["none", "mean_abs", "standard", "last", "level_season", "last of log"]
BASES = ["zero", "last", "seasonal_naive", "linear"]
CELLS = ["gru", "lstm", "elman"]
MEMBERS, ROWS, CONTEXT = 3, 4, 12


class Batch(NamedTuple):
    """The fields of an example, with an axis of members that an example itself has no place for."""

    values: Tensor
    covariates: Tensor
    static: Tensor
    future: Tensor
    ahead: Tensor

    def of(self, member: int) -> Batch:
        return Batch(*(field[member] for field in self))


class Loss(nn.Module):
    """The loss as a module, for its weights to be replaced."""

    def __init__(self, network: Regressor) -> None:
        super().__init__()
        self.network = network

    def forward(self, *batch: Tensor) -> Tensor:
        values, covariates, static, future, ahead = batch
        return teacher_forced_loss(self.network, Example(Window(values, covariates, static), future, ahead))


def specs() -> list[Spec]:
    """Every head with both decoders; the other choices in turn."""
    made = []
    for number, (head, decoder) in enumerate(product(HEADS, ["rollout", "direct"])):
        tied = head in ("neg_binomial", "categorical")
        fields = {
            "name": "law",
            "context": CONTEXT,
            "horizon": 6,
            "season": 4,
            "segment": (1, 3)[number % 2],
            "decoder": decoder,
            "base": "zero" if tied else BASES[number % 4],
            **scaled("none" if head == "neg_binomial" else SCALINGS[number % 6]),
            "lags": (6,) if number % 3 == 0 else (),
            "head": {"kind": head},
            "network": {"cell": CELLS[number % 3], "hidden": 5, "layers": 2, "residual": True, "dilations": (1, 2)},
        }
        made.append(Spec.parse(fields, where="law"))
    return made


def members_of(spec: Spec) -> list[Loss]:
    return [Loss(build(spec, seed=seed, covariates=2, groups=(3,))) for seed in range(MEMBERS)]


def batches(network: Regressor) -> Batch:
    """One for each member: counts, some of them late, some with a gap; covariates and categories, one of them unknown."""
    rng, steps = np.random.default_rng(1), network.lead + CONTEXT
    values = rng.integers(5, 40, (MEMBERS, ROWS, steps)).astype(np.float64)
    values[:, 1, : network.lead + 5] = np.nan
    values[:, 2, network.lead + 6] = np.nan
    future = rng.integers(5, 40, (MEMBERS, ROWS, network.block)).astype(np.float64)
    columns = torch.from_numpy(rng.normal(size=(MEMBERS, ROWS, steps + network.block, 2)).astype(np.float32))
    static = torch.arange(ROWS).remainder(4)[:, None].expand(MEMBERS, ROWS, 1)
    return Batch(
        torch.from_numpy(values), columns[:, :, :steps], static, torch.from_numpy(future), columns[:, :, steps:]
    )


def stacked(losses: list[Loss]) -> dict[str, Tensor]:
    return {name: weight.detach().requires_grad_() for name, weight in stack_module_state(losses)[0].items()}


def mapped(loss: Loss, weights: dict[str, Tensor], batch: Batch) -> Tensor:
    return vmap(lambda own, *fields: functional_call(loss, own, fields), randomness="different")(weights, *batch)


@pytest.mark.parametrize("spec", specs(), ids=[f"{spec.head.kind}-{spec.decoder}" for spec in specs()])
def test_the_loss_of_members_side_by_side_is_that_of_each(spec: Spec) -> None:
    losses = members_of(spec)
    weights, batch = stacked(losses), batches(losses[0].network)
    found = mapped(losses[0], weights, batch)
    found.sum().backward()
    for number, one in enumerate(losses):
        expected = one(*batch.of(number))
        expected.backward()
        torch.testing.assert_close(found[number], expected, rtol=1e-5, atol=1e-5)
        for name, weight in one.named_parameters():
            together, alone = weights[name].grad, weight.grad
            assert (together is None) == (alone is None)
            if together is not None and alone is not None:
                torch.testing.assert_close(together[number], alone, rtol=1e-3, atol=1e-5)


def test_members_drop_out_differently() -> None:
    fields = {"name": "law", "context": CONTEXT, "horizon": 6, "network": {"layers": 2, "hidden": 8, "dropout": 0.5}}
    loss = members_of(Spec.parse(fields, where="law"))[0]
    same = Batch(*(field[:1].expand_as(field) for field in batches(loss.network)))
    assert len(set(mapped(loss, stacked([loss] * MEMBERS), same).tolist())) == MEMBERS
    assert len(set(mapped(loss.eval(), stacked([loss] * MEMBERS), same).tolist())) == 1
