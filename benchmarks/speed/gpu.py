"""Training and rollouts on a GPU: windows per second, time shares of a training step, accuracy with TF32 and bfloat16.

    PYTHONPATH=. python benchmarks/speed/gpu.py            about five minutes; writes benchmarks/results/gpu.md
    PYTHONPATH=. python benchmarks/speed/gpu.py --smoke    tiny sizes, no file: checks that it runs, also on a CPU

Needs only the dependencies of forecaster: torch, pytorch-lightning, numpy, pandas, pydantic, safetensors. Without a GPU it says
so, uses tiny sizes, and writes no file.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import re
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from cases import SpeedCase, make_histories, make_values, shrink_case
from forecaster_cases import fit_one_step, make_panel, make_spec
from timing import time_once, time_per_call, time_per_step
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from forecaster.prediction.predictor import Predictor
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.fit import fit

RESULTS = Path(__file__).parent.parent / "results"
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
DEFAULT_CASE = SpeedCase("gpu", "gpu", hidden=128, layers=2, batch=1024, series=1024, length=600)
SIZES = {
    "batch": (128, 512, 1024, 4096, 16384),
    "hidden": (32, 64, 128, 256, 512, 1024),
    "series": (16, 256, 4096, 65536),
}
ROLLOUTS = ((1, 24), (1, 720), (1024, 24), (16384, 24))
MIN_SECONDS = 1.0  # seconds of the measured steps, enough to make the fixed costs negligible
RECURRENCE_KERNELS = re.compile(
    r"_cudnn_rnn|miopen_rnn|mkldnn_rnn|aten::(lstm|gru|rnn_)|(lstm|gru|rnn)\w*backward", re.IGNORECASE
)


class TimeShare(NamedTuple):
    """Where the time of a training step goes, in ms per step."""

    step_ms: float
    device_ms: float  # device time
    recurrence_ms: float  # device time in kernels of the recurrence, forward and backward


def main() -> None:
    """Measures, prints, and writes the report if there is a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes; no file is written")
    tiny = parser.parse_args().smoke or not ON_GPU
    if tiny:
        torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    lines = []
    for line in report_lines(smoke=tiny):
        print(line, flush=True)
        lines.append(line)
    if ON_GPU and not tiny:
        (RESULTS / "gpu.md").write_text("\n".join([*lines, ""]))


def report_lines(*, smoke: bool) -> Iterator[str]:
    """Yields the lines of the report as soon as they are computed."""
    yield "# On a GPU"
    if not ON_GPU:
        yield "\n**No GPU: a smoke run on the CPU. Its figures only show that the script runs.**"
    default_case = shrink_case(DEFAULT_CASE) if smoke else DEFAULT_CASE
    yield f"\n`python benchmarks/speed/gpu.py`; {describe_device()}; torch {torch.__version__}."
    sizes_text = f"context {default_case.context}, batch {default_case.batch}, {default_case.series} series"
    yield f"Defaults: {default_case.network_name}, {sizes_text}."
    yield "\n## Training\n"
    yield "| varied | size | ms per step | windows per second |"
    yield "|---|---|---|---|"
    for varied, sizes in SIZES.items():
        for size in (2, 4) if smoke else sizes:
            changed: dict[str, Any] = {varied: size}
            case = (
                replace(default_case, **changed, length=200) if varied == "series" else replace(default_case, **changed)
            )
            seconds = measure_step(case, smoke=smoke)
            yield f"| {varied} | {size} | {1000 * seconds:.3g} | {case.batch / seconds:,.0f} |"
    yield "\n## Where the time of a step goes\n"
    yield "| network, batch | ms per step | device busy, ms | recurrence, ms | share of device time | share of step |"
    yield "|---|---|---|---|---|---|"
    for case in (
        default_case,
        replace(default_case, cell="gru"),
        replace(default_case, hidden=2 * default_case.hidden, batch=2 * default_case.batch),
    ):
        share = measure_step_share(case, steps=3 if smoke else 30)
        yield (
            f"| {case.network_name}, {case.batch} | {share.step_ms:.3g} | {share.device_ms:.3g} | {share.recurrence_ms:.3g} | "
            f"{share.recurrence_ms / max(share.device_ms, 1e-9):.0%} | {share.recurrence_ms / share.step_ms:.0%} |"
        )
    yield from compare_precisions(smoke=smoke)
    yield "\n## Rollout, LSTM 64x1 and 128x2, context as above: `Predictor.forecast_batch`\n"
    yield "| network | series | steps ahead | ms per call | forecasts per second |"
    yield "|---|---|---|---|---|"
    for hidden, layers in ((64, 1), (128, 2)):
        for series, horizon in ((1, 4), (3, 2)) if smoke else ROLLOUTS:
            case = replace(
                default_case, hidden=4 if smoke else hidden, layers=layers, series=series, horizon=horizon, length=400
            )
            seconds = measure_rollout(case)
            yield f"| {case.network_name} | {series} | {horizon} | {1000 * seconds:.3g} | {series / seconds:,.0f} |"


def describe_device() -> str:
    """Describes the device."""
    if not ON_GPU:
        return "CPU"
    properties = torch.cuda.get_device_properties(0)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"


