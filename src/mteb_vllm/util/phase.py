"""What a run is doing at a time."""

from __future__ import annotations

from enum import Enum


class Phase(str, Enum):
    """What a run is doing; failures, time-outs and "this engine does not open" are decided from it, never from a text."""

    STARTING = "starting"
    IMPORTING = "importing"
    OPENING_ENGINE = "opening engine"
    LOADING_DATA = "loading data"
    ENCODING = "encoding"
    SCORING = "scoring"
    MEASURING = "measuring"
    LOOKING_FOR_CAUSES = "looking for causes"
    WAITING = "waiting"  # for another run that computes what is needed
    BETWEEN_TASKS = "between tasks"
