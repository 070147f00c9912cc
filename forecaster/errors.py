"""Every error this project raises on purpose, as one tree.

    ForecasterError
    ├── InputError                 what was sent cannot be used          exit 2, HTTP 422
    │   ├── SourceNotFound         no such file, or not of a known kind
    │   ├── MissingColumn          a column of the frame is not there
    │   ├── NotANumber             text, or an infinity, where a number belongs
    │   ├── BadStamp               a time stamp cannot be read
    │   ├── DuplicateStamp         one series says two things of one moment
    │   ├── IrregularStamps        stamps do not follow the frequency
    │   ├── FrequencyUnknown       the frequency is neither declared nor certain
    │   ├── FrequencyMismatch      the data's frequency is not the forecaster's
    │   ├── HistoryTooShort        fewer steps than are needed
    │   ├── HorizonOutOfRange      a horizon below one, or above the limit
    │   └── BadSpec                a specification does not validate
    ├── TrainingError              a fit cannot go on                    exit 1
    │   ├── NonFiniteLoss          the loss became NaN or infinite
    │   └── CheckpointMismatch     a checkpoint is of another fit, or damaged
    ├── RolloutDiverged            a forecast left the finite numbers    exit 1, HTTP 422
    ├── BundleError                a bundle must not be served           exit 1
    │   ├── BundleDamaged          a file is missing, altered or unreadable
    │   └── GoldenMismatch         frozen requests no longer get their answers
    ├── RegistryError              the model registry said no            exit 1
    │   ├── NoSuchModel            no such model, version or alias
    │   └── BaseMoved              the champion changed since it was judged against
    └── RefusedByGate              a challenger did not prove better     exit 3

A message has four parts: what was expected, what was found, where, and what to do. `where` also travels apart, for the
error shape of the HTTP answers.
"""

from __future__ import annotations

import re
from typing import ClassVar


class ForecasterError(Exception):
    """The root of the tree; `code` is the snake_case name that HTTP answers and logs carry."""

    code: ClassVar[str] = "forecaster_error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, where: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.code = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


class InputError(ForecasterError):
    exit_code = 2


class SourceNotFound(InputError): ...


class MissingColumn(InputError): ...


class NotANumber(InputError): ...


class BadStamp(InputError): ...


class DuplicateStamp(InputError): ...


class IrregularStamps(InputError): ...


class FrequencyUnknown(InputError): ...


class FrequencyMismatch(InputError): ...


class HistoryTooShort(InputError): ...


class HorizonOutOfRange(InputError): ...


class CovariateUnknown(InputError): ...


class BadSpec(InputError): ...


class TrainingError(ForecasterError): ...


class NonFiniteLoss(TrainingError): ...


class CheckpointMismatch(TrainingError): ...


class RolloutDiverged(ForecasterError): ...


class BundleError(ForecasterError): ...


class BundleDamaged(BundleError): ...


class GoldenMismatch(BundleError): ...


class RegistryError(ForecasterError): ...


class NoSuchModel(RegistryError): ...


class BaseMoved(RegistryError): ...


class RefusedByGate(ForecasterError):
    exit_code = 3
