"""The Dockerfile against what it copies, the locks, and the rules for what runs in a cluster.

No image is built here; a wheel is, from the files that the image's build would see.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dpo_dist.tools.launch.command import IN_IMAGE
from dpo_dist.tools.launch.kubernetes.pods import CACHES
from tests.conftest import ROOT

FINAL = ("cpu", "cuda")


@dataclass(frozen=True)
class Step:
    stage: str
    word: str
    rest: str


def steps() -> list[Step]:
    text = (ROOT / "Dockerfile").read_text()
    text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    found, stage = [], ""
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        word, _, rest = line.partition(" ")
        if word == "FROM":
            stage = rest.split(" AS ")[-1]
        found.append(Step(stage, word, " ".join(rest.split())))
    return found


STEPS = steps()
SOURCES = sorted(
    source
    for step in STEPS
    if step.word == "COPY" and "--from=" not in step.rest
    for source in [word for word in step.rest.split() if not word.startswith("--")][:-1]
)


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path from the build: the last pattern that matches decides."""
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = re.escape(line.removeprefix("!"))
        pattern = pattern.replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if re.match(rf"{pattern}(/|$)", path):
            out = not line.startswith("!")
    return out


def in_git(*paths: str) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--", *paths], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return listed.stdout.split()


def test_what_is_copied_is_there_and_reaches_the_build() -> None:
    assert "dpo_dist" in SOURCES
    for source in SOURCES:
        assert (ROOT / source).exists(), source
        files = in_git(source)
        assert files, source
        assert [file for file in files if ignored(file)] == []


@pytest.mark.parametrize(
    "path",
    [
        *(".git/HEAD", ".venv/bin/python", ".cache/models/a/model.safetensors", ".env"),
        *("runs/mine/train/model/x", "wandb/x", "tests/conftest.py", "docs/dpo.md", ".ci/run"),
        *("dpo_dist/__pycache__/cli.cpython-311.pyc", "recipes/a/__pycache__/b.pyc"),
        *("dpo_dist/.env", "recipes/mine/.env"),
    ],
)
def test_what_is_no_part_of_the_image_stays_out(path: str) -> None:
    assert ignored(path)


def test_every_final_stage_ends_as_a_numbered_user() -> None:
    used = {word for step in STEPS for word in re.findall(r"(?:--from=|from=)([a-z-]+)", step.rest)}
    stages = {step.stage for step in STEPS if step.stage}
    assert stages - used == set(FINAL)
    for stage in FINAL:
        users = [step.rest for step in STEPS if step.stage == stage and step.word == "USER"]
        uid, gid = users[-1].split(":")
        assert int(uid) > 0 and int(gid) > 0


@pytest.mark.parametrize("stage", FINAL)
def test_jobs_start_where_recipes_are(stage: str) -> None:
    [workdir] = [step.rest for step in STEPS if step.stage == stage and step.word == "WORKDIR"]
    assert Path(workdir) == IN_IMAGE
    copied = [step.rest for step in STEPS if step.stage == "workspace" and step.word == "COPY"]
    assert f"dpo_dist/recipes {workdir}/recipes" in copied
    assert f"dpo_dist/accelerate_configs {workdir}/accelerate_configs" in copied


@pytest.mark.parametrize("stage", FINAL)
def test_signals_reach_dpo_dist_and_nobody_else(stage: str) -> None:
    entry = [step.rest for step in STEPS if step.stage == stage and step.word == "ENTRYPOINT"]
    assert entry == ['["tini", "--", "dpo-dist"]']


@pytest.mark.parametrize("stage", FINAL)
def test_all_caches_are_in_the_folder_that_is_shared(stage: str) -> None:
    [environment] = [step.rest for step in STEPS if step.stage == stage and step.word == "ENV"]
    found = dict(re.findall(r"(\w+)=/cache/(\S+)", environment))
    assert found == CACHES


def test_nccl_finds_the_libraries_of_rdma() -> None:
    [installed] = [s.rest for s in STEPS if s.stage == "cuda" and "apt-get install" in s.rest]
    assert {"libibverbs1", "ibverbs-providers", "librdmacm1"} <= set(installed.split())


def test_no_key_can_be_built_in() -> None:
    given = [step.rest for step in STEPS if step.word in ("ARG", "ENV")]
    secret = re.compile(r"(?i)key|token|secret|passw|credential")
    assert given
    assert [text for text in given if secret.search(text)] == []


def test_every_base_has_a_version() -> None:
    bases = {step.rest.split()[0] for step in STEPS if step.word == "FROM"} - {"scratch"}
    assert len(bases) == 3
    for base in bases:
        assert re.search(r":\d+\.\d+\.\d+-", base), base


def lock(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / f"{name}.lock").read_text().split()
    return dict(line.split("==") for line in lines)


@pytest.mark.parametrize("name", FINAL)
def test_the_lock_holds_a_version_of_every_range(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras, locked = project["optional-dependencies"], lock(name)
    wanted = [*project["dependencies"], *extras[name], *extras["deepspeed"], *extras["qlora"]]
    for requirement in map(Requirement, wanted):
        held = locked[requirement.name.lower().replace("_", "-")]
        assert requirement.specifier.contains(held, prereleases=True), (requirement, held)


def test_python_and_cuda_are_those_of_the_locks() -> None:
    bases = {step.stage: step.rest.split()[0] for step in STEPS if step.word == "FROM"}
    recipe = (ROOT / "Makefile").read_text().split("\nlock:")[1]
    cpu, cuda = re.findall(r"--python-version (\d+\.\d+)", recipe)
    assert bases["cpu"] == bases["cpu-packages"] == bases["project"]
    assert bases["cpu"].startswith(f"python:{cpu}.")
    python_of_ubuntu = {"24.04": "3.12"}
    assert python_of_ubuntu[bases["cuda"].rpartition("ubuntu")[2]] == cuda
    runtime = ".".join(lock("cuda")["nvidia-cuda-runtime"].split(".")[:2])
    toolkit = {
        version
        for step in STEPS
        for version in re.findall(r"(?:nvidia/cuda:|local/cuda-)(\d+\.\d+)", step.rest)
    }
    packages = {
        f"{major}.{minor}"
        for step in STEPS
        for major, minor in re.findall(r"(?:cuda|lib)[a-z-]+-(\d+)-(\d+)\b", step.rest)
    }
    assert toolkit == packages == {runtime}


def test_the_image_s_wheel_holds_the_whole_package(tmp_path: Path) -> None:
    [copied] = [step.rest for step in STEPS if step.word == "COPY" and "pyproject" in step.rest]
    for name in [*copied.split()[:-1], "dpo_dist"]:
        for file in in_git(name):
            target = tmp_path / "src" / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, target)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--no-cache-dir", "--no-deps", "--quiet"),
            *("--no-build-isolation", "--wheel-dir", tmp_path, tmp_path / "src"),
        ],
        check=True,
        timeout=300,
    )
    [wheel] = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert set(in_git("dpo_dist")) <= held

    # Elsewhere, without a checkout, a configuration is found by its name.
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    (tmp_path / "empty").mkdir()
    code = (
        "from dpo_dist.config import Train; print(Train(accelerate_config='zero3').accelerate_file)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "empty",
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=True,
    )
    file = Path(done.stdout.strip())
    assert file == tmp_path / "installed" / "dpo_dist" / "accelerate_configs" / "zero3.yaml"
    assert file.is_file()
