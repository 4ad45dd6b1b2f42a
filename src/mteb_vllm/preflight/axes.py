"""Read the axes of a sweep or a search: the keys with several values."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from mteb_vllm.config.overrides import describe_error, override_mistake, override_text, parse_overrides
from mteb_vllm.errors import Mistake
from mteb_vllm.util.shell import suggest


@dataclass(frozen=True)
class Axis:
    """A key and its values.

    Attributes:
        key: The key.
        values: One override per value; of a range of a search only the first and the last value.
        searched: Whether a search chooses the value.
    """

    key: str
    values: list[Override]
    searched: bool = False


def read_axes(overrides: Sequence[Override], swept: bool, sampler: str | None) -> tuple[list[Axis], list[Mistake]]:
    """Return the values of each key in the order of Hydra's BasicSweeper: of repeated keys the last one counts.

    Args:
        overrides: The overrides.
        swept: Whether several values of a key are a sweep.
        sampler: The class by which a search chooses values; None if this is not a search.
    """
    axes: dict[str, Axis] = {}
    mistakes = []
    for at, override in enumerate(overrides):
        key, written = override.get_key_element(), override_text(override)
        values, searched = [override], False
        if override.is_sweep_override():
            if not swept:
                start, _, raw = written.partition("=")
                listed, text = shlex.quote(f"{start}=[{raw}]"), suggest(start, raw)
                way = "To sweep over them, add -m."
                if isinstance(sweep := override.value(), ChoiceSweep) and sweep.simple_form:
                    way += f" For a list: {listed}. For a string with a comma: {text}."
                mistakes.append(override_mistake(override, "has several values, but this is not a sweep", way))
            elif override.is_hydra_override():
                mistakes.append(override_mistake(override, "Hydra's own settings cannot be swept"))
            try:
                texts = list(override.sweep_string_iterator() if sampler is None else _search_values(override, sampler))
                values, _ = parse_overrides([f"{key}={value}" for value in texts])
            except (HydraException, ValueError) as error:
                mistakes.append(override_mistake(override, describe_error(error), code="syntax"))
                continue
            if not values:
                mistakes.append(override_mistake(override, "has no value", code="missing"))
                continue
            searched = sampler is not None
        axes[key if swept else str(at)] = Axis(key, values, searched)
    return list(axes.values()), mistakes


def _search_values(override: Override, sampler: str) -> Sequence[str]:
    """Return the values of a searched key as text: all that are listed, or the ends of a range or an interval.

    Args:
        override: The override that gives the key several values.
        sampler: The class by which the search chooses values.

    Raises:
        ValueError: if Optuna's sweeper does not support this kind of sweep.
    """
    sweep = override.value()
    if sampler.endswith(".GridSampler") and not isinstance(sweep, ChoiceSweep):
        raise ValueError("a grid search needs a list of values, such as choice(a,b)")
    if isinstance(sweep, IntervalSweep):
        return [str(sweep.start), str(sweep.end)]
    if isinstance(sweep, RangeSweep) and None not in (sweep.start, sweep.stop) and not sweep.shuffle:
        start, stop, step = sweep.start, sweep.stop, sweep.step
        if step <= 0 or stop < start:  # type: ignore[operator]
            raise ValueError("a search needs an ascending range")
        # Unlike Hydra's own sweeps, Optuna includes the end of a range.
        return [str(start), str(start + (stop - start) // step * step)]  # type: ignore[operator]
    if isinstance(sweep, (ChoiceSweep, RangeSweep)):
        return list(override.sweep_string_iterator())
    raise ValueError("a search does not support this kind of sweep; list the values instead: choice(a,b)")


def one_by_one(axes: Sequence[Axis]) -> Iterator[tuple[Override, ...]]:
    """Yield the default of a search, without the searched keys, and then with each value of each searched key alone."""
    default = tuple(value for axis in axes if not axis.searched for value in axis.values)
    yield default
    for axis in axes:
        if axis.searched:
            yield from ((*default, value) for value in axis.values)
