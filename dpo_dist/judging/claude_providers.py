"""Claude at Anthropic, Amazon Bedrock and Google Vertex AI, by the clients of Anthropic's SDK.

Credentials come from the providers' own chains: ANTHROPIC_API_KEY; AWS_BEARER_TOKEN_BEDROCK or what
boto3 finds (variables, profiles, roles); Google's application default credentials. They are never
in the run file.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeAlias

from dpo_dist.config import ClaudeConfig
from dpo_dist.errors import ConfigError, MissingDependency
from dpo_dist.system.console import ANTHROPIC_KEY, hide

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic, AsyncAnthropicBedrock, AsyncAnthropicVertex

    Client: TypeAlias = AsyncAnthropic | AsyncAnthropicBedrock | AsyncAnthropicVertex

BEDROCK_KEY = "AWS_BEARER_TOKEN_BEDROCK"
_AWS_SECRETS = (BEDROCK_KEY, "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_VERTEX_PROJECTS = ("ANTHROPIC_VERTEX_PROJECT_ID", "GOOGLE_CLOUD_PROJECT")

# What to check if the provider refuses the credentials.
CREDENTIALS = {
    "anthropic": ANTHROPIC_KEY,
    "bedrock": "the AWS credentials, and the account's access to the model",
    "vertex": "the Google credentials, and the project's access to the model",
}


def open_client(config: ClaudeConfig, timeout: float) -> Client:
    """The asynchronous client of the section's provider. Raises as `connection` does."""
    import anthropic

    kinds = {
        "anthropic": anthropic.AsyncAnthropic,
        "bedrock": anthropic.AsyncAnthropicBedrock,
        "vertex": anthropic.AsyncAnthropicVertex,
    }
    # Only our retry policy: the SDK would retry after a spend limit, and wait for weeks.
    client: Client = kinds[config.provider](
        base_url=config.base_url, max_retries=0, timeout=timeout, **connection(config)
    )
    return client


def connection(config: ClaudeConfig) -> dict[str, Any]:
    """The region, project and credentials for the provider's client; the SDK itself finds
    Anthropic's key and AWS's credentials. Raises `ConfigError` if one of them is missing, and
    `MissingDependency`."""
    match config.provider:
        case "anthropic":
            if not os.environ.get(ANTHROPIC_KEY):
                raise ConfigError(f"the Claude judge needs {ANTHROPIC_KEY}, which is not set")
            return {}
        case "bedrock":
            return {"aws_region": _bedrock_region(config)}
        case "vertex":
            credentials, project = _google_credentials()
            return {
                "region": _vertex_region(config),
                # The SDK needs it before it looks for credentials.
                "project_id": _vertex_project(config, project),
                "credentials": credentials,
            }


def _bedrock_region(config: ClaudeConfig) -> str:
    """The region. Raises `ConfigError` without credentials, too."""
    for variable in _AWS_SECRETS:
        hide(variable)
    named = (config.region, os.environ.get("AWS_REGION"), os.environ.get("AWS_DEFAULT_REGION"))
    region = next(filter(None, named), None)
    if region is None or not os.environ.get(BEDROCK_KEY):
        try:
            import boto3
            from botocore.exceptions import BotoCoreError
        except ImportError:
            raise MissingDependency("boto3", "bedrock") from None
        try:
            session = boto3.Session()
            region = region or session.region_name
            found = os.environ.get(BEDROCK_KEY) or session.get_credentials()
        except BotoCoreError as error:
            raise ConfigError(f"the Claude judge on Bedrock: {error}") from None
        if not found:
            raise ConfigError(
                "the Claude judge on Bedrock finds no AWS credentials: set AWS_PROFILE, "
                f"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or {BEDROCK_KEY}, or run on a "
                "machine with a role"
            )
    if region is None:
        raise ConfigError(
            "the Claude judge on Bedrock needs a region: set `region` in its section, or AWS_REGION"
        )
    return region


def _google_credentials() -> tuple[Any, str | None]:
    """(the application default credentials, their project)."""
    try:
        import google.auth
        from google.auth.exceptions import GoogleAuthError
    except ImportError:
        raise MissingDependency("google-auth", "vertex") from None
    try:
        found: tuple[Any, str | None] = google.auth.default(
            scopes=["https://www.googleapis.com/auth/cloud-platform"]
        )
    except GoogleAuthError as error:
        raise ConfigError(
            "the Claude judge on Vertex finds no Google credentials: run `gcloud auth "
            "application-default login`, or name a key file in GOOGLE_APPLICATION_CREDENTIALS "
            f"({error})"
        ) from None
    return found


def _vertex_region(config: ClaudeConfig) -> str:
    if region := config.region or os.environ.get("CLOUD_ML_REGION"):
        return region
    raise ConfigError(
        "the Claude judge on Vertex needs a region: set `region` in its section, such as "
        "`global`, or CLOUD_ML_REGION"
    )


def _vertex_project(config: ClaudeConfig, of_credentials: str | None) -> str:
    named = (config.project, *map(os.environ.get, _VERTEX_PROJECTS), of_credentials)
    if project := next(filter(None, named), None):
        return project
    raise ConfigError(
        f"the Claude judge on Vertex needs a project: set `project` in its section, or "
        f"{_VERTEX_PROJECTS[0]}"
    )
