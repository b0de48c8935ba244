"""The evaluation's win rates on verdicts with published figures.

    python -m benchmarks.win_rate --verdicts FILE [--json FILE]

FILE has a line `{"prompt_id", "preference", "len_model", "len_baseline"}` per prompt. The
preference is from 0 (the baseline) to 1 (the model), lengths are in characters. The published
figures are those of the 805 verdicts on one model of AlpacaEval's leaderboard. All figures are in
percent.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.figures import option_parser, publish
from dpo_dist.evaluation.statistics import points_mean, standard_error
from dpo_dist.evaluation.win_rate import length_controlled

PUBLISHED = {"win_rate": 29.92, "standard_error": 1.39, "length_controlled": 25.27}
WHY_THE_LENGTH_CONTROLLED_RATES_DIFFER = """
The model of the published length-controlled rate has two additional parts: the difficulty of each
of AlpacaEval's 805 prompts, fitted over all models of its leaderboard, and a penalty on the
coefficients. Difficulties are not available for other prompts; this model controls for length only.
"""


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--verdicts", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()
    found = figures(options.verdicts)
    published = {f"published_{name}": value for name, value in PUBLISHED.items()}
    publish({**found, **published}, options.json)
    print(WHY_THE_LENGTH_CONTROLLED_RATES_DIFFER)


def figures(path: Path) -> dict[str, float]:
    """The win rates in a file of verdicts, with their intervals, in percent."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    worth = {row["prompt_id"]: row["preference"] for row in rows}
    longer = {row["prompt_id"]: row["len_model"] - row["len_baseline"] for row in rows}
    raw, controlled = points_mean(worth, seed=17), length_controlled(worth, longer)
    error = standard_error({prompt: [value] for prompt, value in worth.items()})
    shares = {
        "win_rate": raw.mean,
        "win_rate_low": raw.low,
        "win_rate_high": raw.high,
        "standard_error": error,
        "length_controlled": controlled.mean,
        "length_controlled_low": controlled.low,
        "length_controlled_high": controlled.high,
    }
    return {name: 100 * share for name, share in shares.items() if share is not None}


if __name__ == "__main__":
    main()
