"""`make check-infra` finds a planted fault of every kind; without one it finds nothing."""

from __future__ import annotations

import copy
import re
import subprocess
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.checks import agreement, costs, custom_resources, manifests, policy, profiles, terraform
from infra.checks.check import ROOT, Check

KUBERNETES = ROOT / "infra" / "kubernetes"
TERRAFORM = ROOT / "infra" / "terraform"

Object = dict[str, Any]
Fault = Callable[[list[Object]], None]


def load(*folders: str) -> list[Object]:
    """Objects as they stand in the files, which is near enough to what kustomize makes of them."""
    paths = [path for folder in folders for path in sorted((KUBERNETES / folder).glob("*.yaml"))]
    found = [item for path in paths for item in manifests.documents(path.read_text("utf-8"))]
    settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mlflow-settings", "namespace": "mlflow"}}
    return [item for item in found if item["kind"] != "Kustomization"] + [settings]


@pytest.fixture(scope="module")
def prod() -> list[Object]:
    objects = load("base", "overlays/prod")
    for item in objects:
        if item["kind"] == "Deployment":
            item["spec"]["template"]["spec"]["containers"][0]["image"] += ":1"
    return objects


def faults(checks: Iterable[Check]) -> list[str]:
    return [text for check in checks for text in check.faults]


def one(objects: list[Object], kind: str, name: str) -> Object:
    return next(item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name)


def pod(objects: list[Object]) -> Object:
    return dict(one(objects, "Deployment", "mlflow")["spec"]["template"]["spec"])


def runtime_job(objects: list[Object]) -> Object:
    template = one(objects, "ClusterTrainingRuntime", "mmbert-torch")["spec"]["template"]
    return dict(template["spec"]["replicatedJobs"][0]["template"])


def test_the_manifests_have_no_fault(prod: list[Object]) -> None:
    assert faults(policy.policy_checks("prod", prod)) == []
    assert faults(manifests.schema_checks("prod", prod)) == []
    assert faults(agreement.agreement_checks(TERRAFORM, prod)) == []


def container_change(**changes: Any) -> Fault:
    return lambda objects: pod(objects)["containers"][0].update(changes)


def security_change(**changes: Any) -> Fault:
    return lambda objects: pod(objects)["containers"][0]["securityContext"].update(changes)


