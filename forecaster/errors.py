"""Every error this project raises on purpose, as one tree.

    ForecasterError
    ├── InputError                 what was sent cannot be used          exit 2, HTTP 422
    │   ├── SourceNotFound         no such file, or not of a known kind
    │   ├── MissingColumn          a column of the frame is not there
    │   ├── DuplicateColumn        a column is there twice, or has two meanings
    │   ├── NoData                 no row, or no observed value in any series
    │   ├── BadId                  the name of a series is empty, too long, or two names become one
    │   ├── NotANumber             text, or an infinity, where a number belongs
    │   │   └── ValueOutOfRange    a number too large to be reckoned with
    │   ├── CovariateUnknown       a covariate, static value or channel is not there where it must be known
    │   ├── StaticChanges          what must not change within a series does
    │   ├── ZoneUnknown            no time zone has this name
    │   ├── BadStamp               a time stamp cannot be read
    │   ├── DuplicateStamp         one series says two things of one moment
    │   ├── IrregularStamps        stamps do not follow the frequency
    │   ├── GridTooLarge           more steps between first and last stamp than data can have
    │   ├── FrequencyUnknown       the frequency is neither declared nor certain
    │   ├── FrequencyMismatch      the data's frequency is not the forecaster's
    │   ├── HistoryTooShort        fewer steps than are needed
    │   ├── LevelOutOfRange        a quantile level that is none, or that nothing was calibrated for
    │   ├── HorizonOutOfRange      a horizon below one, or above the limit
    │   ├── BadState               a carried state that is none of ours, or does not fit the series it came with
    │   │   └── StateOfOtherModel  one that another model left
    │   ├── StateTooLarge          a state beyond what may be handed out
    │   ├── SeriesRefused          of what a service was asked, some series got no forecast
    │   └── BadSpec                a specification does not validate
    ├── MissingPackage             an optional package is not installed  exit 1
    ├── SourceUnavailable          a store or database does not answer   exit 1
    ├── TrainingError              a fit cannot go on                    exit 1
    │   ├── NonFiniteLoss          the loss became NaN or infinite
    │   └── CheckpointMismatch     a checkpoint is of another fit, or damaged
    ├── BundleError                a bundle must not be served           exit 1
    │   ├── BundleDamaged          a file is missing, altered or unreadable
    │   └── GoldenMismatch         frozen requests no longer get their answers
    ├── RegistryError              the model registry said no            exit 1
    │   ├── NoSuchModel            no such model, version or alias
    │   └── BaseMoved              the champion changed since it was judged against
    ├── ServiceError               a service that was asked said no      exit 1
    │   ├── RequestRefused         what was sent cannot be used          exit 2
    │   ├── KeyRefused             no key, or none that may ask this
    │   ├── ServiceBusy            too many requests are under way there
    │   ├── ServiceNotReady        it has no model yet
    │   ├── AnswerTooLate          no answer within the time that was given
    │   └── Unreachable            nobody answers at its address
    ├── LedgerError                the ledger of served forecasts cannot be used  exit 1
    └── RefusedByGate              a challenger did not prove better     exit 3

A message has four parts: what was expected, what was found, where, and what to do. `where` also travels apart, for the
error shape of the HTTP answers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
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


class DuplicateColumn(InputError): ...


class NoData(InputError): ...


class BadId(InputError): ...


class NotANumber(InputError): ...


class ValueOutOfRange(NotANumber): ...


class CovariateUnknown(InputError): ...


class StaticChanges(InputError): ...


class ZoneUnknown(InputError): ...


class BadStamp(InputError): ...


class DuplicateStamp(InputError): ...


class IrregularStamps(InputError): ...


class GridTooLarge(InputError): ...


class FrequencyUnknown(InputError): ...


class FrequencyMismatch(InputError): ...


class HistoryTooShort(InputError): ...


class HorizonOutOfRange(InputError): ...


class LevelOutOfRange(InputError): ...


class BadState(InputError): ...


class StateOfOtherModel(BadState): ...


class StateTooLarge(InputError): ...


class BadSpec(InputError): ...


class MissingPackage(ForecasterError): ...


class SourceUnavailable(ForecasterError): ...


class TrainingError(ForecasterError): ...


class NonFiniteLoss(TrainingError): ...


class CheckpointMismatch(TrainingError): ...


class BundleError(ForecasterError): ...


class BundleDamaged(BundleError): ...


class GoldenMismatch(BundleError): ...


class RegistryError(ForecasterError): ...


class NoSuchModel(RegistryError): ...


class BaseMoved(RegistryError): ...


class SeriesRefused(InputError):
    """Attributes: faults, what stands in the way of each; answered, how many got a forecast."""

    def __init__(self, errors: Sequence[ForecasterError], *, forecast_count: int) -> None:
        told = f"{errors[0].message}" + (f" And {len(errors) - 1} more." if len(errors) > 1 else "")
        super().__init__(
            f"{len(errors)} of {len(errors) + forecast_count} series have no forecast. {told}", where=errors[0].where
        )
        self.errors = tuple(errors)
        self.forecast_count = forecast_count


class ServiceError(ForecasterError):
    """Attributes: status, that of HTTP, if there was an answer; request_id, under which the service's log tells more."""

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        where: str | None = None,
        status: int | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message, where=where)
        if code is not None:
            self.code = code  # type: ignore[misc]  # the service's own word
        self.status = status
        self.request_id = request_id


class RequestRefused(ServiceError):
    exit_code = 2


class KeyRefused(ServiceError): ...


class ServiceBusy(ServiceError): ...


class ServiceNotReady(ServiceError): ...


class AnswerTooLate(ServiceError): ...


class Unreachable(ServiceError): ...


class LedgerError(ForecasterError): ...


class RefusedByGate(ForecasterError):
    exit_code = 3
