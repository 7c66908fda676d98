"""The one exception tree of the toolkit, ordered by what the user can do about each error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LitePoseNasError(Exception):
    """Root of every error that the toolkit raises on purpose.

    A message states the rule, the value received and the way out, in one line.
    """


class InputError(LitePoseNasError):
    """A file, an option or a value that the user handed in is wrong: correct it and run again."""


class BudgetError(LitePoseNasError):
    """No network of the search space meets the budget: loosen it, or take another space."""


class MissingLayerError(LitePoseNasError):
    """A latency table lacks a layer that the network executes: profile it; it never costs 0 ms."""


class UnavailableError(LitePoseNasError):
    """Something is not to be had on this machine (a GPU, a runtime, an optional extra)."""


class RunError(LitePoseNasError):
    """A run directory or a checkpoint does not fit what is asked of it (other space, damaged, in use)."""


class ToldElsewhereError(RunError):
    """The same as what the first process of a shared training tells: this one ends without repeating it."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known word, or the list of all known words.

    Parameters
    ----------
    word
        What the user wrote.
    known
        What would have been accepted.
    """
    options = sorted(known)
    near = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(options)}" if options else ""


def shown(value: object) -> str:
    """Return a value as a message shows it: on one line, and not endless."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return "an endless number"
    return text if len(text) <= 80 else f"{text[:77]}..."