@pytest.mark.parametrize(
    ("rule", "plant", "said"),
    [
        ("pods are restricted", security_change(privileged=True), "it is privileged"),
        ("pods are restricted", security_change(readOnlyRootFilesystem=False), "readOnlyRootFilesystem"),
        ("pods are restricted", security_change(capabilities={}), "capabilities must drop ALL"),
        ("pods are restricted", security_change(runAsNonRoot=False), "runAsNonRoot"),
        (
            "pods are restricted",
            lambda objects: pod(objects)["volumes"].append({"name": "x", "hostPath": {}}),
            "hostPath",
        ),
        (
            "namespaces are restricted",
            lambda objects: one(objects, "Namespace", "mmbert")["metadata"].update(labels={}),
            "Namespace mmbert",
        ),
        (
            "networks are closed",
            lambda objects: objects.remove(one(objects, "NetworkPolicy", "default-deny")),
            "Namespace mmbert: no NetworkPolicy denies everything",
        ),
        (
            "networks are closed",
            lambda objects: one(objects, "NetworkPolicy", "trainers")["spec"]["egress"].append({}),
            "egress is open for all",
        ),
        (
            "networks are closed",
            lambda objects: one(objects, "NetworkPolicy", "dns-and-https")["spec"]["egress"][1]["to"][0]["ipBlock"].pop(
                "except"
            ),
            "169.254.169.254",
        ),
        (
            "rights are the least",
            lambda objects: one(objects, "Role", "mmbert-launcher")["rules"][0].update(resources=["secrets"]),
            "rights to secrets",
        ),
        (
            "rights are the least",
            lambda objects: one(objects, "Role", "mmbert-launcher").update(kind="ClusterRole"),
            "rights in the whole cluster",
        ),
        (
            "rights are the least",
            lambda objects: one(objects, "Role", "mmbert-launcher")["rules"][0].update(apiGroups=["*"]),
            "a wildcard",
        ),
        (
            "tokens are for those with rights",
            lambda objects: one(objects, "ServiceAccount", "mmbert-component").pop("automountServiceAccountToken"),
            "automountServiceAccountToken must be false",
        ),
        (
            "secrets are references",
            container_change(env=[{"name": "MLFLOW_AUTH_ADMIN_PASSWORD", "value": "12345678"}]),
            "MLFLOW_AUTH_ADMIN_PASSWORD is written out",
        ),
        (
            "secrets are references",
            lambda objects: objects.append({"kind": "Secret", "metadata": {"name": "x"}}),
            "a Secret with its values",
        ),
        (
            "memory and objects are bounded",
            container_change(resources={"requests": {"memory": "1Gi"}}),
            "memory's request",
        ),
        (
            "memory and objects are bounded",
            lambda objects: objects.remove(one(objects, "ResourceQuota", "objects")),
            "Namespace mmbert: it has no ResourceQuota",
        ),
        (
            "services are inner",
            lambda objects: one(objects, "Service", "mlflow")["spec"].update(type="LoadBalancer"),
            "open to the outside",
        ),
        (
            "what is named is there",
            lambda objects: objects.remove(one(objects, "PriorityClass", "mmbert-training")),
            "there is no PriorityClass mmbert-training",
        ),
        (
            "what is named is there",
            lambda objects: objects.remove(one(objects, "ResourceFlavor", "mmbert-h100")),
            "there is no ResourceFlavor mmbert-h100",
        ),
        (
            "what is named is there",
            lambda objects: one(objects, "Service", "mlflow")["spec"].update(selector={"app": "x"}),
            "it chooses no pod",
        ),
        (
            "training's failure policy",
            lambda objects: runtime_job(objects)["spec"]["podFailurePolicy"]["rules"].reverse(),
            "podFailurePolicy is",
        ),
        (
            "training's failure policy",
            lambda objects: one(objects, "ClusterTrainingRuntime", "mmbert-torch")["spec"]["template"]["spec"][
                "failurePolicy"
            ].update(rules=[]),
            "must fail the set at PodFailurePolicy",
        ),
        (
            "training's failure policy",
            lambda objects: one(objects, "ClusterTrainingRuntime", "mmbert-torch")["spec"]["template"]["spec"].update(
                ttlSecondsAfterFinished=86400
            ),
            "starts what failed again",
        ),
        ("images are pinned", container_change(image="mmbert-mlflow:latest"), "neither digest nor tag"),
    ],
)
def test_a_policy_finds_its_fault(prod: list[Object], rule: str, plant: Fault, said: str) -> None:
    objects = copy.deepcopy(prod)
    plant(objects)
    assert said in "\n".join(policy.RULES[rule](objects))


def test_every_policy_has_a_planted_fault() -> None:
    (marks,) = (mark for mark in test_a_policy_finds_its_fault.pytestmark if mark.name == "parametrize")  # type: ignore[attr-defined]
    assert {case[0] for case in marks.args[1]} == set(policy.RULES)


@pytest.mark.parametrize(
    ("kind", "name", "plant", "said"),
    [
        ("Deployment", "mlflow", lambda item: item["spec"].update(replica=2), "replica"),
        ("Deployment", "mlflow", lambda item: item["spec"].update(replicas="two"), "replicas"),
        ("NetworkPolicy", "trainers", lambda item: item["spec"].update(policyType=["Ingress"]), "policyType"),
        ("ClusterQueue", "mmbert-h100", lambda item: item["spec"].update(cohort="all"), "'cohort' was unexpected"),
        ("ClusterQueue", "mmbert-h100", lambda item: item["spec"].update(queueingStrategy="FIFO"), "queueingStrategy"),
        (
            "ClusterQueue",
            "mmbert-h100",
            lambda item: item["spec"]["resourceGroups"][0]["coveredResources"].reverse(),
            "must be the covered ones",
        ),
        ("ResourceFlavor", "mmbert-h100", lambda item: item["spec"].pop("nodeLabels"), "at least one nodeLabel"),
        ("Topology", "mmbert-aws", lambda item: item["spec"]["levels"].reverse(), "hostname can only be the last"),
        ("LocalQueue", "mmbert-h100", lambda item: item["spec"].pop("clusterQueue"), "'clusterQueue' is a required"),
        (
            "ExternalSecret",
            "mlflow-server",
            lambda item: item["spec"].update(refreshInterval="daily"),
            "refreshInterval",
        ),
        ("ClusterSecretStore", "mmbert", lambda item: item["spec"]["provider"]["aws"].pop("region"), "'region' is a"),
        (
            "ClusterTrainingRuntime",
            "mmbert-torch",
            lambda item: item["spec"]["mlPolicy"]["torch"].update(numProcPerNode="gpu"),
            "numProcPerNode",
        ),
        (
            "ClusterTrainingRuntime",
            "mmbert-torch",
            lambda item: item["spec"]["template"]["spec"]["failurePolicy"]["rules"][0].update(action="Fail"),
            "action",
        ),
        (
            "ClusterTrainingRuntime",
            "mmbert-torch",
            lambda item: runtime_job([item])["spec"]["podFailurePolicy"]["rules"][0].update(actions="Ignore"),
            "replicatedJobs node: spec.podFailurePolicy",
        ),
    ],
)
def test_a_schema_finds_its_fault(
    prod: list[Object], kind: str, name: str, plant: Callable[[Object], Any], said: str
) -> None:
    item = copy.deepcopy(one(prod, kind, name))
    plant(item)
    assert said in "\n".join(manifests.schema_faults(item))


