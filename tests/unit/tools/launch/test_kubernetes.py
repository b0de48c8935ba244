"""The manifests: valid for the API's own schemas, and what they let happen in a cluster."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainingRuntime, TrainerV1alpha1TrainJob

from dpo_dist.cli import parser
from dpo_dist.config.runfile import load_config
from dpo_dist.errors import ConfigError
from dpo_dist.runs.run import Run
from dpo_dist.tools.arguments import nodes_of
from dpo_dist.tools.launch.kubernetes.target import Kubernetes
from dpo_dist.tools.launch.layout import Layout, dns_name
from tests.conftest import ROOT

RUN_FILE = Path("recipes/incident_triage/run.yaml")
TRAINS = ("sft", "train")
# Two processes on each node.
OVERRIDES = tuple(
    f"{phase}.{setting}"
    for phase in TRAINS
    for setting in ("micro_batch_size=1", "accelerate_config=accelerate_configs/cpu_zero2.yaml")
)
CLUSTER = Kubernetes(image="registry.example/dpo-dist:0.1.0")
KUBEFLOW = {"TrainJob": TrainerV1alpha1TrainJob, "TrainingRuntime": TrainerV1alpha1TrainingRuntime}
VARIABLE = re.compile(r"\$\(([A-Z_]+)\)")


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def layout(
    run_file: Path = RUN_FILE, overrides: tuple[str, ...] = OVERRIDES, **more: Any
) -> Layout:
    run = Run(load_config(run_file, overrides))
    return Layout(run_file, run, overrides, workdir=Path("/workspace"), **more)


def manifests(cluster: Kubernetes = CLUSTER, **more: Any) -> list[dict]:
    files = cluster.files(layout(**more))
    texts = [text for name, text in files.items() if name.endswith(".yaml")]
    return [document for text in texts for document in yaml.safe_load_all(text)]


def job(documents: list[dict], stage: str) -> dict:
    """The Job of a stage, or its template in a TrainingRuntime."""
    [found] = [
        document
        for document in documents
        if document["metadata"]["labels"].get("app.kubernetes.io/component") == stage
        and document["kind"] in ("Job", "TrainingRuntime")
    ]
    if found["kind"] == "Job":
        return found
    [replicated] = found["spec"]["template"]["spec"]["replicatedJobs"]
    return replicated["template"]


def pods(documents: list[dict]) -> list[dict]:
    stages = {d["metadata"]["labels"].get("app.kubernetes.io/component") for d in documents} - {
        None
    }
    return [job(documents, stage)["spec"]["template"]["spec"] for stage in sorted(stages)]


BY_TRAINER = {"nodes": 2, "shards": 4}
LAYOUTS = {
    "one": (CLUSTER, {}),
    "trainjob": (CLUSTER, BY_TRAINER),
    "job": (replace(CLUSTER, trainer="job", namespace="research", pvc="theirs"), BY_TRAINER),
    "volume": (replace(CLUSTER, storage_class="nfs"), {"shards": 3}),
}


@pytest.mark.parametrize(("cluster", "more"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_manifest_is_one_of_the_api_s(cluster: Kubernetes, more: dict) -> None:
    kinds = set()
    for document in manifests(cluster, **more):
        kinds.add(document["kind"])
        if model := KUBEFLOW.get(document["kind"]):
            # The models drop what they do not know.
            assert model.from_dict(document).to_dict() == document
        else:
            newest = kubernetes_validate.latest_version()
            kubernetes_validate.validate(document, newest, strict=True)
    assert {"ConfigMap", "Job"} <= kinds
    assert ("TrainJob" in kinds) == (more is BY_TRAINER and cluster.trainer == "trainjob")
    assert ("PersistentVolumeClaim" in kinds) == (cluster.pvc is None)


def test_the_schemas_refuse_a_wrong_key() -> None:
    """What the test above relies on."""
    document = job(manifests(), "judge")
    document["spec"]["backofflimit"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize(("cluster", "more"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_pod_keeps_to_the_restricted_standard(cluster: Kubernetes, more: dict) -> None:
    for pod in pods(manifests(cluster, **more)):
        security = pod["securityContext"]
        assert security["runAsNonRoot"] and security["runAsUser"] == 10001
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod["automountServiceAccountToken"] and not pod["enableServiceLinks"]
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            resources = container["resources"]
            assert resources["requests"] == resources["limits"]
            assert {"cpu", "memory"} <= set(resources["limits"])
        kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
        assert kinds == {"persistentVolumeClaim", "configMap", "emptyDir"}


def test_keys_come_from_a_secret_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-not-to-be-seen")
    monkeypatch.setenv("HF_TOKEN", "hf_nottobeseen0123456789")
    cluster = replace(CLUSTER, secret="mine")
    assert not re.search("not-?to-?be-?seen", str(cluster.files(layout())))
    for pod in pods(manifests(cluster)):
        for variable in pod["containers"][0]["env"]:
            if re.search("KEY|TOKEN", variable["name"]):
                source = variable["valueFrom"]["secretKeyRef"]
                assert source == {"name": "mine", "key": variable["name"], "optional": True}
                assert "value" not in variable


@pytest.mark.parametrize("image", ["dpo-dist", "dpo-dist:latest", "host:5000/dpo-dist"])
def test_an_image_has_a_version(image: str) -> None:
    with pytest.raises(ConfigError, match="give its version"):
        Kubernetes(image=image)
    Kubernetes(image=f"host:5000/dpo-dist@sha256:{'0' * 64}")


def action(policy: dict, code: int) -> str:
    """What a policy does to a pod that ends with an exit code: the first rule that matches."""
    for rule in policy["rules"]:
        codes = rule.get("onExitCodes")
        if codes and codes["operator"] == "In" and code in codes["values"]:
            return rule["action"]
    return "Count"


def test_bad_input_fails_at_once_and_who_was_stopped_comes_again() -> None:
    documents = manifests(shards=4)
    for stage in ("sample", "evaluate", "judge", "train", "report"):
        spec = job(documents, stage)["spec"]
        assert spec["template"]["spec"]["restartPolicy"] == "Never"  # the policy needs it
        assert spec["podReplacementPolicy"] == "Failed"
        policy = spec["podFailurePolicy"]
        wanted = {2: "FailJob", 75: "Ignore", 143: "Ignore", 1: "Count", 137: "Count"}
        assert {code: action(policy, code) for code in wanted} == wanted
        conditions = [rule for rule in policy["rules"] if "onPodConditions" in rule]
        assert [rule["action"] for rule in conditions] == ["Ignore"]
    assert job(documents, "sample")["spec"]["backoffLimitPerIndex"] == 3
    assert job(documents, "train")["spec"]["backoffLimit"] == 3


@pytest.mark.parametrize("trainer", ["trainjob", "job"])
def test_nodes_that_train_together_start_again_together(trainer: str) -> None:
    spec = job(manifests(replace(CLUSTER, trainer=trainer), nodes=2), "train")["spec"]
    assert spec["backoffLimit"] == 0
    policy = spec["podFailurePolicy"]
    assert action(policy, 2) == "FailJob"
    # No pod is replaced alone: it would wait for the launch that the others have left.
    assert "Ignore" not in {rule["action"] for rule in policy["rules"]}


def failed(message: str, reason: str = "PodFailurePolicy") -> str:
    """What the JobSet of a training does when its job has failed, by JobSet's rules."""
    [runtime] = [d for d in manifests(nodes=2) if d["metadata"]["name"].endswith("-train")][:1]
    policy = runtime["spec"]["template"]["spec"]["failurePolicy"]
    for rule in policy["rules"]:
        patterns = rule["onJobFailureMessagePatterns"]
        if reason in rule["onJobFailureReasons"] and any(re.search(p, message) for p in patterns):
            return rule["action"]
    return "RestartJobSet"


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (2, "FailJobSet"),
        (75, "RestartJobSetAndIgnoreMaxRestarts"),
        (124, "RestartJobSetAndIgnoreMaxRestarts"),
        (143, "RestartJobSetAndIgnoreMaxRestarts"),
        (27, "RestartJobSet"),
    ],
)
def test_a_jobset_reads_the_exit_code_in_the_job_s_condition(code: int, outcome: str) -> None:
    # Kubernetes' own words, pkg/controller/job/pod_failure_policy.go
    words = f"Container node for pod ns/x-node-0-1 failed with exit code {code} matching FailJob"
    assert failed(f"{words} rule at index 0") == outcome


