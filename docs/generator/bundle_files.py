"""The reference of a bundle: its files, and the fields of its manifest."""

from __future__ import annotations

from docs.generator.fields import list_fields
from docs.generator.markdown import finish_sentence, render_page, render_table, take_table
from forecaster.bundle import files
from forecaster.bundle.files import Manifest


def build_page() -> str:
    """Returns the page."""
    fields = ((f"`{field.name}`", field.kind, finish_sentence(field.description)) for field in list_fields(Manifest))
    return render_page(
        "Bundle files",
        "A bundle is a fitted model as a folder of JSON and safetensors, without pickles. Files are verified by digest before "
        "they are parsed, and the loaded model by a replay of its golden requests. `forecaster verify BUNDLE` does both "
        "([decision 5](../decisions/0005-a-bundle-and-the-served-folder.md)).",
        take_table(files.__doc__),
        "## Fields of the manifest",
        render_table(("field", "takes", "meaning"), fields),
    )
