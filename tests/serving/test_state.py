"""States: a forecast from a state and new values is that of the whole history, and no state but ours is taken."""

from __future__ import annotations

import base64
import hmac
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecaster.data.encoding import Encoding
from forecaster.engine import Known
from forecaster.errors import BadState, ForecasterError, StateOfOtherModel, StateTooLarge
from forecaster.model import regressor
from forecaster.predict import Forecaster, Predictor
from forecaster.series import Series
from forecaster.spec import Spec
from serving.schema import CarriedSeries
from serving.settings import Settings
from serving.state import FORMAT, Model, Seal, issue, to_series
from serving.stamps import Style
from tests.forecaster.test_conformal import toy_calibration
from tests.samples import wave
from tests.serving.conftest import Client, MakeClient, publish_stub, series
from tests.serving.test_docs import faults, schema_of

KEY, OTHER = "first-key-" + "x" * 40, "second-key-" + "y" * 40
STEPS, HORIZON = 90, 5
