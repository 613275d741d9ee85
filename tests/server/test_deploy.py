"""Files to deploy with: they parse, and they say what this service needs and knows."""

from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from server.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
KNOWN = {"UNMASK_" + name.upper() for name in Settings.model_fields}


def kubernetes() -> dict[str, Any]:
    documents = yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text())
    return {document["kind"]: document["spec"] for document in documents}


def compose() -> dict[str, Any]:
    return cast(dict[str, Any], yaml.safe_load((ROOT / "deploy/compose.yaml").read_text()))


def test_the_pod_is_probed_bounded_and_closed() -> None:
    pod = kubernetes()["Deployment"]["template"]["spec"]
    (container,) = pod["containers"]
    probes = {name: container[name]["httpGet"]["path"] for name in container if name.endswith("Probe")}
    assert probes == {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}
    assert pod["securityContext"]["runAsUser"] == 1000
    assert container["securityContext"] == {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]
    assert container["resources"]["limits"]["memory"]
    assert container["resources"]["requests"]["cpu"] == "2", "what docs/deploy.md counts with"
    (threads,) = (each for each in container["env"] if each["name"] == "UNMASK_THREADS")
    field = threads["valueFrom"]["resourceFieldRef"]
    assert field == {"containerName": container["name"], "resource": "requests.cpu"}, "not the node's cores"
    assert pod["enableServiceLinks"] is False, "a service called unmask would set UNMASK_PORT to an address"
    assert pod["terminationGracePeriodSeconds"] >= 15


def test_every_part_of_the_manifest_speaks_of_the_same_pods() -> None:
    parts = kubernetes()
    labels = parts["Deployment"]["template"]["metadata"]["labels"]
    assert parts["Deployment"]["selector"]["matchLabels"] == labels
    assert parts["Service"]["selector"] == labels
    assert parts["PodDisruptionBudget"]["selector"]["matchLabels"] == labels
    assert parts["NetworkPolicy"]["podSelector"]["matchLabels"] == labels
    assert parts["NetworkPolicy"]["egress"] == [], "nothing may be fetched"
    assert parts["HorizontalPodAutoscaler"]["scaleTargetRef"]["name"] == "unmask"


def test_the_containers_of_compose_are_closed() -> None:
    services = compose()["services"]
    (network,) = compose()["networks"]["default"]["ipam"]["config"]
    gateway = network["gateway"]
    assert ip_address(gateway) in ip_network(network["subnet"])
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert all(port.startswith("127.0.0.1:") and port.endswith(":7860") for port in service["ports"])
        assert service["mem_limit"]
        assert service["environment"]["UNMASK_TRUSTED_PROXIES"] == gateway, "or all clients count as one"
    (device,) = services["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert services["gpu"]["environment"]["UNMASK_DEVICE"] == "cuda"


@pytest.mark.parametrize("name", ["kubernetes", "compose"])
def test_only_settings_that_exist_are_set(name: str) -> None:
    if name == "compose":
        used = {
            key: value
            for each in compose()["services"].values()
            for key, value in each["environment"].items()
        }
    else:
        (container,) = kubernetes()["Deployment"]["template"]["spec"]["containers"]
        used = {each["name"]: each.get("value", "2") for each in container["env"]}
    assert used.keys() <= KNOWN
    Settings(**{key.removeprefix("UNMASK_").lower(): value for key, value in used.items()})


def test_the_space_is_described_as_spaces_need_it() -> None:
    _, head, text = (ROOT / "deploy/spaces/README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(head)
    assert (facts["sdk"], facts["app_port"], facts["license"]) == ("docker", 7860, "apache-2.0")
    assert len(facts["short_description"]) <= 60
    assert facts["colorFrom"] in {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert "UNMASK_FRAME_ANCESTORS" in KNOWN
    assert "UNMASK_FRAME_ANCESTORS" in text
    assert "CC-BY-NC-4.0" in text, "the weights' licence, which the head cannot name too"
    assert "`FROM slim`" in text
    assert " AS slim\n" in (ROOT / "Dockerfile").read_text()
