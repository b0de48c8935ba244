"""Our requests to `vllm serve`, and the loopback's answers, in vLLM's own classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpo_dist.config import Sampling
from dpo_dist.generation.engine import Request
from dpo_dist.generation.replica import completion_body
from dpo_dist.generation.vllm_engine import _sampling_params
from tests.vllm_server import BODY, Fault, serve

pytestmark = pytest.mark.slow  # vLLM takes ten seconds to import

SETTINGS = [
    Sampling(temperature=0.0),
    Sampling(temperature=0.7),
    Sampling(temperature=1.2, top_p=0.9, top_k=40, min_p=0.05),
]


@pytest.mark.parametrize("seed", [None, 2**63 - 1])
@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_a_server_samples_as_the_engine_in_this_process_does(
    sampling: Sampling, seed: int | None
) -> None:
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    asked = Request("r", (5, 6), sampling, 17, seed=seed)
    body = completion_body("model", asked, [2, 5])
    assert body.keys() - {"seed"} == BODY <= CompletionRequest.model_fields.keys()
    read = CompletionRequest.model_validate(json.loads(json.dumps(body)))
    assert (read.prompt, read.return_token_ids, read.model) == ([5, 6], True, "model")
    # A model's generation_config.json, which the server takes as its defaults.
    defaults = {"temperature": 0.3, "top_p": 0.5, "top_k": 3, "min_p": 0.2}
    defaults |= {"repetition_penalty": 1.3, "presence_penalty": 1.0, "frequency_penalty": 1.0}
    got, wanted = read.to_sampling_params(17, defaults), _sampling_params(asked, [2, 5])
    got.output_kind = wanted.output_kind  # whole answers: in one piece, or as it comes
    assert repr(got) == repr(wanted)


def test_the_loopback_answers_in_vllm_s_form(tmp_path: Path) -> None:
    from vllm.entrypoints.openai.completion.protocol import CompletionResponse
    from vllm.entrypoints.serve.engine.protocol import ModelList
    from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

    body = completion_body("model", Request("r", (5, 6), SETTINGS[1], 17), [2, 5])
    with serve(adapters={"sft": tmp_path}) as (server,):
        said = CompletionResponse.model_validate(server.completion(body, Fault()))
        cards = ModelList.model_validate({"object": "list", "data": server.cards})
    assert not said.model_extra and not said.choices[0].model_extra
    assert said.choices[0].prompt_token_ids == [5, 6]
    assert [(card.id, card.parent) for card in cards.data] == [("model", None), ("sft", "model")]
    assert not any(card.model_extra for card in cards.data)
    assert {"lora_name", "lora_path"} <= LoadLoRAAdapterRequest.model_fields.keys()
