"""Parallel members: the loss mapped over stacked weights equals the loss of each member, and so do its gradients."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from forecaster.data.windows import Example, Window
from forecaster.model.regressor import Regressor, build_network
from forecaster.spec import Spec
from forecaster.training.loss import teacher_forced_loss
from tests.laws.test_every_combination import scaling_fields

HEADS = ["point", "quantile", "gaussian", "student_t", "neg_binomial", "categorical"]
SCALINGS = ["none", "mean_abs", "standard", "last", "level_season", "last of log"]
BASES = ["zero", "last", "seasonal_naive", "linear"]
CELLS = ["gru", "lstm", "elman"]
MEMBER_COUNT, ROW_COUNT, CONTEXT = 3, 4, 12


class MemberBatch(NamedTuple):
    """The fields of an example with an additional member axis."""

    values: Tensor
    covariates: Tensor
    static: Tensor
    future: Tensor
    future_covariates: Tensor

    def select_member(self, member: int) -> MemberBatch:
        return MemberBatch(*(field[member] for field in self))


class LossModule(nn.Module):
    """The loss as a module, so that its weights can be replaced."""

    def __init__(self, network: Regressor) -> None:
        super().__init__()
        self.network = network

    def forward(self, *batch: Tensor) -> Tensor:
        values, covariates, static, future, future_covariates = batch
        return teacher_forced_loss(self.network, Example(Window(values, covariates, static), future, future_covariates))


def make_specs() -> list[Spec]:
    """Builds specs for every head with both decoders; the other choices alternate."""
    specs = []
    for index, (head, decoder) in enumerate(product(HEADS, ["rollout", "direct"])):
        is_restricted = head in ("neg_binomial", "categorical")
        fields = {
            "name": "law",
            "context": CONTEXT,
            "horizon": 6,
            "season": 4,
            "segment": (1, 3)[index % 2],
            "decoder": decoder,
            "base": "zero" if is_restricted else BASES[index % 4],
            **scaling_fields("none" if head == "neg_binomial" else SCALINGS[index % 6]),
            "lags": (6,) if index % 3 == 0 else (),
            "head": {"kind": head},
            "network": {"cell": CELLS[index % 3], "hidden": 5, "layers": 2, "residual": True, "dilations": (1, 2)},
        }
        specs.append(Spec.parse(fields, where="law"))
    return specs


def make_members(spec: Spec) -> list[LossModule]:
    return [
        LossModule(build_network(spec, seed=seed, num_covariates=2, static_cardinalities=(3,)))
        for seed in range(MEMBER_COUNT)
    ]


def make_batches(network: Regressor) -> MemberBatch:
    """One batch per member: counts, late starts and gaps; covariates and categories, including an unknown one."""
    rng, steps = np.random.default_rng(1), network.pre_context + CONTEXT
    values = rng.integers(5, 40, (MEMBER_COUNT, ROW_COUNT, steps)).astype(np.float64)
    values[:, 1, : network.pre_context + 5] = np.nan
    values[:, 2, network.pre_context + 6] = np.nan
    future = rng.integers(5, 40, (MEMBER_COUNT, ROW_COUNT, network.block)).astype(np.float64)
    covariates = torch.from_numpy(
        rng.normal(size=(MEMBER_COUNT, ROW_COUNT, steps + network.block, 2)).astype(np.float32)
    )
    static = torch.arange(ROW_COUNT).remainder(4)[:, None].expand(MEMBER_COUNT, ROW_COUNT, 1)
    return MemberBatch(
        torch.from_numpy(values), covariates[:, :, :steps], static, torch.from_numpy(future), covariates[:, :, steps:]
    )


def stack_losses(losses: list[LossModule]) -> dict[str, Tensor]:
    return {name: weight.detach().requires_grad_() for name, weight in stack_module_state(losses)[0].items()}


def map_loss(loss: LossModule, weights: dict[str, Tensor], batch: MemberBatch) -> Tensor:
    return vmap(lambda member_weights, *fields: functional_call(loss, member_weights, fields), randomness="different")(
        weights, *batch
    )


@pytest.mark.parametrize("spec", make_specs(), ids=[f"{spec.head.kind}-{spec.decoder}" for spec in make_specs()])
def test_the_loss_mapped_over_members_equals_the_loss_of_each(spec: Spec) -> None:
    losses = make_members(spec)
    weights, batch = stack_losses(losses), make_batches(losses[0].network)
    losses_by_member = map_loss(losses[0], weights, batch)
    losses_by_member.sum().backward()
    for index, loss in enumerate(losses):
        expected = loss(*batch.select_member(index))
        expected.backward()
        torch.testing.assert_close(losses_by_member[index], expected, rtol=1e-5, atol=1e-5)
        for name, weight in loss.named_parameters():
            batched_gradient, gradient = weights[name].grad, weight.grad
            assert (batched_gradient is None) == (gradient is None)
            if batched_gradient is not None and gradient is not None:
                torch.testing.assert_close(batched_gradient[index], gradient, rtol=1e-3, atol=1e-5)


def test_members_have_independent_dropout() -> None:
    fields = {"name": "law", "context": CONTEXT, "horizon": 6, "network": {"layers": 2, "hidden": 8, "dropout": 0.5}}
    loss = make_members(Spec.parse(fields, where="law"))[0]
    batch = MemberBatch(*(field[:1].expand_as(field) for field in make_batches(loss.network)))
    assert len(set(map_loss(loss, stack_losses([loss] * MEMBER_COUNT), batch).tolist())) == MEMBER_COUNT
    assert len(set(map_loss(loss.eval(), stack_losses([loss] * MEMBER_COUNT), batch).tolist())) == 1