def test_other_failures_of_a_training() -> None:
    evicted = "Pod ns/x has condition DisruptionTarget matching FailJob rule at index 1"
    assert failed(evicted) == "RestartJobSetAndIgnoreMaxRestarts"
    assert failed("Job has reached ...", "BackoffLimitExceeded") == "RestartJobSet"


@pytest.mark.parametrize("trainer", ["trainjob", "job"])
def test_every_node_learns_its_rank_the_leader_and_the_launch(trainer: str) -> None:
    documents = manifests(replace(CLUSTER, trainer=trainer), nodes=2)
    name = job(documents, "train")["metadata"].get("name")
    pod = job(documents, "train")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    words = container["args"]
    options = dict(zip(words[-10::2], words[-9::2], strict=True))
    assert options["--nodes"] == "2"
    assert options["--launch-id"] == "$(LAUNCH_ID)"
    [launch] = [v for v in container["env"] if v["name"] == "LAUNCH_ID"]
    label = launch["valueFrom"]["fieldRef"]["fieldPath"]
    assert label == "metadata.labels['batch.kubernetes.io/controller-uid']"
    if trainer == "trainjob":
        assert container["name"] == "node"
        assert options["--main-address"] == "$(PET_MASTER_ADDR)"
        return
    assert options["--node-rank"] == "$(JOB_COMPLETION_INDEX)"
    [service] = [d for d in documents if d["kind"] == "Service" and d["metadata"]["name"] == name]
    assert options["--main-address"] == f"{name}-0.{pod['subdomain']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"]
    assert options["--main-port"] == str(service["spec"]["ports"][0]["port"])


