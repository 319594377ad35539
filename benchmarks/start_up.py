"""Start-up time of commands that compute nothing, and proof that they do not import torch.

python benchmarks/start_up.py [RUN]    # with a run folder, also the commands that report on a run
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUN_FILE = Path(__file__).resolve().parents[1] / "examples/quickstart.yaml"
COMMANDS = [["--help"], ["check", str(RUN_FILE)], ["explain", "optimizer.lr"], ["schema"]]


def main() -> None:
    commands = list(COMMANDS)
    for run in sys.argv[1:2]:
        page = str(Path(tempfile.mkdtemp()) / "report.html")
        reports = [["runs", str(Path(run).parent)], ["compare", run, run, "--recorded"], ["report", run, "-o", page]]
        commands += reports
    for command in commands:
        times = []
        for _ in range(7):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "quintet", *command], capture_output=True, check=True)
            times.append(time.perf_counter() - start)
        probe = (
            f"import sys; sys.argv[1:] = {command!r}\nfrom quintet.cli import main\n"
            "try: main()\nexcept SystemExit: print('torch' in sys.modules)"
        )
        torch = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
        print(f"quintet {command[0]:10} {statistics.median(times):6.3f} s, torch imported: {torch.splitlines()[-1]}")


if __name__ == "__main__":
    main()
