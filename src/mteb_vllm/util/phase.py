"""The phases of a run."""

from __future__ import annotations

from enum import Enum


class Phase(str, Enum):
    """The current activity of a run. Failures and time-outs are classified by it, never by the text of a message."""

    STARTING = "starting"
    IMPORTING = "importing"
    OPENING_ENGINE = "opening engine"
    LOADING_DATA = "loading data"
    ENCODING = "encoding"
    SCORING = "scoring"
    MEASURING = "measuring"
    LOOKING_FOR_CAUSES = "looking for causes"
    WAITING = "waiting"  # for another run that computes the same results
    BETWEEN_TASKS = "between tasks"
