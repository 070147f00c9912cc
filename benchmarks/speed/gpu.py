"""What a GPU makes of it: windows a second, where the time of a step goes, what TF32 and bfloat16 do to accuracy, rollouts.

    PYTHONPATH=. python benchmarks/speed/gpu.py            about five minutes; writes benchmarks/results/gpu.md
    PYTHONPATH=. python benchmarks/speed/gpu.py --smoke    tiny sizes, written nowhere: shows that it runs, on a CPU too

Needs what forecaster needs and no more: torch, pytorch-lightning, numpy, pandas, pydantic, safetensors. Without a GPU it says so,
takes tiny sizes, and writes nothing down.
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
from pathlib import Path
from typing import Any, NamedTuple

import torch
from cases import SpeedCase, make_histories, make_values, shrink_case
from forecaster_cases import fit_one_step, make_panel, make_spec
from timing import time_once, time_per_call, time_per_step
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from forecaster.prediction.predictor import Predictor
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
MIN_SECONDS = 1.0  # seconds of steps beyond the short training, so that its beginning and end do not blur them
RECURRENCE_KERNELS = re.compile(
    r"_cudnn_rnn|miopen_rnn|mkldnn_rnn|aten::(lstm|gru|rnn_)|(lstm|gru|rnn)\w*backward", re.IGNORECASE
)


class TimeShare(NamedTuple):
    """Where the time of training steps goes, in ms a step."""

    step_ms: float
    device_ms: float  # of the device
    recurrence_ms: float  # of that, in kernels of the recurrence, forward and backward


def main() -> None:
    """Measures, prints, and writes it down where there is a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, written nowhere")
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
    """The lines of the report, as they are found."""
    yield "# On a GPU"
    if not ON_GPU:
        yield "\n**No GPU here: a smoke run on the CPU. Its figures mean nothing but that the script runs.**"
    middle = shrink_case(DEFAULT_CASE) if smoke else DEFAULT_CASE
    yield f"\n`python benchmarks/speed/gpu.py`; {describe_device()}; torch {torch.__version__}."
    yield f"Unless said: {middle.network_name}, context {middle.context}, batch {middle.batch}, {middle.series} series."
    yield "\n## Training\n"
    yield "| varied | size | ms a step | windows a second |"
    yield "|---|---|---|---|"
    for varied, sizes in SIZES.items():
        for size in (2, 4) if smoke else sizes:
            changed: dict[str, Any] = {varied: size}
            case = replace(middle, **changed, length=200) if varied == "series" else replace(middle, **changed)
            seconds = measure_step(case, smoke=smoke)
            yield f"| {varied} | {size} | {1000 * seconds:.3g} | {case.batch / seconds:,.0f} |"
    yield "\n## Where the time of a step goes\n"
    yield "| network, batch | ms a step | device busy | in the recurrence | of the device's time | of the step |"
    yield "|---|---|---|---|---|---|"
    for case in (
        middle,
        replace(middle, cell="gru"),
        replace(middle, hidden=2 * middle.hidden, batch=2 * middle.batch),
    ):
        share = measure_step_share(case, steps=3 if smoke else 30)
        yield (
            f"| {case.network_name}, {case.batch} | {share.step_ms:.3g} | {share.device_ms:.3g} | {share.recurrence_ms:.3g} | "
            f"{share.recurrence_ms / max(share.device_ms, 1e-9):.0%} | {share.recurrence_ms / share.step_ms:.0%} |"
        )
    yield from compare_precisions(smoke=smoke)
    yield "\n## Rollout, LSTM 64x1 and 128x2, context as above: `Predictor.forecast_batch`\n"
    yield "| network | series | steps ahead | ms a call | forecasts a second |"
    yield "|---|---|---|---|---|"
    for hidden, layers in ((64, 1), (128, 2)):
        for series, horizon in ((1, 4), (3, 2)) if smoke else ROLLOUTS:
            case = replace(
                middle, hidden=4 if smoke else hidden, layers=layers, series=series, horizon=horizon, length=400
            )
            seconds = measure_rollout(case)
            yield f"| {case.network_name} | {series} | {horizon} | {1000 * seconds:.3g} | {series / seconds:,.0f} |"


