"""The command line. A command reads its input, calls one function and prints one result; heavy imports wait until then.

Exit codes: 0 ok, 1 failed, 2 wrong usage or input, 3 refused by a gate.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from forecaster.errors import ForecasterError, InputError, NoSuchModel
from pipelines.arguments import Reading, Where, bundle_of
from pipelines.backtesting import backtest
from pipelines.comparing import compare
from pipelines.doctor import doctor
from pipelines.forecasting import forecast
from pipelines.inspecting import inspect
from pipelines.monitor import monitor
from pipelines.releasing import audit, promote, register, rollback
from pipelines.scheduling import schedule_app
from pipelines.shadowing import shadow
from pipelines.terminal import hush, print_summary
from pipelines.training import retrain, train
from pipelines.tuning import tune

app = App(name="forecaster", help="Forecasts time series with recurrent networks: train, compare, promote, serve.")
data_app = App(name="data", help="Looks at data before anything is trained on them.")
key_app = App(name="key", help="API keys of the service.")
app.command(data_app)
app.command(key_app)
app.command(schedule_app)
for command in (
    train,
    retrain,
    backtest,
    compare,
    forecast,
    inspect,
    tune,
    register,
    promote,
    rollback,
    audit,
    shadow,
    monitor,
    doctor,
):
    app.command(command)

_WHERE, _READING = Where(), Reading()


@data_app.command
def check(
    data: str | None = None,
    *,
    covariate: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    static: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    channel: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    reading: Reading = _READING,
) -> None:
    """Checks data as train would, and tells what they are like. Ends with 0 if they can be used, with 2 if not.

    Parameters
    ----------
    data
        As for train.
    covariate
        A column that is known ahead; may be given again.
    static
        A column that says one thing of a whole series; may be given again.
    channel
        A column of which the past alone is known; may be given again.
    """
    from pipelines.sources import read

    try:
        panel = read(reading.of(data)._replace(covariates=covariate, static=static, channels=channel))
    except InputError as error:
        print(f"{data or reading.sql}: cannot be used ({error.code})")
        raise
    print(f"{data or reading.sql}: can be used{', as repaired' if panel.repairs else ''}")
    print_summary(panel)


@app.command
def verify(bundle: str, *, where: Where = _WHERE) -> None:
    """Checks a bundle: digests, shapes, finite weights, golden requests.

    Parameters
    ----------
    bundle
        A bundle folder, or a registered model as NAME or NAME@ALIAS.
    """
    from forecaster import artifact
    from forecaster.blend import tell

    is_path = Path(bundle).exists() or os.sep in bundle
    folder = Path(bundle) if is_path else bundle_of(bundle, where)
    forecaster = artifact.load(folder)
    blend = f"; a blend: {tell(forecaster.blend)}" if forecaster.blend else ""
    print(f"{forecaster.spec.name}: a good bundle ({artifact.digest(folder)}){blend}")


@app.command
def serve(
    model: Annotated[str | None, Parameter(env_var="FORECASTER_SERVING_MODEL")] = None,
    *,
    host: Annotated[str | None, Parameter(env_var="FORECASTER_SERVING_HOST")] = None,
    port: Annotated[int | None, Parameter(env_var="FORECASTER_SERVING_PORT")] = None,
    keys: Annotated[Path | None, Parameter(env_var="FORECASTER_SERVING_KEYS_FILE")] = None,
    where: Where = _WHERE,
) -> None:
    """Serves the champion of a registered model over HTTP, and follows it when another is promoted.

    A blend with statistical models needs the extra 'baselines' here too; without it the server refuses the blend.

    Parameters
    ----------
    model
        The registered model; without one, what was served last.
    host
        Address to listen on; 127.0.0.1 unless told otherwise.
    port
        Port to listen on; 3000 unless told otherwise.
    keys
        File with the hashes of API keys, as `key new` writes it: who has none of them is refused.
    """
    from pipelines.settings import serving_environment

    root = where.open()
    environment = serving_environment(os.environ, root, model=model, host=host, port=port, keys=keys)
    if model is None and environment["FORECASTER_SERVING_SLOT"] == str(root.slot) and not root.slot.exists():
        raise NoSuchModel(
            f"Expected a model to serve; none is named, and none was ever served from {root.path}. "
            "Name a registered model: forecaster serve NAME, or FORECASTER_SERVING_MODEL=NAME.",
            where="model",
        )
    if model is not None and root.uri is None and not root.slot.exists() and (root.path / "mlflow.db").exists():
        from forecaster.registry import CHAMPION, Registry

        Registry(root.store).resolve(model, CHAMPION)  # a slip in the name would wait for ever
    # By name and not by import: serving and pipelines meet only in the registry.
    os.execve(sys.executable, [sys.executable, "-m", "serving"], environment)  # noqa: S606


@key_app.command(name="new")
def new_key(
    name: str,
    *,
    scope: Annotated[tuple[str, ...], Parameter(negative="")] = ("read",),
    keys: Annotated[Path | None, Parameter(env_var="FORECASTER_SERVING_KEYS_FILE")] = None,
    where: Where = _WHERE,
) -> None:
    """Makes an API key: prints it, this once, and adds its hash to a file for `serve --keys`.

    A running service takes it up by itself. To withdraw a key, remove its line.

    Parameters
    ----------
    name
        Whose it is; it stands in the access log.
    scope
        read (forecasts, the model, its accuracy), actuals (telling what came), observe (the counters) or admin (everything);
        may be given again.
    keys
        The file; `keys` under the root, if not given.
    """
    file = (keys or where.open().path / "keys").expanduser().absolute()
    # By name and not by import, as `serve`.
    os.execv(sys.executable, [sys.executable, "-m", "serving.asgi.auth", name, ",".join(scope), str(file)])  # noqa: S606


@app.command
def demo(*, configs: Path = Path("configs"), where: Where = _WHERE) -> None:
    """Trains on real data and on the classical series, registers, promotes, serves, asks over HTTP, and draws the answer.

    Parameters
    ----------
    configs
        Folder with hospital.yaml and sine.yaml.
    """
    from pipelines.demo import demo as run

    run(configs, where.open())


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and ends with its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    hush()
    try:
        app(arguments, exit_on_error=False, print_error=True)
    except ForecasterError as error:
        print(f"forecaster: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except CycloptsError:  # told by cyclopts already
        sys.exit(2)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a full disk, a file that went away: the system's own words say what and where
        print(f"forecaster: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("forecaster: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