@pytest.mark.parametrize("trainer", ["trainjob", "job"])
def test_nodes_are_checked_together_before_they_train(trainer: str) -> None:
    documents = manifests(replace(CLUSTER, trainer=trainer), nodes=2)
    pod = job(documents, "train")["spec"]["template"]["spec"]
    [places, check], [train] = pod["initContainers"], pod["containers"]
    assert check["args"][:2] == ["dpo-dist", "preflight"]
    assert check["args"][-10:] == train["args"][-10:]  # as which node of how many
    for key in ("image", "env", "resources", "volumeMounts", "workingDir"):
        assert places[key] == check[key] == train[key]
    if trainer == "trainjob":
        [runtime] = [d for d in documents if d["metadata"]["name"].endswith("-train")][:1]
        [told] = runtime["spec"]["mlPolicy"]["torch"]["envInjection"]["targets"]
        assert told == {"jobName": "node", "containerNames": ["preflight"]}


def test_a_node_alone_is_checked_before_it_trains() -> None:
    documents = manifests(shards=4)
    [check] = job(documents, "train")["spec"]["template"]["spec"]["initContainers"]
    assert check["args"][:2] == ["dpo-dist", "preflight"] and "--nodes" not in check["args"]
    assert "train.accelerate_config=/etc/dpo-dist/accelerate_train.yaml" in check["args"]
    for stage in ("judge", "sample"):
        assert "initContainers" not in job(documents, stage)["spec"]["template"]["spec"]


