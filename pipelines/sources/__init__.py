"""Where data and specifications come from: files, folders of drops, stores of objects, databases, and what ships."""

from pipelines.sources.data import DataSource
from pipelines.sources.panels import BUILT_IN_DATASETS, read_panel
from pipelines.sources.specifications import derive_model_name, read_spec, validate_test_windows

__all__ = ["BUILT_IN_DATASETS", "DataSource", "derive_model_name", "read_panel", "read_spec", "validate_test_windows"]
