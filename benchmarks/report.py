"""Size and loading time of the report's page, and the cost of reporting a large evaluation.

    python -m benchmarks.report [--quick] [--json FILE]

Synthetic runs of three arms with answers of about 100 words and prompts of 120, two metrics and a
length, and a judge:

- page_mb_500: megabytes of a page that shows the answers to 500 prompts side by side;
- page_open_seconds_500: seconds until Chromium's load event (median of five), if it is installed;
- report_seconds_10k, report_peak_rss_mib_10k: building all formats for 10,000 prompts, in a
  separate process.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import option_parser, publish
from dpo_dist.config import Config, Sampling
from dpo_dist.evaluation.comparison import summarise
from dpo_dist.evaluation.scores import HEADLINE
from dpo_dist.metrics import build_metrics
from dpo_dist.runs.manifests import EvaluateManifest
from dpo_dist.storage.artifacts import write_records
from dpo_dist.storage.figures import write_figures
from dpo_dist.storage.manifest import Counts
from dpo_dist.storage.records import Generation, Message, Prompt, Score, Verdict

ARMS = ("base", "sft", "dpo")
DECODINGS = (Sampling(temperature=0.0),)
SHARES = {"json_schema": (0.2, 0.8, 0.9), "label_match:severity": (0.2, 0.5, 0.6)}
SECTIONS = (
    {"type": "json_schema", "schema_path": "recipes/incident_triage/answer.schema.json"},
    {"type": "label_match", "field": "severity"},
    {"type": "length", "unit": "characters"},
)
VOCABULARY = tuple(f"word{number}" for number in range(400))


def main() -> None:
    options = _options()
    if options.build is not None:
        return _build(options.build, options.samples)
    small, large = (50, 200) if options.quick else (500, 10_000)
    with tempfile.TemporaryDirectory() as folder:
        few, many = Path(folder) / "few", Path(folder) / "many"
        write_run(few, small)
        _measured(few, small)
        page = few / "report" / "report.html"
        figures = {"page_mb_500": page.stat().st_size / 1e6}
        if (chromium := shutil.which("chromium")) is not None:
            figures["page_open_seconds_500"] = opening_seconds(chromium, page)
        write_run(many, large)
        seconds, peak = _measured(many, Config.model_fields["report"].default.samples)
        figures |= {"report_seconds_10k": seconds, "report_peak_rss_mib_10k": peak}
    publish(figures, options.json)


def write_run(root: Path, prompts: int) -> None:
    """Write the records of an evaluation that the report reads."""
    draw = random.Random(0)
    config = _config(1)
    assert config.evaluate is not None
    metrics = build_metrics(config.evaluate.metrics)
    evaluate = root / "evaluate"
    names = [f"prompt-{number}" for number in range(prompts)]
    write_records(
        evaluate / "prompts.jsonl",
        (
            Prompt(
                id=name,
                messages=(Message(role="user", content=_text(draw, 120)),),
                reference={"severity": "SEV1"},
            )
            for name in names
        ),
    )
    lengths: dict[str, dict[str, int]] = {arm: {} for arm in ARMS}
    write_records(evaluate / "generations.jsonl", _answers(draw, names, lengths))
    scores = [
        Score(prompt_id=name, arm=arm, decoding=0, metric=metric, value=draw.random() < share)
        for metric, shares in SHARES.items()
        for arm, share in zip(ARMS, shares, strict=True)
        for name in names
    ]
    scores += [
        Score(prompt_id=name, arm=arm, decoding=0, metric="length:characters", value=length)
        for arm, by_prompt in lengths.items()
        for name, length in by_prompt.items()
    ]
    write_records(evaluate / "scores.jsonl", scores)
    verdicts = [_verdict(draw, name) for name in names]
    write_records(evaluate / "verdicts.jsonl", verdicts)
    compared = {HEADLINE: verdicts}
    summary = summarise(metrics, scores, compared, ARMS, DECODINGS, 17, lengths=lengths)
    write_figures(evaluate / "scores.json", summary)
    manifest = EvaluateManifest(
        phase="evaluate",
        counts=Counts(received=prompts, kept=prompts),
        wall_seconds=60,
        seed=17,
        versions={},
        git=None,
        config=config.dump(),
        generations=len(ARMS) * prompts,
        engines=("synthetic",),
        cut_off=0,
        judge="synthetic",
        judge_scores=(),
    )
    write_figures(evaluate / "manifest.json", manifest)


def opening_seconds(chromium: str, page: Path) -> float:
    """From the start of the navigation to the end of the load event."""
    from playwright.sync_api import sync_playwright

    seconds: list[float] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        for _ in range(5):
            tab = browser.new_page()
            tab.goto(page.as_uri())
            entry = "performance.getEntriesByType('navigation')[0].loadEventEnd"
            seconds.append(tab.evaluate(entry) / 1000)
            tab.close()
        browser.close()
    return statistics.median(seconds)


def _options() -> argparse.Namespace:
    parser = option_parser(__doc__)
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)  # the measured process
    parser.add_argument("--samples", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def _measured(root: Path, samples: int) -> tuple[float, float]:
    """(seconds, peak RSS in MiB) of building the report in a new process, including imports."""
    command = [sys.executable, "-m", "benchmarks.report", "--build", str(root)]
    done = subprocess.run(
        [*command, "--samples", str(samples)], check=True, capture_output=True, text=True
    )
    seconds, peak = (float(figure) for figure in done.stdout.split())
    return seconds, peak


def _build(root: Path, samples: int) -> None:
    import resource
    import time

    from dpo_dist.reporting.build import build
    from dpo_dist.runs.run import Run

    started = time.monotonic()
    config = _config(samples)
    run = config.run.model_copy(update={"output_dir": root.parent, "name": root.name})
    build(Run(config.model_copy(update={"run": run})), root / "report")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(time.monotonic() - started, peak)


def _config(samples: int) -> Config:
    return Config.model_validate(
        {
            "run": {"name": "synthetic"},
            "model": {"base": "m"},
            "preferences": {"source": "path", "path": "p.jsonl"},
            "evaluate": {
                "prompts": {"path": "e.jsonl"},
                "engine": {"type": "hf"},
                "metrics": SECTIONS,
            },
            "report": {"samples": samples},
        }
    )


def _text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choices(VOCABULARY, k=words))


def _answers(
    draw: random.Random, names: list[str], lengths: dict[str, dict[str, int]]
) -> Iterator[Generation]:
    """Answers; a fifth of the words of sft's answer differ in dpo's. Fills `lengths`."""
    before: dict[str, list[str]] = {}
    for arm in ARMS:
        for name in names:
            words = draw.choices(VOCABULARY, k=draw.randint(70, 130))
            if arm == "sft":
                before[name] = words
            if arm == "dpo":
                words = [
                    w if draw.random() > 0.2 else draw.choice(VOCABULARY) for w in before[name]
                ]
            text = " ".join(words)
            lengths[arm][name] = len(text)
            yield Generation(
                prompt_id=name,
                arm=arm,
                decoding=0,
                text=text,
                token_ids=tuple(range(2 * len(words))),
                finish_reason="length" if draw.random() < 0.05 else "stop",
                engine="synthetic",
            )


def _verdict(draw: random.Random, name: str) -> Verdict:
    if draw.random() < 0.2:
        return Verdict(prompt_id=name, between=HEADLINE, outcome="tie")
    better, worse = ("dpo", "sft") if draw.random() < 0.6 else ("sft", "dpo")
    return Verdict(
        prompt_id=name, between=HEADLINE, outcome="preferred", preferred=better, other=worse
    )


if __name__ == "__main__":
    main()