@pytest.mark.parametrize("trainer", ["trainjob", "job"])
def test_nodes_get_options_that_dpo_dist_takes(trainer: str) -> None:
    pod = job(manifests(replace(CLUSTER, trainer=trainer), nodes=2), "train")["spec"]["template"][
        "spec"
    ]
    given = {
        "PET_NODE_RANK": "1",
        "PET_MASTER_ADDR": "x-node-0-0.x",
        "PET_MASTER_PORT": "29500",
        "JOB_COMPLETION_INDEX": "1",
        "LAUNCH_ID": "7d5a3b1c-9a3e-4a53-8a0f-1f2e3d4c5b6a",
    }
    for container in (pod["initContainers"][1], pod["containers"][0]):
        words = [VARIABLE.sub(lambda name: given[name[1]], word) for word in container["args"]]
        nodes = nodes_of(parser().parse_args(words[1:]))
        assert nodes is not None
        assert (nodes.count, nodes.rank, nodes.port) == (2, 1, 29500)
        assert nodes.launch_id == given["LAUNCH_ID"]


def test_a_pod_waits_until_all_have_a_place() -> None:
    """Whoever waited in preflight would call it bad input, and fail the job for good."""
    documents = manifests(nodes=2)
    [train] = [
        d["metadata"]["name"] for d in documents if d["metadata"]["name"].endswith("-train")
    ][:1]
    words = job(documents, "train")["spec"]["template"]["spec"]["initContainers"][0]["args"]
    assert words[-2:] == [f"{train}-node-0-0.{train}", f"{train}-node-0-1.{train}"]
    assert words[0] == "timeout" and int(words[1]) >= 600

    def wait(*hosts: str) -> int:
        return subprocess.run(["timeout", "2", *words[2:-2], *hosts], check=False).returncode

    assert wait("localhost", "localhost") == 0
    assert wait("localhost", "absent.invalid") == 124
    policy = job(documents, "train")["spec"]["podFailurePolicy"]
    assert action(policy, 124) == "FailJob"  # its words let the JobSet start all of them again
    assert failed("Container places for pod x failed with exit code 124 matching") != "FailJobSet"


def test_no_service_is_called_vllm() -> None:
    documents = manifests(replace(CLUSTER, trainer="job"), nodes=2)
    names = [d["metadata"]["name"] for d in documents if d["kind"] == "Service"]
    assert names and not [name for name in names if name.startswith("vllm")]


def test_shards_are_numbered_by_the_job() -> None:
    spec = job(manifests(shards=4), "sample")["spec"]
    assert spec["completions"] == spec["parallelism"] == 4
    words = spec["template"]["spec"]["containers"][0]["args"]
    assert words[words.index("--shard") + 1] == "$(JOB_COMPLETION_INDEX)/4"


def test_every_command_is_one_of_dpo_dist() -> None:
    """With the variables replaced as the cluster replaces them."""
    seen = set()
    for pod in pods(manifests(shards=4)):
        words = [VARIABLE.sub("3", word) for word in pod["containers"][0]["args"]]
        assert words[0] == "dpo-dist"
        options = parser().parse_args(words[1:])
        seen.add(options.command)
        assert options.run_file == Path("/workspace") / RUN_FILE
        assert options.set[-1] == "run.output_dir=/shared/runs" or options.command in TRAINS
    assert seen == {"sft", "sample", "judge", "train", "evaluate", "report"}


def test_what_commands_name_is_mounted() -> None:
    documents = manifests(nodes=2)
    [settings] = [d for d in documents if d["kind"] == "ConfigMap"]
    assert settings["immutable"]
    assert settings["data"]["run.yaml"] == (ROOT / RUN_FILE).read_text()
    for pod in pods(documents):
        [container] = pod["containers"]
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert mounts[f"/workspace/{RUN_FILE}"]["subPath"] == "run.yaml"
        for word in container["args"]:
            if ".accelerate_config=" in word:
                folder, name = word.partition("=")[2].rsplit("/", 1)
                assert mounts[folder]["name"] == "settings" and name in settings["data"]
        assert {"configMap": {"name": settings["metadata"]["name"]}, "name": "settings"} in pod[
            "volumes"
        ]


