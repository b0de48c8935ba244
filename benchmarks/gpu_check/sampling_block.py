"""vLLM in a process of step 9: the time of all requests, by the kind of outputs."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main(path: str) -> None:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import RequestOutputKind

    settings = json.loads(Path(path).read_text())
    longest = max(map(len, settings["prompts"])) + settings["length"]
    options: dict[str, Any] = {"gpu_memory_utilization": 0.5}
    if not settings["on_gpu"]:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        options = {"enforce_eager": True}
    llm = LLM(
        model=settings["model"],
        dtype="bfloat16",
        max_model_len=longest + 16,
        max_num_seqs=settings["requests"],
        enable_lora=True,
        max_lora_rank=16,
        **options,
    )
    adapter = LoRARequest("adapter", 1, settings["adapter"])
    kinds = {
        "warm-up": RequestOutputKind.FINAL_ONLY,
        "every output": RequestOutputKind.CUMULATIVE,
        "final outputs only": RequestOutputKind.FINAL_ONLY,
    }

    def answers(kind: Any, lora: Any, name: str) -> dict[str, list[int]]:
        sampling = SamplingParams(
            temperature=0.0, max_tokens=settings["length"], ignore_eos=True, output_kind=kind,
            detokenize=True,
        )  # fmt: skip
        for number, prompt in enumerate(settings["prompts"]):
            llm.llm_engine.add_request(
                f"{name}-{number}", {"prompt_token_ids": prompt}, sampling, lora_request=lora
            )
        found = {}
        while llm.llm_engine.has_unfinished_requests():
            for output in llm.llm_engine.step():
                if output.finished:
                    number = output.request_id.split("-")[-1]
                    found[number] = list(output.outputs[0].token_ids)
        return found

    figures: dict[str, Any] = {"kinds": {}}
    for name, kind in kinds.items():
        started = time.perf_counter()
        found = answers(kind, adapter, name.replace(" ", "_"))
        seconds = time.perf_counter() - started
        if name != "warm-up":
            figures["kinds"][name] = {"seconds": seconds, "tokens": sum(map(len, found.values()))}
    base = answers(RequestOutputKind.FINAL_ONLY, None, "base")
    figures["changed"] = sum(base[n] != found[n] for n in base) / len(base)
    Path(settings["out"]).write_text(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1])
