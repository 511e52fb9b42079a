"""Every query of every panel in deploy/grafana/ must return data from a Prometheus that scrapes a
loaded cluster: two nodes that keep a part of the experts in RAM, hints, and requests all the time.
dashboards_test.py ATOLL MODEL_DIR DEPLOY_DIR"""

import glob
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

PATIENCE_S = 90


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get_json(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def start(arguments, log, **options):
    return subprocess.Popen(arguments, stderr=log, start_new_session=True, **options)


def serve(atoll, pack, log):
    server = start(
        [atoll, "serve", pack, "--nodes", "2", "--port", "0", "--prefetch", "next-layer",
         "--ram-budget", "8MiB", "--chunk", "64", "--log-level", "warn"],
        log, stdout=subprocess.PIPE, text=True)
    line = server.stdout.readline()
    ready = "listening on http://"
    if not line.startswith(ready):
        raise RuntimeError("no server: " + line)
    return server, line[len(ready):].strip()


def ask_on(address, stop):
    """Prompts with a common beginning, so that the prefix cache has something to find."""
    n = 0
    while not stop.is_set():
        n += 1
        body = {"prompt": "In the beginning " * 20 + str(n), "max_tokens": 8, "seed": n}
        request = urllib.request.Request(
            f"http://{address}/v1/completions", json.dumps(body).encode(),
            {"Content-Type": "application/json"})
        try:
            urllib.request.urlopen(request, timeout=60).read()
        except (urllib.error.URLError, OSError):
            if not stop.is_set():
                raise


def watch(deploy, address, folder, log):
    """A Prometheus with deploy/'s file, but for the address and how often it looks."""
    with open(f"{deploy}/prometheus/prometheus.yml") as file:
        config = file.read()
    config = config.replace("127.0.0.1:8080", address)
    config = config.replace("alerts.yml", os.path.abspath(f"{deploy}/prometheus/alerts.yml"))
    config = re.sub(r"(scrape|evaluation)_interval: 10s", r"\1_interval: 1s", config)
    assert config.count(address) == 1 and config.count("_interval: 1s") == 2, config
    with open(f"{folder}/prometheus.yml", "w") as file:
        file.write(config)
    port = free_port()
    return start(
        ["prometheus", f"--config.file={folder}/prometheus.yml",
         f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}",
         "--log.level=warn"], log), f"http://127.0.0.1:{port}"


def queries(deploy):
    for path in sorted(glob.glob(f"{deploy}/grafana/*.json")):
        with open(path) as file:
            board = json.load(file)
        for panel in board["panels"]:
            for target in panel["targets"]:
                query = target["expr"].replace("$__rate_interval", "10s")
                query = re.sub(r"\$(instance|node)", ".*", query)
                yield f"{os.path.basename(path)}, {panel['title']}, {target['refId']}", query


def has_data(prometheus, query):
    answer = get_json(f"{prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": query}))
    values = [float(series["value"][1]) for series in answer["data"]["result"]]
    return any(not math.isnan(value) for value in values)


def main(atoll, model, deploy):
    found = dict(queries(deploy))
    assert len(found) > 30, "too few queries: are the dashboards there?"
    left = dict(found)
    failures = []
    started = []
    with tempfile.TemporaryDirectory() as folder, open(f"{folder}/log", "w+") as log:
        try:
            subprocess.run([atoll, "pack", model, "--out", f"{folder}/pack"], check=True,
                           stdout=subprocess.DEVNULL, stderr=log)
            server, address = serve(atoll, f"{folder}/pack", log)
            started.append(server)
            stop = threading.Event()
            askers = [threading.Thread(target=ask_on, args=(address, stop)) for _ in range(2)]
            for asker in askers:
                asker.start()
            process, prometheus = watch(deploy, address, folder, log)
            started.append(process)
            end = time.monotonic() + PATIENCE_S
            while left and time.monotonic() < end:
                time.sleep(0.5)
                try:
                    left = {name: query for name, query in left.items()
                            if not has_data(prometheus, query)}
                except (urllib.error.URLError, ConnectionError):
                    pass  # it is starting
            failures += [f"no data: {name}: {query}" for name, query in left.items()]
            rules = [rule for group in get_json(f"{prometheus}/api/v1/rules")["data"]["groups"]
                     for rule in group["rules"]]
            failures += [f"rule {rule['name']}: {rule.get('lastError')}" for rule in rules
                         if rule["health"] == "err"]
            if not rules:
                failures.append("Prometheus has no rules")
            stop.set()
            for asker in askers:
                asker.join()
        finally:
            for process in reversed(started):
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=60)
        if failures:
            log.seek(0)
            print(log.read()[-4000:])
    print("\n".join(failures) or f"{len(found)} queries have data, {len(rules)} rules are well")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
