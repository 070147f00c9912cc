"""Where data and specifications come from: files, folders of drops, stores of objects, databases, and what ships."""

from pipelines.sources.data import Data
from pipelines.sources.panels import BUILT_IN, read
from pipelines.sources.specifications import check_test_windows, model_name, read_spec

__all__ = ["BUILT_IN", "Data", "check_test_windows", "model_name", "read", "read_spec"]
