"""The vocabulary of a training on symbols: that of its specification, or the symbols of the data before the held-out steps."""

from __future__ import annotations

from forecaster.data.split import hold_out
from forecaster.data.symbols import learn_vocabulary, recode_panel
from forecaster.errors import BadSpec
from forecaster.series import Panel
from forecaster.spec import Spec


def settle_vocabulary(panel: Panel, spec: Spec, *, held_out_steps: int = 0) -> tuple[Panel, Spec]:
    """Returns a panel and a specification with one vocabulary: that of the specification or, without one, that of the data.

    Symbols that occur only in the steps held out for validation and test are unknown. Panels of numbers are returned as they are.

    Args:
        panel: All data.
        spec: The specification of the model.
        held_out_steps: Steps at the end of every series that are held out for the test, besides those for validation.
    Raises:
        BadSpec: Symbols for a head of numbers, or numbers for a symbols head.
    """
    if spec.head.is_symbolic != bool(panel.vocabulary):
        kinds = ("numbers", "symbols") if spec.head.is_symbolic else ("symbols", "numbers")
        advice = (
            "Read the column as symbols, or choose another head."
            if spec.head.is_symbolic
            else "Choose `head: {kind: symbols}` with `scaling: none`, or a column of numbers."
        )
        raise BadSpec(
            f"Expected {kinds[1]} for a {spec.head.kind} head; series {panel.series[0].id!r} has {kinds[0]}. {advice}",
            where="head.kind",
        )
    if not spec.head.is_symbolic:
        return panel, spec
    vocabulary = spec.head.vocabulary
    if not vocabulary:
        steps = held_out_steps + spec.validation_steps
        vocabulary = learn_vocabulary(hold_out(panel, steps, min_history=spec.min_steps + 1).history)
    return recode_panel(panel, vocabulary), spec.with_vocabulary(vocabulary)
