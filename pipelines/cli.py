"""The command line. A command reads its input, calls one function and prints one result; heavy packages are imported in it only.

Exit codes: 0 success, 1 failure, 2 invalid usage or input, 3 rejected by a gate, 130 interrupted.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from forecaster import __version__
from forecaster.errors import ForecasterError
from forecaster.installation import EXTRA_OF_MODULE, describe_missing_module
from forecaster.storage.secret_files import InvalidSecret, load_secret_files
from pipelines.commands.backtest import backtest
from pipelines.commands.batch import batch
from pipelines.commands.compare import compare
from pipelines.commands.console import configure_logging, name_options
from pipelines.commands.data import data_app
from pipelines.commands.demo import demo
from pipelines.commands.doctor import doctor
from pipelines.commands.forecast import forecast
from pipelines.commands.inspect_model import inspect
from pipelines.commands.keys import key_app
from pipelines.commands.lab import lab
from pipelines.commands.mcp import mcp
from pipelines.commands.monitor import monitor
from pipelines.commands.package import package
from pipelines.commands.pretrain import pretrain
from pipelines.commands.registry import audit, promote, register, rollback
from pipelines.commands.schedule import schedule_app
from pipelines.commands.score import score
from pipelines.commands.serve import serve
from pipelines.commands.shadow import shadow
from pipelines.commands.synthetic import synthetic
from pipelines.commands.train import retrain, train
from pipelines.commands.tune import tune
from pipelines.commands.verify import verify

app = App(
    name="forecaster",
    version=__version__,
    help="Forecasts time series with recurrent networks: train, compare, promote, serve.\n\n"
    "- `forecaster train data.csv --horizon 12` fits and tests a model, and writes a bundle.\n"
    "- `forecaster forecast BUNDLE data.csv --plot forecast.png` forecasts with it.\n"
    "- `forecaster retrain data.csv --horizon 12` also promotes it; then `forecaster serve data` serves it.",
    suppress_keyboard_interrupt=False,  # `main` says what is kept
)
for group in (data_app, key_app, schedule_app):
    app.command(group)
for command in (
    train,
    retrain,
    backtest,
    compare,
    forecast,
    batch,
    score,
    inspect,
    tune,
    register,
    promote,
    rollback,
    audit,
    shadow,
    monitor,
    doctor,
    verify,
    package,
    serve,
    mcp,
    synthetic,
    pretrain,
    lab,
    demo,
):
    app.command(command)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command and exits with its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    configure_logging()
    try:
        load_secret_files(os.environ)
        app(argv, exit_on_error=False, print_error=True)
    except InvalidSecret as error:
        print(f"forecaster: {error}", file=sys.stderr)
        sys.exit(2)
    except ForecasterError as error:
        print(f"forecaster: {name_options(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF_MODULE:  # a fault of the project itself
            raise
        print(f"forecaster: {describe_missing_module(package, purpose='this command').message}", file=sys.stderr)
        sys.exit(1)
    except CycloptsError:  # printed by cyclopts already
        sys.exit(2)
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # such as a deleted file; the message of the system names it
        message = str(error)
        if error.errno == errno.ENOSPC:  # the system names no file where a write fails
            place = f" for {error.filename}" if error.filename else ""
            message = (
                f"Expected free space on the disk{place}; the system reports: {error.strerror}. Free space, and run the same "
                "command again."
            )
        print(f"forecaster: {message}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        print(". ".join(["forecaster: interrupted", *getattr(interrupt, "__notes__", ())]), file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
