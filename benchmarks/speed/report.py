"""What was measured, as Markdown: a table a case, with ratios to ours, what was aimed at, and what each entrant computes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from cases import ENTRANTS, FASTEST_PEER, PEERS, SPEED_TARGETS, UNITS, SpeedCase, SpeedTarget

TITLES = {
    "classical": "Training, the classical case",
    "process": "The same, as whole processes",
    "large": "Training, a large network",
    "members": "Members at once",
    "rollout": "Rollout",
    "backtest": "Backtest at every origin",
}
NOTES = {
    "classical": "Seconds for 1000 optimiser steps in a process that has imported everything.",
    "process": "Seconds from the start of the process to its end, imports and all, with 1000 optimiser steps.",
    "large": "What a further step takes: a short training is subtracted from a longer one.",
    "members": "What a further step takes: a short training is subtracted from a longer one.",
    "rollout": "One call, warm, with histories that are ready in memory in the form that each takes them in.",
    "backtest": "All origins of one series, a step apart, with a trained network that does not change.",
}


def format_report(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The whole file."""
    lines = ["# Speed, beside others", *_report_header(results)]
    for group, title in TITLES.items():
        of_group = {name: one for name, one in results.items() if one["case"]["group"] == group}
        if not of_group:
            continue
        lines += [f"\n## {title}\n", NOTES[group]]
        for name, record in of_group.items():
            lines += ["", *_format_table(record), *_format_verdicts(name, record)]
        lines += ["", *_describe_entrants(of_group)]
    return "\n".join([*lines, ""])


def compute_ratios(
    record: Mapping[str, Any], entrant: str, *, ours: str | None = None, quantity: str = "seconds"
) -> list[float]:
    """How many times longer an entrant took than ours did (the first of ours, if none is named), turn by turn."""
    whose = f"ours/{ours}" if ours else ENTRANTS[record["case"]["group"]][0]
    took = record["entrants"].get(whose, {}).get(quantity, [])
    return [theirs / own for theirs, own in zip(record["entrants"][entrant].get(quantity, []), took, strict=False)]


def _median_ratio(record: Mapping[str, Any], entrant: str, quantity: str) -> str:
    found = compute_ratios(record, entrant, quantity=quantity)
    return format_digits(statistics.median(found)) if found else ""


def _report_header(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield (
        "\n`python benchmarks/speed/run.py`; how to repeat it stands in benchmarks/README.md. Every entrant is a process of its "
        "own; repetitions take turns. Medians; ratios are medians of the ratios within a turn, above 1 where ours is faster; CPU "
        "is the time of all cores together, which tells more than the clock where the machine is shared and threads are one. "
        "All have the same data, network size, batch, optimiser (Adam) and number of threads; none has a logger, checkpoint, "
        "validation or progress bar, unless said."
    )
    machines = {_format_machine(one["machine"]): None for one in results.values()}
    yield "\n" + " ".join(machines)
    versions: dict[str, str] = {}
    for one in results.values():
        for of_runner in one["versions"].values():
            versions |= {name: found for name, found in of_runner.items() if found != "not installed"}
    yield "\n" + ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) + "."
    odd = sorted(
        {found["pandas"] for one in results.values() for found in one["versions"].values() if "pandas" in found}
    )
    if len(odd) > 1:
        yield f"(pandas {' and '.join(odd)}: ours and the others' environment.)"


def _format_machine(machine: Mapping[str, Any]) -> str:
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, {machine['system']}, Python {machine['python']}."


def _format_table(record: Mapping[str, Any]) -> Iterator[str]:
    case = SpeedCase(**record["case"])
    unit, times = UNITS[case.group]
    yield f"**{_describe_case(case)}**\n"
    yield f"| entrant | {unit}, median | min to max | times ours | CPU | times ours | parameters |"
    yield "|---|---|---|---|---|---|---|"
    for entrant, one in record["entrants"].items():
        name = entrant.split("/")[1]
        if not one.get("seconds"):
            yield f"| {name} | {one.get('not_available') or 'failed: ' + one.get('failed', '')} | | | | | |"
            continue
        seconds = [times * each for each in one["seconds"]]
        cells = (
            name,
            format_digits(statistics.median(seconds)),
            f"{format_digits(min(seconds))} to {format_digits(max(seconds))}",
            _median_ratio(record, entrant, "seconds"),
            format_digits(times * statistics.median(one["cpu"])),
            _median_ratio(record, entrant, "cpu"),
            str(one.get("facts", {}).get("parameters", "")),
        )
        yield f"| {' | '.join(cells)} |"


def _describe_case(case: SpeedCase) -> str:
    sized = f"{case.network_name}, context {case.context}"
    match case.group:
        case "rollout":
            return f"{sized}: {case.series} series, {case.horizon} steps ahead"
        case "backtest":
            return f"{sized}: {case.origins} origins, {case.horizon} steps ahead, one series of {case.length}"
        case _:
            return f"{sized}, batch {case.batch}: {case.series} series of {case.length}"


def _format_verdicts(name: str, record: Mapping[str, Any]) -> Iterator[str]:
    found = [line for aim in SPEED_TARGETS.get(name, ()) for line in _format_verdict(aim, record)]
    if found:
        yield "\n" + "\n".join(f"- {line}" for line in found)


def _format_verdict(target: SpeedTarget, record: Mapping[str, Any]) -> Iterator[str]:
    taken = {entrant: compute_ratios(record, entrant, ours=target.ours) for entrant in record["entrants"]}
    measured = {entrant: statistics.median(each) for entrant, each in taken.items() if each}
    peers = {entrant: ratio for entrant, ratio in measured.items() if entrant.split("/")[0] in PEERS}
    if target.entrant != FASTEST_PEER:
        yield from (
            _format_target(target, target.entrant, ratio)
            for entrant, ratio in measured.items()
            if entrant.split("/")[1] == target.entrant
        )
        return
    whole = {
        entrant: ratio for entrant, ratio in peers.items() if not record["entrants"][entrant]["facts"].get("smaller")
    }
    for those, which in ((peers, FASTEST_PEER), (whole, f"{FASTEST_PEER} with a network of this size")):
        if those and not (which != FASTEST_PEER and min(whole.values()) == min(peers.values())):
            first = min(those, key=lambda entrant: those[entrant])
            yield _format_target(target, f"{which} ({first.split('/')[1]})", those[first])


def _format_target(target: SpeedTarget, entrant: str, ratio: float) -> str:
    met = "met" if ratio >= target.factor else "not met"
    entrant = f"{entrant} ({target.ours})" if target.ours else entrant
    if target.factor < 1:
        return f"At most {1 / target.factor:.1f} times the time of {entrant}: {1 / ratio:.2f} times, {met}."
    return f"{target.factor:g} times faster than {entrant}: {format_digits(ratio)} times, {met}."


def _describe_entrants(records: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What each entrant computes, said once for each case in which it says something else."""
    told: dict[str, None] = {}
    for record in records.values():
        for entrant, one in record["entrants"].items():
            if "facts" in one:
                told[f"- {entrant.split('/')[1]}: {one['facts']['computes']}."] = None
    yield from told


def format_digits(number: float) -> str:
    """Three digits that count."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"
