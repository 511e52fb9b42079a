"""A cluster whose machines are network namespaces: every process has addresses, links and a cgroup of its own.

Needs root, ip and nft (Debian: iproute2, nftables). Clients live in the namespace of whoever calls this.
"""

import ctypes
import http.client
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time

NODES = ["n1", "n2", "n3"]
HTTP_PORT, ADMIN_PORT, CONTROL_PORT = 8080, 7900, 7001
CGROUPS = "/sys/fs/cgroup"


def run(*command, check=True):
    done = subprocess.run(command, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def why_not():
    """Why this can't be tried here; "": it can."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces and cgroups"
    for program in ("ip", "nft", "tc"):
        if shutil.which(program) is None:
            return f"needs {program} (Debian: iproute2, nftables)"
    try:
        run("ip", "netns", "add", f"atc-try-{os.getpid()}")
        run("ip", "netns", "del", f"atc-try-{os.getpid()}")
    except RuntimeError as error:
        return f"no network namespaces here: {error}"
    return ""


class Cgroup:
    """Limits of a process, by a controller of version 1 or the one tree of version 2."""

    def __init__(self, controller):
        is_v1 = os.path.isdir(os.path.join(CGROUPS, controller))
        self.root = os.path.join(CGROUPS, controller) if is_v1 else CGROUPS
        self.is_v1, self.pids = is_v1, []
        self.dir = os.path.join(self.root, f"atoll-chaos-{os.getpid()}")
        if not is_v1:
            with open(os.path.join(CGROUPS, "cgroup.subtree_control"), encoding="ascii") as file:
                if controller not in file.read().split():
                    raise OSError(f"no cgroup controller {controller}")
        os.makedirs(self.dir, exist_ok=True)

    def add(self, pid):
        self.pids.append(pid)
        self.write("cgroup.procs", str(pid))

    def write(self, name, value):
        with open(os.path.join(self.dir, name), "w", encoding="ascii") as file:
            file.write(value)

    def set_cpu(self, cpus):
        if self.is_v1:
            self.write("cpu.cfs_period_us", "20000")
            self.write("cpu.cfs_quota_us", f"{cpus * 20000:.0f}")
        else:
            self.write("cpu.max", f"{cpus * 20000:.0f} 20000")

    def set_memory(self, size):
        self.write("memory.limit_in_bytes" if self.is_v1 else "memory.max", str(size))

    def set_read_rate(self, disk, rate):
        number = os.stat(disk).st_rdev
        name = f"{os.major(number)}:{os.minor(number)}"
        if self.is_v1:
            self.write("blkio.throttle.read_bps_device", f"{name} {rate}")
        else:
            self.write("io.max", f"{name} rbps={rate}")

    def end(self):
        for pid in self.pids:
            try:
                with open(os.path.join(self.root, "cgroup.procs"), "w", encoding="ascii") as file:
                    file.write(str(pid))
            except ProcessLookupError:
                pass  # it is dead, and so in no group
        for _ in range(100):
            try:
                return os.rmdir(self.dir)
            except OSError:
                time.sleep(0.02)


class World:
    """Coordinator and three nodes from one file, each in a namespace."""

    def __init__(self, binary, model, trust, redundancy):
        self.binary, self.model = os.path.abspath(binary), os.path.abspath(model)
        self.tag = f"atc{os.getpid() % 10000}"
        self.dir = tempfile.mkdtemp(prefix="atoll-chaos-")
        self.hosts = {name: f"10.77.0.{10 + i}" for i, name in enumerate(["c", *NODES])}
        self.processes, self.environment, self.exits = {}, {}, 0
        self.cold = os.path.join(self.dir, "cold")  # n3's own copy, which it reads from the drive
        run(self.binary, "pack", self.model, "--out", self.cold)
        self.add_links()
        self.file = os.path.join(self.dir, "cluster.yaml")
        self.write_file(trust, redundancy)
        run(self.binary, "keys", self.file, "--out", os.path.join(self.dir, "keys"))
        for name in NODES:
            self.start(name)
        self.start("c")

    def write_file(self, trust, redundancy):
        # tcp: these machines share /dev/shm, which UCX would take for a link of one machine.
        lines = [f"model: {self.model}",
                 f"network: {{trust: {trust}, transport: tcp}}", "security: {keys: keys}",
                 f"coordinator: {{listen: \"0.0.0.0:{HTTP_PORT}\", admin: \"127.0.0.1:{ADMIN_PORT}\", threads: 1, "
                 "chunk: 32}",
                 f"redundancy: {redundancy}", "timeouts: {grace: 1s, backoff_max: 250ms}",
                 "node_defaults: {threads: 1}", "nodes:"]
        for name in NODES:
            own = f", model: {self.cold}" if name == "n3" else ""
            lines.append(f"  - {{name: {name}, control: \"{self.hosts[name]}:{CONTROL_PORT}\"{own}}}")
        with open(self.file, "w", encoding="ascii") as file:
            file.write("\n".join(lines) + "\n")

    # ---- links

    def space(self, name):
        return f"{self.tag}-{name}"

    def in_space(self, name, *command, check=True):
        return run("ip", "netns", "exec", self.space(name), *command, check=check)

    def add_links(self):
        run("ip", "link", "add", self.tag, "type", "bridge")
        run("ip", "addr", "add", "10.77.0.1/24", "dev", self.tag)
        run("ip", "link", "set", self.tag, "up")
        for name, host in self.hosts.items():
            run("ip", "netns", "add", self.space(name))
            run("ip", "link", "add", f"{self.tag}{name}", "type", "veth", "peer", "name", "eth0", "netns",
                self.space(name))
            run("ip", "link", "set", f"{self.tag}{name}", "master", self.tag, "up")
            self.in_space(name, "ip", "addr", "add", f"{host}/24", "dev", "eth0")
            self.in_space(name, "ip", "link", "set", "eth0", "up")
            self.in_space(name, "ip", "link", "set", "lo", "up")

    def set_link(self, name, state):
        run("ip", "link", "set", f"{self.tag}{name}", state)

    def filter(self, name, rules):
        """nft rules for what enters and leaves the machine: {"input": "...", "output": "..."}."""
        self.in_space(name, "nft", "flush", "ruleset")
        for hook, rule in rules.items():
            self.in_space(name, "nft", "add", "table", "inet", "chaos")
            self.in_space(name, "nft", f"add chain inet chaos {hook} {{ type filter hook {hook} priority 0; }}")
            self.in_space(name, "nft", f"add rule inet chaos {hook} {rule}")

    def set_rate(self, name, rate):
        """Of what the machine sends and gets, such as 20mbit; "": any."""
        for where in ((self.space(name), "eth0"), (None, f"{self.tag}{name}")):
            space = ["ip", "netns", "exec", where[0]] if where[0] else []
            run(*space, "tc", "qdisc", "del", "dev", where[1], "root", check=False)
            if rate:
                run(*space, "tc", "qdisc", "add", "dev", where[1], "root", "tbf", "rate", rate, "burst", "32kb",
                    "latency", "400ms")

    # ---- processes

    def start(self, name, model=None, wait=True, group=None):
        if name == "c":
            arguments = ["serve", "--config", self.file]
        else:
            arguments = ["node", *([model] if model else []), "--config", self.file, "--name", name]
            if name == "n3":  # what it owns doesn't fit: it reads
                arguments += ["--ram-budget", "2MiB", "--io", "threads",
                              "--usage-file", os.path.join(self.dir, "usage")]

        def before():
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # it ends with us
            if group:
                group.add(os.getpid())

        with open(os.path.join(self.dir, f"{name}.log"), "ab") as log:
            process = subprocess.Popen(["ip", "netns", "exec", self.space(name), self.binary, *arguments],
                                       stdout=subprocess.PIPE, stderr=log,
                                       env={**os.environ, **self.environment.get(name, {})},
                                       preexec_fn=before)
        self.processes[name] = process  # ip replaces itself by what it runs
        if wait and not process.stdout.readline():
            raise RuntimeError(f"{name} did not start: {self.log(name)[-500:]}")

    def log(self, name):
        with open(os.path.join(self.dir, f"{name}.log"), encoding="utf-8", errors="replace") as file:
            return file.read()

    def tell(self, name, number):
        self.processes[name].send_signal(number)

    def kill(self, name, number=signal.SIGKILL):
        self.tell(name, number)
        self.processes[name].wait()

    def get(self, path):
        connection = http.client.HTTPConnection(self.hosts["c"], HTTP_PORT, timeout=10)
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())

    def nodes(self):
        return {node["name"]: node for node in self.get("/stats")["nodes"]}

    def is_whole(self, tiles):
        try:
            nodes = self.nodes()
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            return False
        return (all(node["state"] == "ready" for node in nodes.values()) and
                (tiles is None or sum(node["tiles"] for node in nodes.values()) == tiles))

    def await_whole(self, tiles, limit=60):
        """Seconds until every node is ready and every tile has an owner; None: not within `limit`."""
        begin = time.monotonic()
        while time.monotonic() - begin < limit:
            if self.is_whole(tiles):
                return time.monotonic() - begin
            time.sleep(0.05)
        return None

    def close(self):
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        for name in self.hosts:
            run("ip", "netns", "del", self.space(name), check=False)
        run("ip", "link", "del", self.tag, check=False)
        shutil.rmtree(self.dir, ignore_errors=True)
