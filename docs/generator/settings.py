"""The reference of settings: environment variables of the service, the command line and the client."""

from __future__ import annotations

from docs.generator.command_line import list_commands
from docs.generator.fields import list_fields
from docs.generator.markdown import finish_sentence, render_page, render_table
from forecaster.storage.secret_files import FILE_SUFFIX, SECRET_VARIABLES
from serving.settings import ENV_PREFIX, Settings

# Variables that are read where no option of a command reads them.
OTHER_VARIABLES = {
    "FORECASTER_KEY": "API key that the client and `forecaster forecast --url` send to a service.",
    "FORECASTER_SQL_URL": "Address of the database that `--sql` reads, with its password.",
}


def list_option_variables() -> dict[str, str]:
    """Returns the environment variables that options of commands read, with the meaning of the option."""
    return {
        name: f"{option.help} {'Option' if option.names[0].startswith('-') else 'Argument'}: `{option.names[0]}`."
        for command in list_commands()
        for option in command.options
        for name in option.environment
    }


def build_page() -> str:
    """Returns the page."""
    variables = {**list_option_variables(), **OTHER_VARIABLES}
    service = (
        (f"`{ENV_PREFIX}{field.name.upper()}`", field.kind, field.default, finish_sentence(field.description))
        for field in list_fields(Settings)
    )
    return render_page(
        "Settings",
        "Settings are environment variables. None of them changes a forecast, except `FORECASTER_SERVING_ADAPTIVE`, with which "
        "intervals adapt to actuals. [Operations](../operations.md) is the guide.",
        "## Command line and client",
        render_table(("variable", "meaning"), ((f"`{name}`", variables[name]) for name in sorted(variables))),
        "MLflow's own variables (`MLFLOW_TRACKING_USERNAME` and so on) apply wherever a registry or a tracking server is used.",
        "## Service",
        "An unknown `FORECASTER_SERVING_*` stops the start with a message, because it is usually a typing error.",
        render_table(("variable", "takes", "default", "meaning"), service),
        "## Secrets in files",
        f"With `{FILE_SUFFIX}` after its name, each of these variables names a file that contains its value, such as a secret "
        "that a container mounts: "
        + ", ".join(f"`{name}{FILE_SUFFIX}`" for name in SECRET_VARIABLES)
        + ". Setting both forms is an "
        "error, and so are an empty file and the placeholder of an example. The files are read once, when a command, the service "
        f"or its follower starts. `{ENV_PREFIX}KEYS_FILE` alone is read again when it changes.",
    )