def measure_step(case: SpeedCase, *, smoke: bool) -> float:
    """Returns the seconds of one training step; measures enough steps to outweigh the fixed costs of a training."""
    panel = make_panel(make_values(case))

    def run_training(steps: int) -> object:
        return fit(panel, make_spec(case, steps=steps), accelerator="auto")

    run_training(3)
    few, many = (1, 3) if smoke else (10, 40)
    step_seconds = time_per_step(run_training, few=few, many=many).seconds
    if smoke:
        return max(step_seconds, 1e-9)
    steps = min(2000, int(MIN_SECONDS / max(step_seconds, 1e-4)))
    return statistics.median(time_per_step(run_training, few=few, many=few + max(steps, 10)).seconds for _ in range(3))


def measure_step_share(case: SpeedCase, *, steps: int) -> TimeShare:
    """Measures the device time of training steps by kind of operation; on a CPU, its own time."""
    panel = make_panel(make_values(case))

    def run_training(count: int) -> object:
        return fit(panel, make_spec(case, steps=count), accelerator="auto")

    run_training(3)
    step_seconds = time_per_step(run_training, few=3, many=3 + steps).seconds
    device_ms, recurrence_ms = _device_ms(lambda: run_training(steps))
    return TimeShare(max(1000 * step_seconds, 1e-9), device_ms / steps, recurrence_ms / steps)


def compare_precisions(*, smoke: bool) -> Iterator[str]:
    """Yields the results of the same small training at three precisions."""
    case = (
        shrink_case(replace(DEFAULT_CASE, batch=128))
        if smoke
        else replace(DEFAULT_CASE, hidden=64, layers=1, batch=128, series=64)
    )
    panel, steps = make_panel(make_values(case)), 5 if smoke else 600
    yield "\n## Precision\n"
    yield (
        f"{case.network_name}, {steps} steps, batch {case.batch}: validation error of the free-running forecast, scaled by "
        "that of seasonal naive, seeds 0 to 2. By default, PyTorch allows TF32 in cuDNN.\n"
    )
    yield "| precision | error | seconds per training |"
    yield "|---|---|---|"
    for name, precision in PRECISIONS.items():
        scores: list[dict[str, float]] = []
        seconds: list[float] = []
        try:
            for seed in range(1 if smoke else 3):
                spec = make_spec(case, steps=steps, valid_windows=2)
                spec = spec.model_copy(update={"training": spec.training.model_copy(update={"seed": seed})})
                with precision():
                    action = partial(_fit_and_append, panel, spec, scores)
                    seconds.append(time_once(action).seconds)
        except (RuntimeError, ValueError, AssertionError) as error:
            yield f"| {name} | not possible: {' '.join(str(error).split())[:120]} | |"
            continue
        errors = ", ".join(f"{score['valid/rollout']:.4f}" for score in scores)
        yield f"| {name} | {errors} | {statistics.median(seconds):.3g} |"


def _fit_and_append(panel: Panel, spec: Spec, scores: list[dict[str, float]]) -> None:
    scores.append(fit(panel, spec, accelerator="auto").scores)


def measure_rollout(case: SpeedCase) -> float:
    """Returns the seconds of a call of `Predictor.forecast_batch`; its results are on the host, so the device is synchronised."""
    predictor, series = Predictor(fit_one_step(case), device=DEVICE), list(make_panel(make_histories(case)).series)
    predictor.forecast_batch(series, case.horizon)
    return time_per_call(lambda: predictor.forecast_batch(series, case.horizon)).seconds


def _device_ms(action: Callable[[], object]) -> tuple[float, float]:
    """Returns the device time of `action`, and the part of the recurrence, in ms.

    An operation counts with all operations it starts; an operation within a counted one is not counted again.
    """
    with profile(
        activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU] if ON_GPU else [ProfilerActivity.CPU]
    ) as profiler:
        action()
        if ON_GPU:
            torch.cuda.synchronize()
    events = profiler.events() or []
    self_time_field = "self_device_time_total" if ON_GPU else "self_cpu_time_total"
    total_time_field = "device_time_total" if ON_GPU else "cpu_time_total"
    operations: Sequence[Any] = [event for event in events if event.device_type == DeviceType.CPU]
    recurrent = [
        event for event in operations if RECURRENCE_KERNELS.search(event.name) and not _is_within_recurrence(event)
    ]
    return (
        sum(getattr(event, self_time_field) for event in operations) / 1000,
        sum(getattr(event, total_time_field) for event in recurrent) / 1000,
    )


def _is_within_recurrence(event: Any) -> bool:
    parent = event.cpu_parent
    while parent is not None:
        if RECURRENCE_KERNELS.search(parent.name):
            return True
        parent = parent.cpu_parent
    return False


@contextlib.contextmanager
def _with_tf32(allowed: bool) -> Iterator[None]:
    previous = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = previous


@contextlib.contextmanager
def _with_bfloat16() -> Iterator[None]:
    with _with_tf32(False), torch.autocast(DEVICE, dtype=torch.bfloat16):
        yield


PRECISIONS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "float32": lambda: _with_tf32(False),
    "TF32": lambda: _with_tf32(True),
    "bfloat16 (autocast)": _with_bfloat16,
}


if __name__ == "__main__":
    main()
