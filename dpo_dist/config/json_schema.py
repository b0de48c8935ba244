"""The JSON schema of run.yaml, for editors."""

from __future__ import annotations

from pydantic import JsonValue

from dpo_dist.config import Config

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, JsonValue]:
    """The JSON schema of a run file, with a description of every key."""
    return {"$schema": DIALECT, **Config.model_json_schema()}
