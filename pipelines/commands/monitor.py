"""The command that looks after a model in use: monitor."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pipelines.commands.console import warn
from pipelines.commands.options import Where, can_be_written

_WHERE = Where()
_READABLE = 0o644  # a node exporter is another user


def monitor(
    name: str,
    *,
    url: Annotated[str | None, Parameter(env_var="FORECASTER_SERVING_LEDGER")] = None,
    since: datetime | None = None,
    html: Path | None = None,
    json: Path | None = None,
    prometheus: Path | None = None,
    where: Where = _WHERE,
) -> None:
    """Compares what the champion foretold users with what came; ends with 3 if action is needed, and says why.

    Parameters
    ----------
    name
        The registered model.
    url
        The ledger's database, as the service is told it; that of a service under the root, if not given.
    since
        Leave out forecasts made before this moment, in UTC.
    html
        Where to write a page with figures and pictures.
    json
        Where to write the same for machines.
    prometheus
        Where to write the figures for a node exporter's folder of text files.
    """
    from forecaster.storage import atomic
    from pipelines.monitoring.monitor import look
    from pipelines.monitoring.report import as_html, as_json, as_prometheus, metrics
    from pipelines.tracking.logger import recording
    from pipelines.tracking.run import keep_check

    root = where.existing()
    can_be_written(html=html, json=json, prometheus=prometheus)
    report = look(root, name, url=url, since=since)
    told, page = as_json(report), as_html(report)
    for path, text in ((html, page), (json, told), (prometheus, as_prometheus(report))):
        if path is not None:
            atomic.write_text(path, text)
            path.chmod(_READABLE)
    with recording("the check"):
        keep_check(
            report.spec,
            root=root.path,
            uri=root.uri,
            tags={
                "trigger": "monitor",
                "version": report.model.version,
                "bundle_digest": report.model.digest,
                "action": "needed" if report.reasons else "none",
                "reasons": "; ".join(report.reasons)[:5000],
            },
            scores=metrics(report),
            texts={"monitor.json": told, "monitor.html": page},
        )
    model, overall = report.model, report.accuracy.overall
    print(f"{model.name} version {model.version}: {report.span.forecasts} forecasts, {report.accuracy.scored} scored")
    if overall.mae is not None:
        mase = "" if overall.mase is None else f", MASE {overall.mase:.4f}"
        shares = "".join(f", {100 * value:.1f} % within {100 * share:g} %" for share, value in overall.coverage.items())
        print(f"MAE {overall.mae:.4g}, bias {overall.bias:.4g}{mase}{shares}")
    for one in report.findings:
        print(
            f"{'action' if one.calls else 'not measured' if one.calls is None else 'fine':13}{one.name}: {one.reason}"
        )
    if report.reasons:
        warn(f"action is needed; {'; '.join(report.reasons)}")
        sys.exit(3)
