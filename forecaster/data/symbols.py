"""Symbols and their codes: a series of symbols has the codes of a vocabulary as its values, and NaN where none was observed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from forecaster.errors import BadSpec, NoData
from forecaster.series import Panel, Series
from forecaster.shapes import Bool, Float64
from forecaster.spec import MAX_SYMBOL_LENGTH, MAX_VOCABULARY, UNKNOWN_SYMBOL, Spec

UNKNOWN_CODE = 0.0
FREQUENCIES, MARKOV = SYMBOL_BASELINES = "frequencies", "markov"
"""Baselines of models of symbols: the frequencies of the symbols, and those after each symbol (a Markov chain of order 1)."""
SYMBOL_SCORES_FACT = "symbol_scores"  # among the facts of a model of symbols: the scores of its test by forecaster
START_MARKER_FACT = (
    "start_marker"  # among the facts of a model: whether an unknown symbol preceded the sequences of its training
)


def encode_symbols(symbols: Iterable[str | None], vocabulary: Sequence[str]) -> Float64[np.ndarray, "step"]:
    """Returns the code of each symbol: 1 and so on in the order of the vocabulary, 0 outside of it, NaN for None."""
    codes = _index_vocabulary(tuple(vocabulary))
    return np.array(
        [np.nan if symbol is None else codes.get(symbol, UNKNOWN_CODE) for symbol in symbols], dtype=np.float64
    )


def decode_symbols(codes: Float64[np.ndarray, "step"], vocabulary: Sequence[str]) -> list[str | None]:
    """Returns the symbol of each code, the inverse of `encode_symbols`."""
    symbols = (UNKNOWN_SYMBOL, *vocabulary)
    return [None if np.isnan(code) else symbols[int(code)] for code in codes.tolist()]


def is_code(values: Float64[np.ndarray, "step"], *, num_symbols: int) -> Bool[np.ndarray, "step"]:
    """Whether each value is missing or a code of a vocabulary of `num_symbols` symbols, the unknown one included."""
    return np.asarray(np.isnan(values) | ((values >= 0) & (values <= num_symbols) & (values == np.floor(values))))


@lru_cache(maxsize=64)
def _index_vocabulary(vocabulary: tuple[str, ...]) -> Mapping[str, float]:
    return {symbol: float(index) for index, symbol in enumerate(vocabulary, start=1)}


def list_vocabulary(symbols: Iterable[str | None], vocabulary: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns the given vocabulary or, if it is empty, the symbols that occur, sorted."""
    if vocabulary:
        return tuple(vocabulary)
    return tuple(sorted({symbol for symbol in symbols if symbol is not None} - {UNKNOWN_SYMBOL}))


def learn_vocabulary(panel: Panel) -> tuple[str, ...]:
    """Returns the symbols that occur in a panel, sorted. Raises NoData without a symbol, BadSpec for too many or too long."""
    used = np.unique(np.concatenate([series.y for series in panel.series]))
    symbols = sorted(panel.vocabulary[int(code) - 1] for code in used[used > 0].tolist())
    if not symbols:
        raise NoData("Expected a symbol in the training data; found none. Send a history of symbols.", where="y")
    if len(symbols) > MAX_VOCABULARY:
        raise BadSpec(
            f"Expected at most {MAX_VOCABULARY} different symbols in the training data; found {len(symbols)}, the first of them "
            f"{symbols[0]!r}. Replace rare symbols by one of their own, or remove numbers and names from them.",
            where="head.vocabulary",
        )
    longest = max(symbols, key=len)
    if len(longest) > MAX_SYMBOL_LENGTH:
        raise BadSpec(
            f"Expected symbols of at most {MAX_SYMBOL_LENGTH} characters; found one of {len(longest)}, which begins with "
            f"{longest[:40]!r}. Shorten it: a symbol is a state or a code, not a message.",
            where="head.vocabulary",
        )
    return tuple(symbols)


def recode_panel(panel: Panel, vocabulary: Sequence[str]) -> Panel:
    """Returns the panel with the codes of another vocabulary; symbols outside of it become unknown."""
    if tuple(vocabulary) == panel.vocabulary:
        return panel
    table = np.array([UNKNOWN_CODE, *encode_symbols(panel.vocabulary, vocabulary)])
    series = [replace(item, y=_translate(item.y, table)) for item in panel.series]
    return replace(panel, series=series, vocabulary=tuple(vocabulary))


def refuse_symbols(spec: Spec, *, what: str, advice: str) -> None:
    """Raises BadSpec if a model predicts symbols, for what is defined for numbers only."""
    if spec.head.is_symbolic:
        raise BadSpec(
            f"Expected a model of numbers for {what}; {spec.name!r} predicts symbols. {advice}", where="head.kind"
        )


def build_symbol_panel(
    sequences: Sequence[Sequence[str | None]], *, vocabulary: Sequence[str] = (), start_marker: bool = False
) -> Panel:
    """Returns a panel with one series for each sequence, on integer steps.

    Args:
        sequences: Sequences of symbols: texts, whose characters are the symbols, or lists of texts; None was not observed.
        vocabulary: The vocabulary; by default all symbols that occur, sorted.
        start_marker: Whether an unknown symbol precedes every sequence, so that a network learns to predict the first symbol
            from nothing.
    """
    symbols = list_vocabulary((symbol for sequence in sequences for symbol in sequence), vocabulary)
    prefix = [UNKNOWN_SYMBOL] if start_marker else []
    series = [
        Series(f"sequence_{index}", 0, "1", encode_symbols([*prefix, *sequence], symbols))
        for index, sequence in enumerate(sequences)
    ]
    return Panel(series, "1", vocabulary=symbols)


def _translate(codes: Float64[np.ndarray, "step"], table: Float64[np.ndarray, "code"]) -> Float64[np.ndarray, "step"]:
    missing = np.isnan(codes)
    return np.where(missing, np.nan, table[np.where(missing, 0.0, codes).astype(np.int64)])
