"""The reference of the files that configure a model: the specification, and the policy of the promotion gate."""

from __future__ import annotations

import inspect
import re

from docs.generator.fields import list_fields
from docs.generator.markdown import finish_sentence, join_lines, render_page, render_table
from forecaster.spec import Spec
from pipelines.promotion.policy import Policy


def build_page() -> str:
    """Returns the page."""
    spec = (
        (f"`{field.name}`", field.kind, field.default, finish_sentence(field.description.replace("None:", "null:")))
        for field in list_fields(Spec)
    )
    policy_descriptions = read_attribute_descriptions(Policy.__doc__)
    policy = (
        (f"`{field.name}`", field.kind, field.default, policy_descriptions.get(field.name, ""))
        for field in list_fields(Policy)
    )
    columns = ("field", "takes", "default", "meaning")
    return render_page(
        "Specification fields",
        "Every field of the YAML file that `--config` names, and of `forecaster.Spec`. Unknown fields are rejected. "
        "[Specification](../specification.md) is the guide.",
        render_table(columns, spec),
        "## Promotion policy",
        "Every field of the YAML file that `retrain --policy` names. [Retraining](../retraining.md#the-promotion-gate) describes "
        "the checks.",
        render_table(columns, policy),
    )


def read_attribute_descriptions(docstring: str | None) -> dict[str, str]:
    """Returns the descriptions of the attributes in a docstring, by name."""
    section = inspect.cleandoc(docstring or "").partition("Attributes:\n")[2]
    entries = re.findall(r"(?ms)^    (\w+): (.*?)(?=^    \w+: |\Z)", section)
    return {name: join_lines(text) for name, text in entries}
