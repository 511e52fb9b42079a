"""What is done to a cluster: each fault returns when it is over, so that all should become well again.

A fault is a function of a World. `lossy` ones end requests that nobody could keep (the coordinator itself is
killed), `skip` says why one can't be done here.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

from world import ADMIN_PORT, CONTROL_PORT, HTTP_PORT, NODES, Cgroup, run

FAULTS = {}


def fault(name, quick=False, lossy=False, skip=None):
    def add(function):
        function.name, function.quick, function.lossy = name, quick, lossy
        function.skip = skip or (lambda world: "")
        FAULTS[name] = function
        return function
    return add


@fault("kill", quick=True)
def kill(world):
    world.kill("n1")
    time.sleep(2)
    world.start("n1")


@fault("stop-0.5s", quick=True)
def stop_half(world):
    stop(world, 0.5)


@fault("stop-5s")
def stop_five(world):
    stop(world, 5)


@fault("stop-60s")
def stop_sixty(world):
    stop(world, 60)


def stop(world, seconds):
    world.tell("n1", signal.SIGSTOP)
    time.sleep(seconds)
    world.tell("n1", signal.SIGCONT)


@fault("flapping")
def flapping(world):
    for _ in range(5):
        world.kill("n1")
        time.sleep(0.3)
        world.start("n1")
        time.sleep(0.7)


@fault("link-down", quick=True)
def link_down(world):
    world.set_link("n1", "down")
    time.sleep(3)
    world.set_link("n1", "up")


@fault("one-way-drop", quick=True)
def one_way_drop(world):
    """It hears and is not heard."""
    world.filter("n1", {"output": "drop"})
    time.sleep(3)
    world.filter("n1", {})


@fault("one-way-drop-in")
def one_way_drop_in(world):
    world.filter("n1", {"input": "drop"})
    time.sleep(3)
    world.filter("n1", {})


@fault("loss-1%")
def loss(world):
    """Of packets, both ways, at the coordinator: between all and all."""
    rule = "numgen random mod 100 < 1 drop"
    world.filter("c", {"input": f"tcp dport != {HTTP_PORT} " + rule,
                       "output": f"tcp sport != {HTTP_PORT} " + rule})
    time.sleep(8)
    world.filter("c", {})


@fault("slow-link")
def slow_link(world):
    world.set_rate("n1", "5mbit")
    time.sleep(8)
    world.set_rate("n1", "")


@fault("cpu-20%")
def slow_cpu(world):
    group = Cgroup("cpu")
    group.add(world.processes["n1"].pid)
    group.set_cpu(0.2 / 3)  # of what it uses when all processes share two cores
    time.sleep(10)
    group.end()


@fault("slow-disk")
def slow_disk(world):
    group = Cgroup("blkio" if os.path.isdir("/sys/fs/cgroup/blkio") else "io")
    group.add(world.processes["n3"].pid)
    # The file system's device: 1 MB/s where experts are read beside the answers.
    group.set_read_rate(run("findmnt", "-no", "SOURCE", "--target", world.cold).strip(), 1_000_000)
    time.sleep(8)
    group.end()


def layer_files(world):
    files = [os.path.join(folder, name) for folder, _, names in os.walk(world.cold) for name in names]
    return sorted(file for file in files if os.path.getsize(file) > 65536)


@fault("read-errors")
def read_errors(world):
    """Reads beyond the end of its files, which fail as bad sectors do: the files are cut and made whole."""
    kept = {}
    for file in layer_files(world):
        kept[file] = open(file, "rb").read()  # pylint: disable=consider-using-with
        os.truncate(file, 4096)
    time.sleep(4)
    for file, data in kept.items():
        with open(file, "r+b") as out:
            out.write(data)


@fault("corrupt-pack")
def corrupt_pack(world):
    random_source = random.Random(1)
    kept = {}
    for file in layer_files(world):
        data = bytearray(open(file, "rb").read())  # pylint: disable=consider-using-with
        kept[file] = bytes(data)
        for _ in range(200):
            data[random_source.randrange(4096, len(data))] ^= 1 << random_source.randrange(8)
        with open(file, "r+b") as out:
            out.write(data)
    time.sleep(4)
    for file, data in kept.items():
        with open(file, "r+b") as out:
            out.write(data)


@fault("disk-full")
def disk_full(world):
    """Where the node keeps its usage file, and where its log goes, nothing can be written any more."""
    small = os.path.join(world.dir, "small")
    os.makedirs(small, exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small)
    directory = world.dir
    try:
        world.kill("n3", signal.SIGTERM)
        run("dd", "if=/dev/zero", f"of={small}/full", "bs=4096", check=False)  # until it is full
        world.dir = small
        world.start("n3")
        time.sleep(3)
        world.kill("n3", signal.SIGTERM)
    finally:
        world.dir = directory
        run("umount", "-l", small)
    world.start("n3")


@fault("out-of-memory")
def out_of_memory(world):
    """It dies, comes back with less memory than it needs, is ended by the kernel while it loads, and comes back."""
    world.kill("n1")
    group = Cgroup("memory")
    group.set_memory(6 << 20)
    world.start("n1", wait=False, group=group)
    code = world.processes["n1"].wait(timeout=30)
    group.end()
    if code != -signal.SIGKILL:
        raise RuntimeError(f"the kernel did not end n1 with 6 MiB: it ended with {code}")
    world.start("n1")


@fault("coordinator-term", quick=True)
def coordinator_term(world):
    world.kill("c", signal.SIGTERM)
    world.start("c")


@fault("coordinator-kill", lossy=True)
def coordinator_kill(world):
    world.kill("c")
    world.start("c")


@fault("other-weights")
def other_weights(world):
    """A node comes back with another checkpoint, and then with its own."""
    other = os.path.join(world.dir, "other")
    shutil.copytree(world.model, other)
    for name in os.listdir(other):
        if not name.endswith(".safetensors"):
            continue
        path = os.path.join(other, name)
        with open(path, "r+b") as file:
            file.seek(-4, os.SEEK_END)
            last = file.read(4)
            file.seek(-4, os.SEEK_END)
            file.write(bytes(byte ^ 1 for byte in last))
    world.kill("n1")
    world.start("n1", model=other)
    time.sleep(4)
    if world.nodes()["n1"]["state"] == "ready":
        raise RuntimeError("a node with other weights was taken")
    world.kill("n1")
    shutil.rmtree(other)
    world.start("n1")


def listening(world, name):
    lines = world.in_space(name, "ss", "-Hltn").splitlines()
    return sorted({int(line.split()[3].rsplit(":", 1)[1]) for line in lines})


@fault("garbage", quick=True)
def garbage(world):
    """To every port of every process, from a machine of the same network."""
    random_source = random.Random(2)
    for name in ["c", *NODES]:
        for port in listening(world, name):
            for size in (1, 100, 70_000):
                try:
                    with socket.create_connection((world.hosts[name], port), timeout=2) as peer:
                        peer.settimeout(0.3)
                        peer.sendall(random_source.randbytes(size))
                        peer.recv(100)
                except OSError:
                    pass


@fault("flood", quick=True)
def flood(world):
    """Connections to every control port, opened and closed as fast as one process for each can."""
    program = ("import socket,sys,time\nend=time.time()+5\nwhile time.time()<end:\n"
               " try: socket.create_connection((sys.argv[1],int(sys.argv[2])),3).close()\n"
               " except OSError: pass\n")
    floods = [subprocess.Popen([sys.executable, "-c", program, world.hosts[name], str(CONTROL_PORT)])
              for name in NODES]
    for process in floods:
        process.wait()


@fault("port-scan")
def port_scan(world):
    """Every port of a node and of the coordinator is knocked at; some connections stay open for a while."""
    kept = []
    for name in ("n1", "c"):
        open_ports = set(listening(world, name))
        for port in range(1, 65536, 1 if name == "n1" else 7):
            with socket.socket() as peer:
                peer.settimeout(0.05)
                is_open = peer.connect_ex((world.hosts[name], port)) == 0
                if is_open != (port in open_ports) and port not in (ADMIN_PORT,):
                    pass  # UCX's ports come and go
        for port in open_ports - {ADMIN_PORT}:
            for _ in range(30):
                try:
                    kept.append(socket.create_connection((world.hosts[name], port), timeout=0.2))
                except OSError:
                    pass
    time.sleep(2)
    for peer in kept:
        peer.close()


FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"


@fault("clock-jump", skip=lambda world: "" if os.path.exists(FAKETIME) else "needs libfaketime (Debian: faketime)")
def clock_jump(world):
    """The time of day of one node and of the coordinator jumps by an hour and back; lossy only by its restart."""
    clock = os.path.join(world.dir, "clock")
    with open(clock, "w", encoding="ascii") as file:
        file.write("+0")
    world.environment["n1"] = {"LD_PRELOAD": FAKETIME, "FAKETIME_TIMESTAMP_FILE": clock, "FAKETIME_NO_CACHE": "1",
                               "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    world.kill("n1")
    world.start("n1")
    world.await_whole(None)
    for jump in ("+1h", "-1h", "+0"):
        with open(clock, "w", encoding="ascii") as file:
            file.write(jump)
        time.sleep(1.5)
    world.environment.clear()
    world.kill("n1")
    world.start("n1")


@fault("two-at-once")
def two_at_once(world):
    world.tell("n2", signal.SIGSTOP)
    world.kill("n1")
    time.sleep(2)
    world.tell("n2", signal.SIGCONT)
    world.start("n1")


@fault("drain-and-kill")
def drain_and_kill(world):
    world.in_space("c", world.binary, "cluster", "drain", "n2", "--config", world.file)
    world.kill("n1")
    time.sleep(1.5)
    world.start("n1")
    world.in_space("c", world.binary, "cluster", "resume", "n2", "--config", world.file)
