"""All errors that the project raises deliberately, as one tree.

    ForecasterError
    ├── InputError                 the input cannot be used              exit 2, HTTP 422
    │   ├── SourceNotFound         the file does not exist, or its type is not supported
    │   ├── MissingColumn          a column is missing from the frame
    │   ├── DuplicateColumn        a column occurs twice, or has two roles
    │   ├── NoData                 there are no rows, or no series has an observed value
    │   ├── BadId                  a series id is empty or too long, or two ids become equal
    │   ├── NotANumber             text or an infinity in place of a number
    │   │   └── ValueOutOfRange    a number is too large to compute with
    │   ├── NotASymbol             numbers in place of symbols
    │   ├── CovariateUnknown       a required covariate, static feature or channel is missing
    │   ├── StaticChanges          a static feature changes within a series
    │   ├── ZoneUnknown            no time zone has this name
    │   ├── BadStamp               a timestamp cannot be parsed, or leaves the calendar
    │   ├── DuplicateStamp         a series has two rows with one timestamp
    │   ├── IrregularStamps        the timestamps do not follow the frequency
    │   ├── GridTooLarge           too many steps between the first and the last timestamp
    │   ├── FrequencyUnknown       the frequency is neither declared nor unambiguous
    │   ├── FrequencyMismatch      the frequency of the data differs from the model's
    │   ├── SeasonMismatch         the season of the data differs from the model's
    │   ├── HistoryTooShort        the history has fewer steps than required
    │   ├── LevelOutOfRange        a quantile level is invalid, or the model is not calibrated
    │   ├── HorizonOutOfRange      the horizon is below one, or above the limit
    │   ├── BadState               a state token is invalid, or does not fit its series
    │   │   └── StateOfOtherModel  the state token was written by another model
    │   ├── StateTooLarge          a state exceeds the size limit
    │   ├── ManifestMismatch       a batch was started with another model, input or option
    │   ├── SeriesRefused          the service returned no forecast for at least one series
    │   └── BadSpec                a specification does not validate
    ├── MissingPackage             an optional package is not installed  exit 1
    ├── SourceUnavailable          a store or database does not respond  exit 1
    ├── BatchInterrupted           a worker of a batch was killed        exit 1
    ├── ClusterError               a cluster does not respond, or lost a worker on every attempt  exit 1
    ├── TrainingError              training cannot continue              exit 1
    │   ├── NonFiniteLoss          the loss became NaN or infinite
    │   └── CheckpointMismatch     a checkpoint belongs to another fit, or is damaged
    ├── BundleError                a bundle must not be served           exit 1
    │   ├── BundleDamaged          a file is missing, altered or unreadable
    │   └── GoldenMismatch         golden requests no longer reproduce their forecasts
    ├── RegistryError              a request to the model registry failed  exit 1
    │   ├── NoSuchModel            the model, version or alias does not exist
    │   └── BaseMoved              the champion changed after the challenger was judged against it
    ├── ServiceError               a request to the service failed       exit 1
    │   ├── RequestRefused         the service rejected the request      exit 2
    │   ├── KeyRefused             the API key is missing, or lacks the permission
    │   ├── ServiceBusy            the service has too many requests in progress
    │   ├── ServiceNotReady        the service has no model yet
    │   ├── AnswerTooLate          the service did not respond before the timeout
    │   └── Unreachable            no connection to the address of the service
    ├── LedgerError                the ledger of served forecasts cannot be used  exit 1
    ├── RefusedByGate              a challenger did not pass the promotion gate  exit 3
    └── TooManyRejects             more series of a batch have no forecast than it tolerates  exit 3

A message has four parts: what was expected, what was found, where, and what to do. `where` is also an attribute, which HTTP
error responses carry as a field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar, get_args

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_core import ErrorDetails

_MAX_COMPARED_LENGTH = 64  # of a misspelt name, because the time grows with the square of the length


class ForecasterError(Exception):
    """The root of the tree. `code` is the class name in snake_case; HTTP responses and logs carry it."""

    code: ClassVar[str] = "forecaster_error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, where: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.code = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


def rename_arguments(message: str, names: Mapping[str, str]) -> str:
    """Returns a message with other names for the arguments that it has in backticks: options of a command, for example."""
    for argument, name in names.items():
        message = message.replace(f"`{argument}`=", f"{name} ").replace(f"`{argument}`", name)
    return message


class InputError(ForecasterError):
    """The input cannot be used."""

    exit_code = 2


class SourceNotFound(InputError): ...


class MissingColumn(InputError): ...


class DuplicateColumn(InputError): ...


class NoData(InputError): ...


class BadId(InputError): ...


class NotANumber(InputError): ...


class ValueOutOfRange(NotANumber): ...


class NotASymbol(InputError): ...


class CovariateUnknown(InputError): ...


class StaticChanges(InputError): ...


class ZoneUnknown(InputError): ...


class BadStamp(InputError): ...


class DuplicateStamp(InputError): ...


class IrregularStamps(InputError): ...


class GridTooLarge(InputError): ...


class FrequencyUnknown(InputError): ...


class FrequencyMismatch(InputError): ...


class SeasonMismatch(InputError): ...


class HistoryTooShort(InputError): ...


class HorizonOutOfRange(InputError): ...


class LevelOutOfRange(InputError): ...


class BadState(InputError): ...


class StateOfOtherModel(BadState): ...


class StateTooLarge(InputError): ...


class BadSpec(InputError): ...


class MissingPackage(ForecasterError): ...


class SourceUnavailable(ForecasterError): ...


class BatchInterrupted(ForecasterError): ...


class ClusterError(ForecasterError): ...


class TrainingError(ForecasterError): ...


class NonFiniteLoss(TrainingError): ...


class CheckpointMismatch(TrainingError): ...


class BundleError(ForecasterError): ...


class BundleDamaged(BundleError): ...


class GoldenMismatch(BundleError): ...


class RegistryError(ForecasterError): ...


class NoSuchModel(RegistryError): ...


class BaseMoved(RegistryError): ...


class ManifestMismatch(InputError): ...


class SeriesRefused(InputError):
    """At least one series of a request has no forecast.

    Attributes:
        errors: One error for each series without a forecast.
        forecast_count: The number of series with a forecast.
    """

    def __init__(self, errors: Sequence[ForecasterError], *, forecast_count: int) -> None:
        total = len(errors) + forecast_count
        summary = f"{len(errors)} of {total} series have no forecast. {errors[0].message}"
        if len(errors) > 1:
            summary += f" And {len(errors) - 1} more."
        super().__init__(summary, where=errors[0].where)
        self.errors = tuple(errors)
        self.forecast_count = forecast_count


class ServiceError(ForecasterError):
    """A request to the service failed.

    Attributes:
        status: The HTTP status code; None if there was no response.
        request_id: The id that identifies the request in the service's log.
    """

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
            self.code = code  # type: ignore[misc]  # the error code in the service's response
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


class TooManyRejects(ForecasterError):
    exit_code = 3


def find_similar_name(name: str, names: Iterable[str]) -> str | None:
    """Returns the existing name that is most similar to a misspelt one; None if there is none."""
    by_lower_case = {existing.lower(): existing for existing in names}
    matches = (
        get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.7) if len(name) <= _MAX_COMPARED_LENGTH else []
    )
    return by_lower_case[matches[0]] if matches else None


def suggest_name(name: str, names: Iterable[str]) -> str:
    """Returns " Did you mean 'horizon'?" for a misspelt name; empty if there is no similar one."""
    similar = find_similar_name(name, names)
    return "" if similar is None else f" Did you mean {similar!r}?"


def describe_field_error(detail: ErrorDetails, model: type[BaseModel], *, prefix: tuple[str | int, ...] = ()) -> str:
    """Describes one error of a validation, with a suggestion for an unknown field.

    Args:
        detail: The error, as pydantic reports it.
        model: The model that was validated, or one that contains it.
        prefix: The location of the validated value in the model.
    """
    if detail["type"] != "extra_forbidden":
        return detail["msg"]
    location = (*prefix, *detail["loc"])
    models: Sequence[type[BaseModel]] = [model]
    for part in location[:-1]:  # indices of lists and tags of unions name no field
        fields = [candidate.model_fields[part] for candidate in models if part in candidate.model_fields]
        models = [nested for field in fields for nested in _find_models(field.annotation)] or models
    name = str(location[-1])
    similar = find_similar_name(name, [existing for candidate in models for existing in candidate.model_fields])
    if similar is None:
        similar = next((path for path in _list_nested_fields(model) if path.rpartition(".")[2] == name), None)
    return "There is no such field" + ("" if similar is None else f" (did you mean {similar!r}?)")


def _find_models(annotation: Any) -> list[type[BaseModel]]:
    """Returns the models in an annotation, such as those of a union or of the items of a list."""
    if hasattr(annotation, "model_fields"):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _find_models(argument)]


def _list_nested_fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yields the fields of models within a model, such as `network.hidden`."""
    for name, field in model.model_fields.items():
        if prefix:
            yield f"{prefix}{name}"
        for nested in _find_models(field.annotation):
            yield from _list_nested_fields(nested, f"{prefix}{name}.")
