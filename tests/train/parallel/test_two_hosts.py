"""Two machines that meet by torchrun's c10d rendezvous: two network namespaces of this one, and a cable between."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.helpers import QUICK, records

pytestmark = pytest.mark.slow

ADDRESSES = ("10.213.7.1", "10.213.7.2")
PORT = 29400  # of a network that nobody else is in


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Names of two namespaces, each with a card ``card`` that has one of ADDRESSES."""
    if shutil.which("ip") is None:
        pytest.skip("no network namespaces: the command ip (iproute2) is not installed")
    names = (f"quintet-{os.getpid()}-a", f"quintet-{os.getpid()}-b")
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", "card", "netns", names[0], "type", "veth", "peer", "name", "card", "netns", names[1])
            for name, address in zip(names, ADDRESSES, strict=True):
                ip("-n", name, "address", "add", f"{address}/24", "dev", "card")
                ip("-n", name, "link", "set", "card", "up")
                ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces: {error.stderr.strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def test_two_hosts_train_to_the_losses_of_one(run_file, start, launch, hosts, tmp_path) -> None:
    file = run_file("apart", parallel={"kind": "fsdp"})
    begun = []
    for number, (name, address) in enumerate(zip(hosts, ADDRESSES, strict=True)):
        line = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes=2"]
        line += ["--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:{PORT}"]
        line += [f"--rdzv-conf=is_host={1 - number}", f"--local-addr={address}", "--rdzv-id=apart"]
        # Both have the name of this machine, which stands for 127.0.0.1 in each.
        begun.append(start([*line, "-m", "quintet", "train", *QUICK, str(file)], GLOO_SOCKET_IFNAME="card"))
    said = [process.communicate(timeout=200)[0] for process in begun]
    assert [process.returncode for process in begun] == [0, 0], said
    assert sum("parallel: fsdp over 2 processes" in text for text in said) == 1  # the first process alone speaks
    assert launch(2, run_file("together", parallel={"kind": "fsdp"})).returncode == 0
    assert records(tmp_path / "runs/apart") == records(tmp_path / "runs/together")
