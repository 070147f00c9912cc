"""The model card of a pretrained network, rendered from the facts in its manifest."""

from __future__ import annotations

import json
from importlib.metadata import version

from forecaster import __version__
from forecaster.bundle.pretrained.specification import BASE_BLOCK, LONG_SEASONS, segment_of
from forecaster.prediction.fitted_model import FittedModel
from forecaster.synthetic.mixtures import find_mixture
from forecaster.synthetic.training_batches import SEASON_WEIGHTS, find_length_range
from forecaster.training.pretraining.module import PretrainingOptions

SEPARATE_NETWORK_OPTIONS = ("cell", "layers", "hidden")  # fields of the network that are options of the command


def render_pretraining_card(model: FittedModel) -> str:
    """Renders the model card: the network, how it was trained, what it ignores, and where its accuracy is measured."""
    facts = model.facts
    options = PretrainingOptions.model_validate(facts["pretraining"])
    num_parameters = sum(parameter.numel() for parameter in model.network.parameters())
    lines = [
        f"# {model.spec.name}",
        "",
        f"A pretrained network for series of any frequency and season. {_describe_network(options)} It has {num_parameters:,} "
        "parameters; the weights are the same for every season.",
        "",
        "## Training data",
        "",
        "Generated series only. No observed series was used, so no data set on which the network is evaluated can have leaked "
        "into its weights, and no licence of data applies to them. The families are described in "
        f"[docs/synthetic.md](../../../../docs/synthetic.md): {_list_families()}.",
        "",
        "| season | batches | steps of a history | steps read at once | longer season |",
        "|---|---|---|---|---|",
        *_render_seasons(),
        "",
        f"After every history the network predicts {BASE_BLOCK} steps. Other seasons use the same weights; none was trained.",
        "",
        "## Training",
        "",
        "```",
        format_pretraining_command(options, out=model.spec.name),
        "```",
        "",
        f"Seed {options.seed}, {facts['steps']} steps, {facts['cpu_seconds'] / 60:.1f} minutes of processor time "
        f"({facts['seconds'] / 60:.1f} minutes in all, device {facts['device']}), last loss {facts['loss']:.4g}. "
        f"Versions: forecaster {__version__}, PyTorch {version('torch')}, NumPy {version('numpy')}, Lightning "
        f"{version('pytorch_lightning')}. On CPU the same command with the same versions gives the same weights.",
        "",
        "## Limits",
        "",
        "The network reads the history of one series and nothing else. It ignores covariates, static columns, channels, other "
        "series, and the dates of the steps. It knows neither the unit of a series nor its zero: if a constant is added to the "
        "history or it is multiplied by one, the forecast changes in the same way. Therefore forecasts of a history without "
        f"negative values are clipped at zero. A history needs at least {model.spec.min_steps} steps. The quantiles are those "
        "of the network; they are not calibrated on the data.",
        "",
        "`benchmarks/pretrained.py` measures the accuracy on observed series, none of which was used in training. "
        "`benchmarks/results/pretrained.md` has the results: for each data set, whether the network is better than simple "
        "methods or not.",
        "",
        "```json",
        json.dumps(options.model_dump(mode="json"), indent=1),
        "```",
    ]
    return "\n".join(lines) + "\n"


def format_pretraining_command(options: PretrainingOptions, *, out: str) -> str:
    """Returns the command that trains with these options; each is named, so that it stays valid when defaults change."""
    values = options.model_dump(mode="json", exclude={"network"})
    values |= {name: getattr(options.network, name) for name in SEPARATE_NETWORK_OPTIONS}
    arguments = [f"--{name.replace('_', '-')} {value}" for name, value in values.items()]
    return " ".join(["forecaster pretrain --out", out, *arguments])


def _describe_network(options: PretrainingOptions) -> str:
    network = options.network
    cell = {"gru": "GRU", "lstm": "LSTM", "elman": "Elman", "relu": "rectified Elman"}[network.cell]
    layers = "1 layer" if network.layers == 1 else f"{network.layers} layers"
    return (
        f"Its recurrence has {layers} of {network.hidden} units ({cell}), and it predicts {BASE_BLOCK} steps at once."
    )


def _list_families() -> str:
    names = {name: None for season in SEASON_WEIGHTS for name, weight in find_mixture(season).weights.items() if weight}
    return ", ".join(f"`{name}`" for name in names)


def _render_seasons() -> list[str]:
    """Returns the rows of the table of seasons, the most frequent first."""
    total = sum(SEASON_WEIGHTS.values())
    rows = []
    for season, weight in sorted(SEASON_WEIGHTS.items(), key=lambda item: -item[1]):
        lengths = find_length_range(season)
        name = "none" if season == 1 else str(season)
        rows.append(
            f"| {name} | {100 * weight / total:.1f} % | {lengths.shortest} to {lengths.longest} | {segment_of(season)} | "
            f"{LONG_SEASONS.get(season, '-')} |"
        )
    return rows
