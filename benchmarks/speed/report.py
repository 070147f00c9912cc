"""Formats the measurements as Markdown: a table per case, ratios to ours, targets, and what each entrant computes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from cases import ENTRANTS, FASTEST_PEER, PEERS, SPEED_TARGETS, UNITS, SpeedCase, SpeedTarget

TITLES = {
    "classical": "Training, the classical case",
    "process": "The classical case as a whole process",
    "large": "Training, a large network",
    "members": "Several members",
    "rollout": "Rollout",
    "backtest": "Backtest at every cutoff",
}
NOTES = {
    "classical": "Seconds for 1000 optimiser steps in a process that has imported everything.",
    "process": "Seconds from the start of the process to its end, including imports, with 1000 optimiser steps.",
    "large": "Time of one further step: a short training is subtracted from a longer one.",
    "members": "Time of one further step: a short training is subtracted from a longer one.",
    "rollout": "One call, after a warm-up, with histories in memory in the format of each entrant.",
    "backtest": "All cutoffs of one series, one step apart, with a fixed trained network.",
}


def format_report(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Formats the whole file."""
    lines = ["# Speed compared with other libraries", *_report_header(results)]
    for group, title in TITLES.items():
        group_records = {name: record for name, record in results.items() if record["case"]["group"] == group}
        if not group_records:
            continue
        lines += [f"\n## {title}\n", NOTES[group]]
        for name, record in group_records.items():
            lines += ["", *_format_table(record), *_format_verdicts(name, record)]
        lines += ["", *_describe_entrants(group_records)]
    return "\n".join([*lines, ""])


def compute_ratios(
    record: Mapping[str, Any], entrant: str, *, ours: str | None = None, quantity: str = "seconds"
) -> list[float]:
    """Returns the ratios of an entrant's time to ours, round by round; ours is the first of our entrants if not given."""
    our_entrant = f"ours/{ours}" if ours else ENTRANTS[record["case"]["group"]][0]
    our_values = record["entrants"].get(our_entrant, {}).get(quantity, [])
    return [
        value / our_value
        for value, our_value in zip(record["entrants"][entrant].get(quantity, []), our_values, strict=False)
    ]


def _median_ratio(record: Mapping[str, Any], entrant: str, quantity: str) -> str:
    ratios = compute_ratios(record, entrant, quantity=quantity)
    return format_digits(statistics.median(ratios)) if ratios else ""


def _report_header(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield (
        "\n`python benchmarks/speed/run.py`; benchmarks/README.md describes how to repeat it. Every entrant is a separate "
        "process; repetitions alternate. Medians; ratios are medians of the ratios within a round, above 1 where ours is faster; "
        "CPU is the time of all cores together, which is more reliable than wall time on a shared machine with one thread. All "
        "have the same data, network size, batch, optimiser (Adam) and number of threads; none has a logger, checkpoint, "
        "validation or progress bar, unless stated."
    )
    machines = {_format_machine(record["machine"]): None for record in results.values()}
    yield "\n" + " ".join(machines)
    versions: dict[str, str] = {}
    for record in results.values():
        for runner_versions in record["versions"].values():
            versions |= {name: version for name, version in runner_versions.items() if version != "not installed"}
    yield "\n" + ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) + "."
    pandas_versions = sorted(
        {
            runner_versions["pandas"]
            for record in results.values()
            for runner_versions in record["versions"].values()
            if "pandas" in runner_versions
        }
    )
    if len(pandas_versions) > 1:
        yield f"(pandas {' and '.join(pandas_versions)}: our environment and that of the peers.)"


def _format_machine(machine: Mapping[str, Any]) -> str:
    size = f"{machine['cores']} cores, {machine['threads']} threads"
    return f"{machine['cpu']}, {size}, {machine['system']}, Python {machine['python']}."


