"""A cluster on this machine is not reachable from others."""

import subprocess
import sys

import pytest

CODE = """
from pathlib import Path

def listening():
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path("/proc/net", name).read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            if state == "0A":
                found.add(address)
    return found

before = listening()
from ollm_rl.cluster.pool import Pool, start_ray
start_ray(num_cpus=2)
pool = Pool(dict, num_workers=1)
assert pool.call(len) == 0
opened = listening() - before
pool.close()
loopback = ("0100007F:", "00000000000000000000000001000000:", "0000000000000000FFFF00000100007F:")
print(len(opened), sorted(a for a in opened if not a.startswith(loopback)))
"""


@pytest.mark.slow
@pytest.mark.alone  # others open sockets
def test_nothing_listens_beyond_loopback():
    found = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout
    count, beyond = found.strip().splitlines()[-1].split(maxsplit=1)
    assert int(count) > 3
    assert beyond == "[]"