def test_a_custom_resource_that_is_not_listed_is_told() -> None:
    item = {"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "ClusterQueue", "metadata": {"name": "x"}, "spec": {}}
    assert "its fields are not listed" in custom_resources.faults(item)[0]


PROFILE = """
kubernetes:
  namespace: mmbert
  service_account: mmbert-component
  training: trainer
  training_runtime: mmbert-torch
  classes:
    train: {queue: mmbert-h100, priority: mmbert-training, node_selector: {mmbert.dev/pool: h100}}
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("", "", ""),
        ("mmbert-h100", "mmbert-h200", "classes.train.queue is mmbert-h200"),
        ("mmbert-training", "high", "classes.train.priority is high"),
        ("mmbert-torch", "torch", "training_runtime is torch"),
        ("pool: h100", "pool: h200", "classes.train.node_selector"),
        ("mmbert-component", "default", "service_account is default"),
    ],
)
def test_a_profile_is_held_to_what_there_is(prod: list[Object], tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(PROFILE.replace(old, new) if old else PROFILE, "utf-8")
    found = profiles.profile_check(path, prod).faults
    assert (not found) if not said else said in "\n".join(found)


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("memory", "data", 96, "class data: 1 of its pods use 53% of a node of mmbert-cpu-spot, and no more fit"),
        ("threads", "data", 16, "class data: 2 of its pods use"),
        ("memory", "eval", 2000, "class eval: no pod of it fits a node of mmbert-h100"),
    ],
)
def test_a_profiles_sizes_are_held_to_nodes_and_quotas(
    prod: list[Object], tmp_path: Path, section: str, key: str, value: int, said: str
) -> None:
    profile = yaml.safe_load((ROOT / "components" / "profiles" / "prod.yaml").read_text("utf-8"))
    path = tmp_path / "mine.yaml"

    def found() -> str:
        path.write_text(yaml.safe_dump(profile), "utf-8")
        return "\n".join(profiles.profile_check(path, prod).faults)

    assert found() == ""
    profile[section][key] = value
    assert said in found()


def test_quotas_are_held_to_nodes_and_work(prod: list[Object]) -> None:
    objects = copy.deepcopy(prod)
    flavors = one(objects, "ClusterQueue", "mmbert-cpu")["spec"]["resourceGroups"][0]["flavors"]
    flavors[0]["resources"][0]["nominalQuota"] = "1504"
    flavors[0]["resources"][1]["nominalQuota"] = "6000Gi"
    flavors[1]["resources"][1]["nominalQuota"] = "800Gi"
    found = profiles.profile_check(ROOT / "components" / "profiles" / "prod.yaml", objects).faults
    assert "class data: the quota of mmbert-cpu-spot admits 100 of its pods, and 96 fit its nodes" in found
    assert "class data: one piece of work has 17 pods, and the quota of mmbert-cpu-on-demand admits 14" in found


def test_a_namespace_takes_as_many_objects_as_airflow_has_tasks(prod: list[Object]) -> None:
    values = ROOT / "infra" / "helm" / "airflow-values.yaml"
    assert profiles.quota_check(values, prod).faults == ()
    objects = copy.deepcopy(prod)
    one(objects, "ResourceQuota", "objects")["spec"]["hard"]["count/rayjobs.ray.io"] = "20"
    assert "count/rayjobs.ray.io is 20; Airflow has 128 tasks" in profiles.quota_check(values, objects).faults[0]


def test_the_launchers_role_is_held_to_its_rights(prod: list[Object], tmp_path: Path) -> None:
    role = one(prod, "Role", "mmbert-launcher")
    rights = {(rule["apiGroups"][0], rule["resources"][0]): tuple(rule["verbs"]) for rule in role["rules"]}
    launcher = tmp_path / "api.py"

    def found(needed: dict[tuple[str, str], tuple[str, ...]]) -> str:
        launcher.write_text(f"RIGHTS: dict[tuple[str, str], tuple[str, ...]] = {needed!r}\n", "utf-8")
        return "\n".join(agreement.rights_check(launcher, prod).faults)

    assert found(rights) == ""
    assert "lacks get of secrets" in found({**rights, ("", "secrets"): ("get",)})
    assert "has create of services, which the launcher does not need" in found(
        {key: verbs for key, verbs in rights.items() if key != ("", "services")}
    )


def test_terraform_has_no_fault() -> None:
    checks = list(terraform.terraform_checks(TERRAFORM))
    assert faults(checks) == []
    assert len(checks) > 20


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("storage.tf", "block_public_acls       = true", "block_public_acls = false", "block_public_acls must be True"),
        ("storage.tf", "aws:SecureTransport", "aws:Secure", "without TLS"),
        ("storage.tf", "force_destroy = false", "force_destroy = true", "force_destroy must be false"),
        (
            "storage.tf",
            'resource "aws_s3_bucket_versioning"',
            'resource "aws_s3_x"',
            "there is no aws_s3_bucket_versioning",
        ),
        ("database.tf", "storage_encrypted     = true", "storage_encrypted = false", "storage_encrypted must be True"),
        (
            "database.tf",
            "manage_master_user_password   = true",
            'password = "x"',
            "a password would stand in the state",
        ),
        ("database.tf", "rds.force_ssl", "rds.x", "forces TLS"),
        ("cluster.tf", 'resources = ["secrets"]', "resources = []", "encryption_config must cover secrets"),
        ("cluster.tf", "length(var.api_access_cidrs) > 0\n", "true\n", "must not be open to everybody"),
        ("nodes.tf", 'http_tokens                 = "required"', 'http_tokens = "optional"', "metadata_options"),
        ("nodes.tf", "encrypted             = true", "encrypted = false", "its volume must be encrypted"),
        ("nodes.tf", ', "nvidia.com/gpu.present" = "true"', "", "aws_eks_node_group.h100: its labels lack nvidia.com"),
        (
            "nodes.tf",
            'tags = { "k8s.io/cluster-autoscaler/node-template/resources/ephemeral-storage" = "${floor',
            'tags = { "disk" = "${floor',
            "aws_eks_node_group.cpu: its tags lack k8s.io/cluster-autoscaler",
        ),
        (
            "nodes.tf",
            "referenced_security_group_id = aws_security_group.efa.id",
            'cidr_ipv4 = "0.0.0.0/0"',
            "it is open to",
        ),
        ("registry.tf", '"IMMUTABLE"', '"MUTABLE"', "image_tag_mutability must be IMMUTABLE"),
        (
            "keys.tf",
            "enable_key_rotation     = true",
            "enable_key_rotation = false",
            "enable_key_rotation must be True",
        ),
        ("identity.tf", '"secretsmanager:GetSecretValue"', '"secretsmanager:*"', "the action secretsmanager:*"),
        ("identity.tf", "resources = [local.mlflow]", 'resources = ["*"]', "s3:ListBucket on all resources"),
        (
            "identity.tf",
            'resource "aws_secretsmanager_secret" "main"',
            'resource "aws_secretsmanager_secret_version" "main"',
            "would stand in the state",
        ),
        ("versions.tf", '"~> 6.20"', '">= 6"', "must be held by ~>"),
        (
            "variables.tf",
            "  type        = bool\n  default     = false",
            "  default = false",
            "nat_per_zone has no type",
        ),
        ("variables.tf", 'variable "log_days"', 'variable "old_days"', "there is no var.log_days"),
        ("variables.tf", 'variable "log_days"', 'variable "old_days"', "var.old_days is used nowhere"),
        (
            "outputs.tf",
            "aws_db_instance.main.address",
            "aws_db_instance.other.address",
            "there is no aws_db_instance.other",
        ),
        ("outputs.tf", 'description = "PostgreSQL\'s address."', "", "output database_host has no description"),
        ("network.tf", 'resource "aws_vpc" "main" {', 'resource "aws_vpc" "main" {{', "network.tf:"),
    ],
)
def test_terraforms_rules_find_their_fault(file: str, old: str, new: str, said: str, tmp_path: Path) -> None:
    for path in TERRAFORM.glob("*.tf"):
        text = path.read_text("utf-8")
        if path.name == file:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / path.name).write_text(text, "utf-8")
    assert said in "\n".join(faults(terraform.terraform_checks(tmp_path)))


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        (
            "nodes.tf",
            '"mmbert.dev/pool" = "h100"',
            '"mmbert.dev/pool" = "gpu"',
            "no node group has mmbert.dev/pool=h100",
        ),
        ("identity.tf", '"mmbert-component"', '"mmbert-data"', "there is no ServiceAccount mmbert/mmbert-data"),
        ("variables.tf", '"10.40.0.0/16"', '"10.50.0.0/16"', "variable vpc_cidr is 10.50.0.0/16"),
    ],
)
def test_terraform_and_manifests_must_agree(
    prod: list[Object], file: str, old: str, new: str, said: str, tmp_path: Path
) -> None:
    for path in TERRAFORM.glob("*.tf"):
        text = path.read_text("utf-8")
        (tmp_path / path.name).write_text(text.replace(old, new) if path.name == file else text, "utf-8")
    assert said in "\n".join(faults(agreement.agreement_checks(tmp_path, prod)))


def test_the_documents_cost_table_is_the_price_lists(tmp_path: Path) -> None:
    assert costs.document_check().faults == ()
    dearer = tmp_path / "prices.csv"
    dearer.write_text(costs.PRICES.read_text("utf-8").replace("0.10", "0.20"), "utf-8")
    assert "its cost table is not that of prices.csv" in costs.document_check(prices=dearer).faults[0]


DOCUMENT = (ROOT / "docs" / "infrastructure.md").read_text("utf-8")


@pytest.mark.parametrize(("overlay", "key", "wanted"), [("prod", "digest", "sha256:c0ffee"), ("dev", "newTag", "v7")])
def test_the_documents_commands_set_mlflows_image(tmp_path: Path, overlay: str, key: str, wanted: str) -> None:
    """As people type them: no program is needed but sed."""
    file = tmp_path / "kustomization.yaml"
    file.write_text((KUBERNETES / "overlays" / overlay / "kustomization.yaml").read_text("utf-8"), "utf-8")
    (line,) = (line for line in DOCUMENT.splitlines() if "sed -i" in line and f"|{key}: " in line)
    script = f"digest() {{ echo sha256:c0ffee; }}; MMBERT_IMAGE_PREFIX=r/mm- MMBERT_IMAGE_TAG=v7; {line.strip()}"
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, check=True)
    (image,) = yaml.safe_load(file.read_text("utf-8"))["images"]
    assert image == {"name": "mmbert-mlflow", "newName": "r/mm-mlflow", key: wanted}


def test_the_documents_policy_for_a_store_is_one() -> None:
    begin = DOCUMENT.index("    apiVersion: networking.k8s.io/v1")
    text = textwrap.dedent(DOCUMENT[begin : DOCUMENT.index("    END", begin)])
    (item,) = manifests.documents(text)
    assert manifests.schema_faults(item) == []
    assert list(policy.closed_networks([item])) == []


def test_the_documents_device_plugins_come_to_gpu_nodes() -> None:
    """The taint of infra/terraform/nodes.tf; EFA's chart tolerates CriticalAddonsOnly alone by itself."""
    (command,) = re.findall(r"helm install aws-efa-k8s-device-plugin (?:.*\\\n)*.*", DOCUMENT)
    settings = dict(pair.split("=") for pair in re.findall(r"tolerations\[0\]\.\w+=[\w./]+", command))
    assert settings == {
        "tolerations[0].key": "nvidia.com/gpu", "tolerations[0].operator": "Exists",
        "tolerations[0].effect": "NoSchedule",
    }  # fmt: skip


def test_all_of_airflows_pods_reach_a_store_that_wants_keys() -> None:
    """The API server shows logs of finished tasks from there."""
    values = yaml.safe_load((ROOT / "infra" / "helm" / "airflow-values.yaml").read_text("utf-8"))
    given = {one["name"]: one.get("valueFrom") for one in yaml.safe_load(values["extraEnv"])}
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert given[name] == {"secretKeyRef": {"name": "mmbert-secrets", "key": name, "optional": True}}
