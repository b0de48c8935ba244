"""Claude on Bedrock and Vertex, by the SDK's own clients against a loopback server."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dpo_dist.config import ClaudeConfig
from dpo_dist.errors import ConfigError, JudgeFailed, MissingDependency
from dpo_dist.judging.build import build_judge
from dpo_dist.judging.claude import ClaudeJudge
from dpo_dist.judging.spend import open_ledger
from dpo_dist.storage.records import Ballot
from dpo_dist.system.console import scrub
from tests.anthropic_server import KEY, Fault, Server
from tests.contracts.test_judges import asked, comparison

BEDROCK_MODEL = "us.anthropic.claude-opus-4-7-v1:0"
VARIABLES = (
    *("ANTHROPIC_API_KEY", "AWS_BEARER_TOKEN_BEDROCK", "AWS_REGION", "AWS_DEFAULT_REGION"),
    *("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("CLOUD_ML_REGION", "ANTHROPIC_VERTEX_PROJECT_ID", "GOOGLE_CLOUD_PROJECT"),
    "GOOGLE_APPLICATION_CREDENTIALS",
)


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch, tmp_path: Path) -> None:
    """None of this machine's credentials are found, and none are searched for on the network."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_GCE_CHECK", "true")


def section(rubric: Path, provider: str, **more: Any) -> ClaudeConfig:
    values = {"type": "claude", "model": "m", "rubric": rubric, "provider": provider}
    return ClaudeConfig.model_validate(values | more)


def ask(config: ClaudeConfig) -> list[Ballot]:
    judge = ClaudeJudge(config, backoff_base=0.001)
    judge.check()
    return asked(judge, [comparison(0, "GOOD", "bad")])


def test_bedrock_with_its_own_key(server: Server, rubric: Path, monkeypatch) -> None:
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", KEY)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    server.provider = "bedrock"
    server.faults += [Fault(status=429), Fault(status=503)]
    config = section(rubric, "bedrock", model=BEDROCK_MODEL, base_url=server.url)
    (ballot,) = ask(config)
    assert ballot.outcome == "first" and ballot.answered_by == BEDROCK_MODEL
    assert ballot.usage["attempts"] == 3 and ballot.usage["input_tokens"] == 100
    assert server.paths == {f"/model/{BEDROCK_MODEL}/invoke"}
    assert KEY not in scrub(f"failed with {KEY}")


def test_bedrock_with_the_credentials_that_boto3_finds(
    server: Server, rubric: Path, tmp_path: Path, monkeypatch
) -> None:
    pytest.importorskip("boto3", reason="needs the extra `bedrock`")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text("[profile work]\nregion = eu-central-1\n")
    keys = "[work]\naws_access_key_id = AKIATEST\naws_secret_access_key = secret\n"
    (tmp_path / ".aws" / "credentials").write_text(keys)
    config = section(rubric, "bedrock", model=BEDROCK_MODEL, base_url=server.url)
    with pytest.raises(ConfigError, match="finds no AWS credentials: set AWS_PROFILE"):
        ask(config)
    monkeypatch.setenv("AWS_PROFILE", "absent")
    with pytest.raises(ConfigError, match=r"on Bedrock: The config profile \(absent\) could not"):
        ask(config)
    monkeypatch.setenv("AWS_PROFILE", "work")
    server.provider = "bedrock"
    (ballot,) = ask(config)
    assert ballot.outcome == "first"
    (signature,) = server.signatures
    assert "Credential=AKIATEST/" in signature and "/eu-central-1/bedrock/" in signature


@pytest.fixture
def google_key(server: Server, tmp_path: Path, monkeypatch) -> Path:
    """A service account's key file, whose tokens come from the loopback server."""
    pytest.importorskip("google.auth", reason="needs the extra `vertex`")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = tmp_path / "key.json"
    values = {
        "type": "service_account",
        "project_id": "mine",
        "client_email": "judge@mine.iam.gserviceaccount.com",
        "private_key": key.decode(),
        "token_uri": f"{server.url}/token",
    }
    path.write_text(json.dumps(values))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    return path


