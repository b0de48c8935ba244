"""Complete parts of figures as JSON values, from which tests build figures."""

from __future__ import annotations

from typing import Any

from dpo_dist.evaluation.scores import MetricRow, Scores
from dpo_dist.reporting.figures import MetricLine
from dpo_dist.storage.figures import parse_figures

Values = dict[str, Any]


def estimate(
    n: int, mean: float | None, low: float | None = None, high: float | None = None
) -> Values:
    return {"n": n, "mean": mean, "low": low, "high": high}


def win_rate(rate: Values, **changes: Any) -> Values:
    """The win rate of SFT+DPO over SFT, from its estimate."""
    return {
        **{"decoding": 0, "a": "dpo", "b": "sft", **rate},
        **{"wins": 8, "losses": 6, "ties": 4, "inconsistent": 2, "missing": {}},
        **{"worst": rate["mean"], "best": rate["mean"], "p": 0.26, "p_holm": 0.79},
        **{"detectable": 0.31, "length_controlled": None, "note": "", **changes},
    }


def metric_row(**changes: Any) -> Values:
    """A row of the metric `m` at the first decoding."""
    return {
        **{"metric": "m", "label": "Severity match", "unit": "share", "better": "higher"},
        **{"judged": False, "decoding": 0, "missing": {}},
        "arms": {
            "base": estimate(20, 0.1, 0.03, 0.3),
            "sft": estimate(20, 0.25, 0.11, 0.47),
            "dpo": estimate(20, 0.5, 0.3, 0.7),
        },
        "delta": estimate(20, 0.25, 0.05, 0.45),
        **changes,
    }


def decoding(temperature: float, **changes: Any) -> Values:
    nothing = {"top_p": 1.0, "top_k": None, "min_p": 0.0, "max_tokens": None}
    return {"temperature": temperature, **nothing, **changes}


def lengths(sft: float, delta: Values, **changes: Any) -> Values:
    """Lengths in characters: SFT's mean, and the difference of SFT+DPO."""
    arms = {"sft": estimate(delta["n"], sft, sft - 20, sft + 20)}
    return {
        "unit": "characters",
        "arms": arms,
        "delta": {"p": None, "test": None, **delta},
        **changes,
    }


SCORES: Values = {
    "decodings": [decoding(0.7), decoding(0.0)],
    "arms": ["base", "sft", "dpo"],
    "arm_labels": {"base": "Base", "sft": "SFT", "dpo": "SFT+DPO"},
    "metrics": [metric_row(), metric_row(decoding=1)],
    "preferred": win_rate(estimate(20, 0.55, 0.4, 0.7)),
    "pairwise": [],
    "length": lengths(200, estimate(20, 4, -3, 11)),
    "ranking": None,
    "outcome": {"outcome": "no_evidence", "reasons": ["so it is"], "guarded": ["Severity match"]},
}


def scores(**changes: Any) -> Scores:
    return parse_figures({**SCORES, **changes}, Scores, "test")


def row(**changes: Any) -> MetricRow:
    return parse_figures(metric_row(**changes), MetricRow, "test")


def training(**changes: Any) -> Values:
    return {
        **{"steps": 20, "selected_step": 20, "pairs": {"train": 90, "validation": 8}},
        **{"beta": 0.1, "kl_budget": None, "reference": "SFT"},
        **{"first_loss": 0.69312, "loss": 0.6, "validation_loss": 0.65},
        "accuracy": estimate(8, 0.75, 0.41, 0.93),
        "margin": {"first": 0.0, "last": 1.5},
        "kl": kl(0.0664, se=0.012, step=18),
        **{"alarms": [], "wall_seconds": 61.4, "peak_rss_bytes": 2**30},
        **changes,
    }


def kl(per_token: float, **changes: Any) -> Values:
    return {
        "step": 20,
        "per_token": per_token,
        "se": 0.01,
        "answers": 16,
        "cut_off": 0.0,
        **changes,
    }


def evaluation(**changes: Any) -> Values:
    return {
        "decoding": decoding(0.7),
        "preferred": win_rate(estimate(20, 0.55, 0.4, 0.7)),
        "length": lengths(60, estimate(64, -3.0, -5.0, -1.0)),
        "cut_off": estimate(64, 0.125, 0.06, 0.23),
        **changes,
    }


def metric_lines(*lines: Values) -> list[MetricLine]:
    """Lines of metrics.jsonl, of their values; an alarm's line has none."""
    return [
        MetricLine(line["step"], {k: v for k, v in line.items() if k != "step"}) for line in lines
    ]