def test_training_has_time_to_save() -> None:
    documents = manifests()
    grace = "terminationGracePeriodSeconds"
    assert job(documents, "train")["spec"]["template"]["spec"][grace] >= 600
    assert job(documents, "judge")["spec"]["template"]["spec"][grace] >= 30


def test_a_dollar_of_the_user_is_no_variable() -> None:
    overrides = (*OVERRIDES, "train.args={project: 'a$(HF_TOKEN)'}")
    for pod in pods(manifests(overrides=overrides)):
        words = pod["containers"][0]["args"]
        assert "train.args={project: 'a$$(HF_TOKEN)'}" in words


def test_other_settings_are_other_jobs() -> None:
    def names(**more: Any) -> set[str]:
        return {d["metadata"]["name"] for d in manifests(**more)}

    first, again = names(), names()
    other = names(overrides=(*OVERRIDES, "train.beta=0.3"))
    assert first == again
    assert first & other == {"incident-triage-runs"}  # the volume


def test_rounds_have_jobs_of_their_own(tmp_path: Path) -> None:
    overrides = (*OVERRIDES, "rounds={count: 2}")
    files = CLUSTER.files(layout(overrides=overrides))
    assert {"sample-1.yaml", "train-1.yaml", "sample-2.yaml", "train-2.yaml"} <= set(files)
    document = yaml.safe_load(files["train-2.yaml"])
    words = document["spec"]["template"]["spec"]["containers"][0]["args"]
    assert words[words.index("--round") + 1] == "2"


@pytest.mark.parametrize("name", ["7B_UltraFeedback.v2", "a" * 80, "x"])
def test_names_suit_kubernetes(name: str) -> None:
    overrides = (*OVERRIDES, f"run.name={name}", "rounds={count: 12}")
    for document in manifests(nodes=2, shards=4, overrides=overrides):
        given = document["metadata"]["name"]
        assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", given)
        longest = "-node-0-99-abcde" if document["kind"] == "TrainJob" else "-99999-abcde"
        assert len(given) <= 63 - (len(longest) if "Job" in document["kind"] else 0)


def test_dns_names() -> None:
    assert dns_name("Incident_Triage.v2") == "incident-triage-v2"
    assert dns_name("7B") == "run-7b"


def test_a_run_file_elsewhere_has_no_place_in_the_image(tmp_path: Path) -> None:
    copy = tmp_path / "run.yaml"
    copy.write_text((ROOT / RUN_FILE).read_text())
    with pytest.raises(ConfigError, match="outside the working directory"):
        CLUSTER.files(layout(copy))


def test_gpus_are_limited_and_tolerated(tmp_path: Path) -> None:
    accelerate = tmp_path / "zero2.yaml"
    text = (ROOT / "accelerate_configs" / "cpu_zero2.yaml").read_text()
    accelerate.write_text(text.replace("num_processes: 2", "num_processes: 8"))
    overrides = tuple(
        f"{phase}.{key}={value}"
        for phase in TRAINS
        for key, value in (
            ("accelerate_config", accelerate),
            ("micro_batch_size", 1),
            ("global_batch_size", 16),
        )
    )
    documents = manifests(overrides=overrides, nodes=2, gpus_per_node=8)
    limits = {
        stage: job(documents, stage)["spec"]["template"]["spec"]["containers"][0]["resources"][
            "limits"
        ]
        for stage in ("train", "sample", "judge")
    }
    assert limits["train"] == {"cpu": "64", "memory": "512Gi", "nvidia.com/gpu": "8"}
    assert limits["sample"] == {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "1"}
    assert limits["judge"] == {"cpu": "8", "memory": "64Gi"}
    assert job(documents, "sample")["spec"]["completions"] == 16
    [toleration] = job(documents, "train")["spec"]["template"]["spec"]["tolerations"]
    assert toleration == {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
