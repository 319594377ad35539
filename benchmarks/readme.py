"""Write what the commands in README.md print into it, and take the picture of a report.

    python benchmarks/readme.py                                             # the outputs
    python benchmarks/readme.py --picture runs/quickstart/report.html       # the picture, too; needs Chromium

A comment `<!-- quintet ... -->` names the command whose output is the block after it. The YAML block that begins with a
comment of a file's name is that file.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
README = REPOSITORY / "README.md"
PICTURE = REPOSITORY / "docs/images/report.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OUTPUT = re.compile(r"(?<=<!-- quintet )(.+?)( -->\n```\n)(.*?)(?=```\n)", re.DOTALL)
FILE = re.compile(r"```yaml\n# (\S+\.yaml)\n(.*?)```", re.DOTALL)


def printed(command: str, readme: str) -> str:
    """Return what ``quintet COMMAND`` prints in a folder with the README's files and the examples."""
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
    """Return the text of the README with the current output of each of its commands."""
    return OUTPUT.sub(lambda match: match[1] + match[2] + printed(match[1], readme), readme)


def draw(report: Path, browser: str) -> None:
    """Take a picture of the top of a report."""
    PICTURE.parent.mkdir(exist_ok=True)
    size = ("--window-size=1100,900", "--hide-scrollbars", f"--screenshot={PICTURE}")
    subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", *size, report.as_uri()], check=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, metavar="report.html", help="also take the picture of this report")
    report: Path | None = parser.parse_args(arguments).picture
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if report is not None:
        if report.suffix != ".html" or not report.is_file():
            parser.error(f"--picture: {report} is no page; `quintet report RUN` writes report.html into its folder")
        if browser is None:
            parser.error(f"--picture: no browser; install one of {', '.join(BROWSERS)}")
    README.write_text(with_outputs(README.read_text(encoding="utf-8")), encoding="utf-8")
    if report is not None and browser is not None:
        draw(report.resolve(), browser)


if __name__ == "__main__":
    main()
