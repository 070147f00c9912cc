"""The command `forecaster monitor`: checks a model in use."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

from pipelines.commands.console import warn
from pipelines.commands.options import RootOptions, resolve_ledger_url, validate_output_paths

_ROOT_OPTIONS = RootOptions()
_FILE_MODE = 0o644  # a node exporter runs as another user


def monitor(
    name: str,
    *,
    url: str | None = None,
    since: datetime | None = None,
    html: Path | None = None,
    json: Path | None = None,
    prometheus: Path | None = None,
    root_options: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Compares the served forecasts of the champion with actuals; exits with 3 and prints the reasons if action is needed.

    Parameters
    ----------
    name
        The registered model.
    url
        URL of the ledger's database without a password; by default that of FORECASTER_SERVING_LEDGER, or the ledger of a
        service under the root.
    since
        Ignore forecasts made before this time, in UTC.
    html
        File for an HTML page with figures and plots.
    json
        File for the same report as JSON.
    prometheus
        File for the metrics in the text format, for the textfile collector of a node exporter.
    """
    from forecaster.storage import atomic
    from pipelines.monitoring.monitor import build_monitoring_report
    from pipelines.monitoring.report import (
        build_run_metrics,
        render_report_html,
        render_report_json,
        render_report_prometheus,
    )
    from pipelines.tracking.logger import log_tracking_errors
    from pipelines.tracking.run import record_finished_run

    root = root_options.open_existing_root()
    validate_output_paths(html=html, json=json, prometheus=prometheus)
    report = build_monitoring_report(root, name, url=resolve_ledger_url(url), since=since)
    json_text, page = render_report_json(report), render_report_html(report)
    for path, text in ((html, page), (json, json_text), (prometheus, render_report_prometheus(report))):
        if path is not None:
            atomic.write_text(path, text)
            path.chmod(_FILE_MODE)
    with log_tracking_errors("the check"):
        record_finished_run(
            report.spec,
            action="check",
            root=root.path,
            tracking_uri=root.tracking_uri,
            tags={
                "trigger": "monitor",
                "version": report.model.version,
                "bundle_digest": report.model.digest,
                "action": "needed" if report.reasons else "none",
                "reasons": "; ".join(report.reasons)[:5000],
            },
            metric_values=build_run_metrics(report),
            texts={"monitor.json": json_text, "monitor.html": page},
        )
    model, overall = report.model, report.accuracy.overall
    print(f"{model.name} version {model.version}: {report.span.forecasts} forecasts, {report.accuracy.scored} scored")
    if overall.mae is not None:
        mase = "" if overall.mase is None else f", MASE {overall.mase:.4f}"
        shares = "".join(f", {100 * value:.1f} % within {100 * share:g} %" for share, value in overall.coverage.items())
        msis = "" if overall.msis_95 is None else f", MSIS {overall.msis_95:.4g}"
        print(f"MAE {overall.mae:.4g}, bias {overall.bias:.4g}{mase}{shares}{msis}")
    for finding in report.findings:
        status = "action" if finding.calls else "not measured" if finding.calls is None else "ok"
        print(f"{status:13}{finding.name}: {finding.reason}")
    if report.reasons:
        warn(f"action is needed; {'; '.join(report.reasons)}")
        sys.exit(3)