def test_vertex_with_application_default_credentials(
    server: Server, rubric: Path, google_key: Path
) -> None:
    server.provider = "vertex"
    config = section(rubric, "vertex", model="claude-opus-4-7", base_url=server.url)
    with pytest.raises(ConfigError, match=r"needs a region: set `region` in its section"):
        ask(config)
    (ballot,) = ask(config.model_copy(update={"region": "global"}))
    assert ballot.outcome == "first" and ballot.answered_by == "claude-opus-4-7"
    google_key.unlink()
    with pytest.raises(ConfigError, match="finds no Google credentials: run `gcloud auth"):
        ask(config)


def test_google_credentials_that_are_refused_stop_with_the_remedy(
    server: Server, rubric: Path, google_key: Path
) -> None:
    server.token_status = 400
    config = section(rubric, "vertex", region="global", base_url=server.url)
    with pytest.raises(JudgeFailed, match=r"credentials cannot be used \(RefreshError.*renew them"):
        ask(config)


@pytest.mark.parametrize(("status", "outcome"), [(403, "HTTP 403"), (404, "NotFoundError")])
def test_a_refusal_names_what_to_check(
    server: Server, rubric: Path, monkeypatch, status: int, outcome: str
) -> None:
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", KEY)
    server.provider = "bedrock"
    server.faults.append(Fault(status=status))
    with pytest.raises(JudgeFailed, match=outcome) as caught:
        ask(section(rubric, "bedrock", region="us-east-1", base_url=server.url))
    assert ("check the AWS credentials" in str(caught.value)) == (status == 403)


def test_a_key_for_bedrock_needs_a_region(rubric: Path, monkeypatch) -> None:
    pytest.importorskip("boto3", reason="needs the extra `bedrock`")
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", KEY)
    with pytest.raises(ConfigError, match="on Bedrock needs a region: set `region`"):
        build_judge(section(rubric, "bedrock"), rubric.parent)


@pytest.mark.parametrize(
    ("provider", "package", "module"),
    [("bedrock", "boto3", "boto3"), ("vertex", "google-auth", "google.auth")],
)
def test_a_missing_package_is_named_with_its_command(
    rubric: Path, monkeypatch, provider: str, package: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    with pytest.raises(MissingDependency, match=rf"^{package} is not installed.*'{package}[\[><]"):
        build_judge(section(rubric, provider, region="r"), rubric.parent)


@pytest.mark.parametrize(
    ("provider", "more", "message"),
    [
        ("bedrock", {"transport": "batch"}, "transport: batch needs provider: anthropic"),
        ("vertex", {"transport": "batch"}, "no message batches to vertex"),
        ("anthropic", {"region": "us-east-1"}, "`region` needs provider: bedrock or vertex"),
        ("bedrock", {"project": "mine"}, "`project` needs provider: vertex"),
        ("azure", {}, "Input should be 'anthropic', 'bedrock' or 'vertex'"),
        ("vertex", {"project": ""}, "at least 1 character"),
    ],
)
def test_what_a_provider_lacks_is_refused(rubric: Path, provider, more, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        section(rubric, provider, **more)


def test_a_provider_has_its_own_price_and_identity(rubric: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    anthropic, bedrock = (
        section(rubric, provider, model="claude-opus-4-7", max_usd=5)
        for provider in ("anthropic", "bedrock")
    )
    assert open_ledger(anthropic).usd == 0.0
    with pytest.raises(ConfigError, match="price of bedrock/claude-opus-4-7 is unknown"):
        open_ledger(bedrock)
    prices = "{input = 5.5, output = 27.5, cache_write = 6.9, cache_read = 0.55}"
    table = f'as_of = 2026-11-30\n[models]\n"bedrock/claude-opus-4-7" = {prices}\n'
    (tmp_path / "prices.toml").write_text(table)
    assert open_ledger(bedrock.model_copy(update={"prices": tmp_path / "prices.toml"})).usd == 0.0
    east, west = (bedrock.model_copy(update={"region": region}) for region in ("e", "w"))
    identities = [build_judge(config, tmp_path).identity for config in (anthropic, east, west)]
    assert identities[0] != identities[1] == identities[2], "a region is no other judge"
    assert not bedrock.key_variables and bedrock.paid and bedrock.sent is None
