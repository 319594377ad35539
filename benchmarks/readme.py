"""Write into README.md what its commands print, and the picture of a report.

    python benchmarks/readme.py                                    # the outputs
    python benchmarks/readme.py runs/quickstart/report.html        # the picture, too; needs Chromium

A comment `<!-- quintet ... -->` names the command whose output is the block after it. The YAML block that begins with a
comment of a file's name is that file.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
README = REPOSITORY / "README.md"
PICTURE = REPOSITORY / "docs/images/report.png"
OUTPUT = re.compile(r"(?<=<!-- quintet )(.+?)( -->\n```\n)(.*?)(?=```\n)", re.DOTALL)
FILE = re.compile(r"```yaml\n# (\S+\.yaml)\n(.*?)```", re.DOTALL)


def printed(command: str, readme: str) -> str:
    """What ``quintet COMMAND`` prints in a folder with the README's files and the examples."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in FILE.findall(readme):
            (Path(folder) / name).write_text(f"# {name}\n{text}", encoding="utf-8")
        (Path(folder) / "my/texts").mkdir(parents=True)  # what mine.yaml reads
        (Path(folder) / "my/texts/0.txt").write_text("A text.\n", encoding="utf-8")
        (Path(folder) / "examples").symlink_to(REPOSITORY / "examples")
        environment = os.environ | {"COLUMNS": "200", "DATA_ROOT": folder}
        done = subprocess.run(
            [sys.executable, "-m", "quintet", *command.split()],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    return done.stdout


def with_outputs(readme: str) -> str:
    """The text of the README with the output of each of its commands as it is now."""
    return OUTPUT.sub(lambda match: match[1] + match[2] + printed(match[1], readme), readme)


def draw(report: Path) -> None:
    """Take a picture of the top of a report."""
    browsers = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not browsers:
        sys.exit("readme.py: no browser: neither chromium, chromium-browser nor google-chrome is installed")
    PICTURE.parent.mkdir(exist_ok=True)
    size = ("--window-size=1100,900", "--hide-scrollbars", f"--screenshot={PICTURE}")
    subprocess.run(
        [browsers[0], "--headless", "--no-sandbox", "--disable-gpu", *size, report.resolve().as_uri()], check=True
    )


def main() -> None:
    README.write_text(with_outputs(README.read_text(encoding="utf-8")), encoding="utf-8")
    if len(sys.argv) > 1:
        draw(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
