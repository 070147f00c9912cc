"""The reference of metrics: accuracy measures, scores of a backtest, and the metrics of the service for Prometheus."""

from __future__ import annotations

import ast
import inspect

from prometheus_client.parser import text_string_to_metric_families

from docs.generator.markdown import join_lines, render_page, render_table, take_first_paragraph, take_table
from forecaster import metrics
from forecaster.evaluation import scores
from serving.asgi.metrics import Metrics


def list_functions() -> dict[str, str]:
    """Returns the public functions of `forecaster.metrics` in the order of the file, with their docstrings."""
    tree = ast.parse(inspect.getsource(metrics))
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    return {name: inspect.cleandoc(getattr(metrics, name).__doc__ or "") for name in names}


def list_service_metrics() -> dict[str, tuple[str, str]]:
    """Returns type and description of the metrics of the service, by name."""
    families = text_string_to_metric_families(Metrics(()).render().decode())
    return {
        family.name + ("_total" if family.type == "counter" else ""): (family.type, family.documentation)
        for family in families
        if not family.name.endswith("_created")
    }


def build_page() -> str:
    """Returns the page."""
    functions = ((f"`{name}`", join_lines(text)) for name, text in list_functions().items())
    service = ((f"`{name}`", kind, f"{text}.") for name, (kind, text) in list_service_metrics().items())
    notes = inspect.cleandoc(scores.__doc__ or "").rpartition("|\n")[2]
    return render_page(
        "Metrics",
        "## Scores of a backtest",
        take_first_paragraph(scores.__doc__)
        + " They have the same names in the tables of the command line, in `--scores`, in "
        "MLflow runs (`bt/mase`) and in Python.",
        take_table(scores.__doc__),
        join_lines(notes),
        "## Functions",
        "`forecaster.metrics` has the measures as functions of arrays. NaN marks a missing value and is in no mean.",
        render_table(("function", "definition"), functions),
        "## Metrics of the service",
        "`GET /metrics` has these in the text format of Prometheus. Histograms have the suffixes `_bucket`, `_sum` and `_count`.",
        render_table(("metric", "type", "meaning"), service),
    )