def describe_device() -> str:
    """What it runs on."""
    if not ON_GPU:
        return "CPU"
    found = torch.cuda.get_device_properties(0)
    return f"{found.name}, {found.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"


def measure_step(case: SpeedCase, *, smoke: bool) -> float:
    """What a further step takes; so many steps are made that they outweigh how a training begins and ends."""
    known = make_panel(make_values(case))

    def act(steps: int) -> object:
        return fit(known, make_spec(case, steps=steps), accelerator="auto")

    act(3)
    few, many = (1, 3) if smoke else (10, 40)
    found = time_per_step(act, few=few, many=many).seconds
    if smoke:
        return max(found, 1e-9)
    steps = min(2000, int(MIN_SECONDS / max(found, 1e-4)))
    return statistics.median(time_per_step(act, few=few, many=few + max(steps, 10)).seconds for _ in range(3))


def measure_step_share(case: SpeedCase, *, steps: int) -> TimeShare:
    """Device time of training steps by what spent it; on a CPU, the CPU's own."""
    known = make_panel(make_values(case))

    def act(count: int) -> object:
        return fit(known, make_spec(case, steps=count), accelerator="auto")

    act(3)
    wall = time_per_step(act, few=3, many=3 + steps).seconds
    busy, recurrence = _device_ms(lambda: act(steps))
    return TimeShare(max(1000 * wall, 1e-9), busy / steps, recurrence / steps)


def compare_precisions(*, smoke: bool) -> Iterator[str]:
    """The same small training at three precisions."""
    case = (
        shrink_case(replace(DEFAULT_CASE, batch=128))
        if smoke
        else replace(DEFAULT_CASE, hidden=64, layers=1, batch=128, series=64)
    )
    known, steps = make_panel(make_values(case)), 5 if smoke else 600
    yield "\n## Precision\n"
    yield (
        f"{case.network_name}, {steps} steps, batch {case.batch}: validation error of the free-running forecast, scaled by that of "
        "seasonal naive, seeds 0 to 2. PyTorch lets cuDNN take TF32 unless told otherwise.\n"
    )
    yield "| precision | error | seconds a training |"
    yield "|---|---|---|"
    for name, precision in PRECISIONS.items():
        scores, seconds = [], []
        try:
            for seed in range(1 if smoke else 3):
                spec = make_spec(case, steps=steps, valid_windows=2)
                spec = spec.model_copy(update={"training": spec.training.model_copy(update={"seed": seed})})
                with precision():
                    seconds.append(
                        time_once(lambda: scores.append(fit(known, spec, accelerator="auto").scores)).seconds
                    )  # noqa: B023
        except (RuntimeError, ValueError, AssertionError) as error:
            yield f"| {name} | not possible: {' '.join(str(error).split())[:120]} | |"
            continue
        errors = ", ".join(f"{score['valid/rollout']:.4f}" for score in scores)
        yield f"| {name} | {errors} | {statistics.median(seconds):.3g} |"


def measure_rollout(case: SpeedCase) -> float:
    """A call of `Predictor.forecast_batch`; its answers are on the host, so the device has finished."""
    predictor, series = Predictor(fit_one_step(case), device=DEVICE), list(make_panel(make_histories(case)).series)
    predictor.forecast_batch(series, case.horizon)
    return time_per_call(lambda: predictor.forecast_batch(series, case.horizon)).seconds


def _device_ms(action: Callable[[], object]) -> tuple[float, float]:
    """The device's time under `action`, and how much of it was the recurrence's, in ms.

    An operation counts with all that it started; one inside another that counts already is left out.
    """
    with profile(
        activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU] if ON_GPU else [ProfilerActivity.CPU]
    ) as seen:
        action()
        if ON_GPU:
            torch.cuda.synchronize()
    events = seen.events() or []
    own = "self_device_time_total" if ON_GPU else "self_cpu_time_total"
    whole = "device_time_total" if ON_GPU else "cpu_time_total"
    operations: Sequence[Any] = [event for event in events if event.device_type == DeviceType.CPU]
    recurrent = [
        event for event in operations if RECURRENCE_KERNELS.search(event.name) and not _is_within_recurrence(event)
    ]
    return (
        sum(getattr(event, own) for event in operations) / 1000,
        sum(getattr(event, whole) for event in recurrent) / 1000,
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
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


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
