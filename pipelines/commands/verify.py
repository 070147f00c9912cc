"""The command `forecaster verify`: checks a bundle."""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.commands.model_options import resolve_bundle
from pipelines.commands.options import RootOptions

_ROOT_OPTIONS = RootOptions()


def verify(bundle: str, *, root_options: RootOptions = _ROOT_OPTIONS) -> None:
    """Checks a bundle from any source: files, digests, shapes, finite weights, golden requests.

    Parameters
    ----------
    bundle
        A bundle folder, or a registered model as NAME or NAME@ALIAS.
    """
    from forecaster.bundle import artifact
    from forecaster.engines.statistical.blend import format_blend_weights

    is_path = Path(bundle).exists() or os.sep in bundle
    folder = Path(bundle) if is_path else resolve_bundle(bundle, root_options)
    model = artifact.verify_bundle(folder)
    blend = f"; a blend: {format_blend_weights(model.blend_weights)}" if model.blend_weights else ""
    print(f"{model.spec.name}: a valid bundle ({artifact.compute_bundle_digest(folder)}){blend}")
