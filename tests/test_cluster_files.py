"""The files in `configs/cluster` against Ray's schema, and the RayJob against the fields of its definition."""

from importlib import resources

import pytest
import yaml

FILES = {f.name: f for f in (resources.files("configs") / "cluster").iterdir() if f.name.endswith(".yaml")}
# Of KubeRay's API reference, ray.io/v1.
RAY_JOB = {
    "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint", "entrypointNumCpus",
    "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata", "preRunningDeadlineSeconds",
    "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig",
    "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished",
}  # fmt: skip
RAY_CLUSTER = {
    "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec",
    "headServiceAnnotations", "managedBy", "rayVersion", "suspend", "upgradeStrategy", "workerGroupSpecs",
}  # fmt: skip
HEAD = {"enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType", "template"}
WORKERS = {
    "groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams", "replicas",
    "resources", "scaleStrategy", "suspend", "template",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(n for n in FILES if n != "kuberay_rayjob.yaml"))
def test_cluster_files_are_valid(name):
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    whole = fillout_defaults(yaml.safe_load(FILES[name].read_text()))  # as `ray up` does it
    validate_config(whole)
    assert whole["provider"]["type"] == "local" or whole["head_node_type"] in whole["available_node_types"]


def test_the_ray_job_has_only_fields_that_exist():
    job = yaml.safe_load(FILES["kuberay_rayjob.yaml"].read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    assert set(spec) <= RAY_JOB
    assert set(cluster) <= RAY_CLUSTER
    assert set(cluster["headGroupSpec"]) <= HEAD
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= WORKERS
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert {"groupName", "template", "rayStartParams"} <= set(group)
    yaml.safe_load(spec["runtimeEnvYAML"])


def test_the_ray_jobs_command_is_one_of_ours():
    from ollm_rl.config.compose import compose, preflight

    words = yaml.safe_load(FILES["kuberay_rayjob.yaml"].read_text())["spec"]["entrypoint"].split()
    assert words[:4] == ["python", "-m", "ollm_rl", "train"]
    preflight(compose(words[4:]))


def test_versions_are_the_pinned_ones():
    pinned = dict(
        line.split("==")
        for line in (resources.files("configs").parent / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    for file in FILES.values():
        text = file.read_text()
        assert "2.60.0" not in text or pinned["ray"] == "2.60.0"
        assert "torch==" not in text or f"torch=={pinned['torch']}" in text