def _format_table(record: Mapping[str, Any]) -> Iterator[str]:
    case = SpeedCase(**record["case"])
    unit, factor = UNITS[case.group]
    yield f"**{_describe_case(case)}**\n"
    yield f"| entrant | {unit}, median | min to max | times ours | CPU | times ours | parameters |"
    yield "|---|---|---|---|---|---|---|"
    for entrant, measured in record["entrants"].items():
        name = entrant.split("/")[1]
        if not measured.get("seconds"):
            yield f"| {name} | {measured.get('not_available') or 'failed: ' + measured.get('failed', '')} | | | | | |"
            continue
        seconds = [factor * value for value in measured["seconds"]]
        cells = (
            name,
            format_digits(statistics.median(seconds)),
            f"{format_digits(min(seconds))} to {format_digits(max(seconds))}",
            _median_ratio(record, entrant, "seconds"),
            format_digits(factor * statistics.median(measured["cpu"])),
            _median_ratio(record, entrant, "cpu"),
            str(measured.get("facts", {}).get("parameters", "")),
        )
        yield f"| {' | '.join(cells)} |"


def _describe_case(case: SpeedCase) -> str:
    sized = f"{case.network_name}, context {case.context}"
    match case.group:
        case "rollout":
            return f"{sized}: {case.series} series, {case.horizon} steps ahead"
        case "backtest":
            return f"{sized}: {case.origins} cutoffs, {case.horizon} steps ahead, one series of {case.length}"
        case _:
            return f"{sized}, batch {case.batch}: {case.series} series of {case.length}"


def _format_verdicts(name: str, record: Mapping[str, Any]) -> Iterator[str]:
    verdicts = [line for target in SPEED_TARGETS.get(name, ()) for line in _format_verdict(target, record)]
    if verdicts:
        yield "\n" + "\n".join(f"- {line}" for line in verdicts)


def _format_verdict(target: SpeedTarget, record: Mapping[str, Any]) -> Iterator[str]:
    ratios = {entrant: compute_ratios(record, entrant, ours=target.ours) for entrant in record["entrants"]}
    median_ratios = {entrant: statistics.median(values) for entrant, values in ratios.items() if values}
    peers = {entrant: ratio for entrant, ratio in median_ratios.items() if entrant.split("/")[0] in PEERS}
    if target.entrant != FASTEST_PEER:
        yield from (
            _format_target(target, target.entrant, ratio)
            for entrant, ratio in median_ratios.items()
            if entrant.split("/")[1] == target.entrant
        )
        return
    full_size_peers = {
        entrant: ratio for entrant, ratio in peers.items() if not record["entrants"][entrant]["facts"].get("smaller")
    }
    for candidates, label in ((peers, FASTEST_PEER), (full_size_peers, f"{FASTEST_PEER} with a network of this size")):
        if candidates and not (label != FASTEST_PEER and min(full_size_peers.values()) == min(peers.values())):
            fastest = min(candidates, key=lambda entrant: candidates[entrant])
            yield _format_target(target, f"{label} ({fastest.split('/')[1]})", candidates[fastest])


def _format_target(target: SpeedTarget, entrant: str, ratio: float) -> str:
    met = "met" if ratio >= target.factor else "not met"
    entrant = f"{entrant} ({target.ours})" if target.ours else entrant
    if target.factor < 1:
        return f"At most {1 / target.factor:.1f} times the time of {entrant}: {1 / ratio:.2f} times, {met}."
    return f"{target.factor:g} times faster than {entrant}: {format_digits(ratio)} times, {met}."


def _describe_entrants(records: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yields what each entrant computes; once, unless it differs between cases."""
    descriptions: dict[str, None] = {}
    for record in records.values():
        for entrant, entrant_record in record["entrants"].items():
            if "facts" in entrant_record:
                descriptions[f"- {entrant.split('/')[1]}: {entrant_record['facts']['computes']}."] = None
    yield from descriptions


def format_digits(number: float) -> str:
    """Formats a number with three significant digits."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"
