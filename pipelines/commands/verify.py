"""The command `verify`: checks a bundle."""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.commands.options import RootOptions, resolve_bundle

_ROOT_OPTIONS = RootOptions()


def verify(bundle: str, *, where: RootOptions = _ROOT_OPTIONS) -> None:
    """Checks a bundle: digests, shapes, finite weights, golden requests.

    Parameters
    ----------
    bundle
        A bundle folder, or a registered model as NAME or NAME@ALIAS.
    """
    from forecaster.bundle import artifact
    from forecaster.statistical.blend import format_blend_weights

    is_path = Path(bundle).exists() or os.sep in bundle
    folder = Path(bundle) if is_path else resolve_bundle(bundle, where)
    forecaster = artifact.load_bundle(folder)
    blend = f"; a blend: {format_blend_weights(forecaster.blend_weights)}" if forecaster.blend_weights else ""
    print(f"{forecaster.spec.name}: a good bundle ({artifact.compute_bundle_digest(folder)}){blend}")
