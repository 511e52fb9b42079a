"""Kubernetes' own schemas accept deploy/kubernetes, and Atoll accepts the cluster files in it.

  kubernetes_test.py ATOLL FOLDER

A LeaderWorkerSet has no schema there: its two pods are tried as pods, which is nearly all of it.
"""

import pathlib
import subprocess
import sys
import tempfile

try:
    import kubernetes_validate
    import yaml
except ImportError as error:
    print(f"skipped: {error} (scripts/setup-clients installs it)")
    sys.exit(77)

VERSION = "1.31"
atoll, folder = sys.argv[1], pathlib.Path(sys.argv[2])
tried = 0


def check(resource):
    global tried
    kubernetes_validate.validate(resource, VERSION, strict=True)
    tried += 1


def check_cluster_file(text, pods):
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        done = subprocess.run([atoll, "config", "check", file.name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    nodes = yaml.safe_load(text)["nodes"]
    assert [node["name"] for node in nodes] == pods, f"{nodes} are not the pods {pods}"


for file in sorted(folder.glob("*.yaml")):
    pods, clusters = [], []
    for resource in yaml.safe_load_all(file.read_text()):
        kind, name = resource["kind"], resource["metadata"]["name"]
        if kind == "LeaderWorkerSet":
            group = resource["spec"]["leaderWorkerTemplate"]
            for template in (group["leaderTemplate"], group["workerTemplate"]):
                check({"apiVersion": "v1", "kind": "Pod", **template,
                       "metadata": {"name": "tried", **template["metadata"]}})
            pods = [f"{name}-0-{i}" for i in range(1, group["size"])]
            continue
        check(resource)
        if kind == "StatefulSet":
            pods = [f"{name}-{i}" for i in range(resource["spec"]["replicas"])]
        clusters += [text for key, text in resource.get("data", {}).items() if key == "cluster.yaml"]
    assert len(clusters) == 1, file
    check_cluster_file(clusters[0], pods)
    print(f"{file.name}: {len(pods)} nodes")
assert tried >= 8
print("passed")
