"""What measured.js draws on the page from: throughput and parity."""

from __future__ import annotations

from typing import Any

from mteb_vllm.report.comparison import Comparison
from mteb_vllm.report.curves import throughput_curves
from mteb_vllm.report.reference_plot import LEAST_DIFFERENCE, places, tolerance


def measured_data(comparison: Comparison) -> dict[str, Any]:
    """The curves, bars and places; none where all points were run for their scores."""
    curves, left_out = throughput_curves(comparison)
    of_parity = [row for row in comparison.rows if row.point.parity is not None]
    drawn = places(comparison)
    return {
        "curves": [
            {
                "name": curve.name,
                "row": curve.row,
                "unit": curve.throughput.unit,
                "steps": [[step.batch_size, step.requests, step.p50, step.p90] for step in curve.throughput.steps],
                "requests": curve.throughput.requests,
                "tokens": curve.throughput.tokens,
                "roof": curve.throughput.roof,
                "share": curve.throughput.share,
            }
            for curve in curves
        ],
        "curvesLeftOut": left_out,
        "parity": [
            {
                "row": at,
                "tokens": tokens,
                "difference": difference,
                "passed": (said := comparison.rows[at].point.parity) is not None and said.passed,
                "of": (speed := comparison.rows[at].parity_speed) and speed.of,
            }
            for at, tokens, difference in drawn
        ],
        "parityLeftOut": len(of_parity) - len(drawn),
        "tolerance": tolerance(comparison),
        "leastDifference": LEAST_DIFFERENCE,
    }
