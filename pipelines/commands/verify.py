"""The command `verify`: checks a bundle."""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.commands.options import Where, bundle_of

_WHERE = Where()


def verify(bundle: str, *, where: Where = _WHERE) -> None:
    """Checks a bundle: digests, shapes, finite weights, golden requests.

    Parameters
    ----------
    bundle
        A bundle folder, or a registered model as NAME or NAME@ALIAS.
    """
    from forecaster.bundle import artifact
    from forecaster.statistical.blend import tell

    is_path = Path(bundle).exists() or os.sep in bundle
    folder = Path(bundle) if is_path else bundle_of(bundle, where)
    forecaster = artifact.load(folder)
    blend = f"; a blend: {tell(forecaster.blend)}" if forecaster.blend else ""
    print(f"{forecaster.spec.name}: a good bundle ({artifact.digest(folder)}){blend}")
