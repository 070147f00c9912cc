"""A bundle as an MLflow model: its files next to MLflow's own, with signature and input example."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.types import Schema

BUNDLE_FOLDER = "bundle"  # the folder of the bundle in a logged model, next to MLflow's own files


@contextlib.contextmanager
def logged_model(client: MlflowClient, experiment_id: str, *, name: str, run_id: str) -> Iterator[LoggedModel]:
    """Creates an MLflow model as an output of its run; READY when the block ends, FAILED when it raises."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    model = client.create_logged_model(experiment_id, name, run_id, model_type="forecaster")
    try:
        yield model
    except BaseException:
        client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
        raise
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])


def write_model(
    folder: Path,
    bundle: Path,
    model: LoggedModel,
    digest: str,
    input_example: pd.DataFrame,
    output_example: pd.DataFrame,
) -> None:
    """Writes the files of `Model.log` without its global state, inferred requirements and trial run."""
    from mlflow.models import Model, ModelSignature

    example = input_example.to_json(orient="split", index=False, date_format="iso")
    (folder / "input_example.json").write_text(example)
    (folder / "serving_input_example.json").write_text(f'{{"dataframe_split": {example}}}')
    mlflow_model = Model(
        artifact_path=model.artifact_location,
        run_id=model.source_run_id,
        model_uuid=model.model_id,
        model_id=model.model_id,
        signature=ModelSignature(_build_schema(input_example), _build_schema(output_example)),
        saved_input_example_info={
            "artifact_path": "input_example.json",
            "serving_input_path": "serving_input_example.json",
            "type": "dataframe",
            "pandas_orient": "split",
        },
    )
    mlflow_model.add_flavor("forecaster", bundle=BUNDLE_FOLDER, digest=digest)
    mlflow_model.save(str(folder / "MLmodel"))
    shutil.copytree(bundle, folder / BUNDLE_FOLDER)


def _build_schema(frame: pd.DataFrame) -> Schema:
    """Builds a schema explicitly: `infer_signature` of MLflow 3.17 takes the text columns of pandas 3 for columns of any type."""
    from mlflow.types import ColSpec, DataType, Schema

    types = {
        "M": DataType.datetime,
        "f": DataType.double,
        "i": DataType.long,
        "u": DataType.long,
        "b": DataType.boolean,
    }
    return Schema([ColSpec(types.get(dtype.kind, DataType.string), str(name)) for name, dtype in frame.dtypes.items()])
