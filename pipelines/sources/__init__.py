"""Sources of data and specifications: files, folders of data drops, object stores, databases and built-in data sets."""

from pipelines.sources.data import DataSource
from pipelines.sources.panels import BUILT_IN_DATASETS, read_panel
from pipelines.sources.specifications import derive_model_name, read_spec
from pipelines.sources.tables import is_table_name

__all__ = ["BUILT_IN_DATASETS", "DataSource", "derive_model_name", "is_table_name", "read_panel", "read_spec"]
