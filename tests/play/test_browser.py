"""The page in headless Chromium, served by the command, as a person uses it."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mido
import numpy as np
import pytest
from tests.helpers import Command

from quintet.piano.midi import midi_bytes
from quintet.piano.notes import notes

pytest.importorskip("streamlit")
playwright = pytest.importorskip("playwright.sync_api")

START = np.arange(12) * 0.2
PIECE = midi_bytes(notes(60 + np.arange(12) % 7, np.full(12, 64), START, START + 0.15))
WAIT = 60  # seconds


def file(name: str, data: bytes) -> dict[str, Any]:
    return {"name": name, "mimeType": "audio/midi", "buffer": data}


@pytest.fixture(scope="module")
def server(music_run: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, subprocess.Popen]]:
    """The address of `quintet play`, and its process."""
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-c", "from quintet.cli import main; main()", "play", music_run]
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*command, "--no-browser", "--port", "0"],
            stdout=stream,
            stderr=stream,
            cwd=log.parent,
            env={**os.environ, "HOME": str(log.parent), "OMP_NUM_THREADS": "1"},
        )
    try:
        yield address(process, log), process
    finally:
        process.kill()
        process.wait()


def address(process: subprocess.Popen, log: Path) -> str:
    """Return the address that the server prints, as soon as it answers there."""
    for _ in range(10 * WAIT):
        said = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        if said is not None:
            try:
                urllib.request.urlopen(f"{said[0]}/_stcore/health").close()
                return said[0]
            except urllib.error.URLError:
                pass
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.fixture
def tab(browser: Any, server: tuple[str, subprocess.Popen]) -> Iterator[Any]:
    """An opened page; ``asked`` are all addresses that it requests."""
    page = browser.new_page(viewport={"width": 1200, "height": 1200})
    page.set_default_timeout(1000 * WAIT)
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(server[0])
    page.get_by_text("Choose a MIDI file").wait_for()
    yield page
    page.close()


def choose(tab: Any, label: str, option: str) -> None:
    tab.get_by_role("combobox", name=label).click()
    tab.get_by_role("option", name=option).first.click()


def download(tab: Any, label: str) -> bytes:
    with tab.expect_download() as waiting:
        tab.get_by_role("button", name=label).click()
    return Path(waiting.value.path()).read_bytes()


def test_a_person_uploads_generates_sees_hears_and_downloads(tab: Any, tmp_path: Path) -> None:
    tab.locator("input[type=file]").set_input_files(file("my *first* $5$ piece_.mid", PIECE))
    choose(tab, "What to write", "high_notes_masking-x5")
    tab.get_by_text("The piece is whole").click()  # it is a prompt
    tab.get_by_role("button", name="Generate").click()
    tab.get_by_text("The model was given 12 notes").wait_for()
    assert tab.get_by_text("my *first* $5$ piece_.mid · high_notes_masking-x5").count() == 1
    picture = tab.get_by_test_id("stImage").locator("img")
    assert picture.evaluate("one => one.decode().then(() => one.naturalWidth)") == 1200
    sound = tab.locator("audio")
    tab.wait_for_function("document.querySelector('audio').readyState > 0")
    assert sound.evaluate("one => one.duration") >= START[-1]
    both = mido.MidiFile(file=io.BytesIO(download(tab, "Download MIDI")))
    answer = mido.MidiFile(file=io.BytesIO(download(tab, "The answer alone")))
    struck, answered = ([one.note for one in midi if one.type == "note_on" and one.velocity] for midi in (both, answer))
    assert set(60 + np.arange(7)) <= set(struck)
    assert len(struck) <= 12 + len(answered)
    assert download(tab, "Picture").startswith(b"\x89PNG")
    tab.screenshot(path=tmp_path / "page.png")


def test_nothing_is_asked_of_another_machine(tab: Any, server: tuple[str, subprocess.Popen]) -> None:
    choose(tab, "Piece", "held out 1")
    tab.get_by_role("button", name="Generate").click()
    tab.get_by_role("button", name="Download MIDI").wait_for()
    assert len(tab.asked) > 10
    assert [one for one in tab.asked if not one.startswith((server[0], "data:", "blob:"))] == []


def test_a_broken_file_is_refused_on_the_page_and_the_next_one_taken(tab: Any) -> None:
    tab.locator("input[type=file]").set_input_files(file("broken.mid", b"MThd no more"))
    tab.get_by_text("broken.mid: is no MIDI file that can be read").wait_for()
    assert tab.get_by_role("button", name="Generate").count() == 0
    tab.get_by_role("button", name="Remove broken.mid").click()
    tab.get_by_text("Choose a MIDI file").wait_for()  # a file given while the page changes is lost
    tab.locator("input[type=file]").set_input_files(file("whole.mid", PIECE))
    tab.get_by_role("button", name="Generate").wait_for()


def test_a_task_can_be_typed_and_one_that_nobody_knows_is_refused(tab: Any) -> None:
    tab.locator("input[type=file]").set_input_files(file("whole.mid", PIECE))
    for name, answer in (("high_nots_masking-x2", "did you mean 'high_notes_masking'"), ("low_notes-x2", "given 10 ")):
        box = tab.get_by_role("combobox", name="What to write")
        box.fill(name)
        box.press("Enter")
        tab.get_by_text("The piece is whole").wait_for()
        tab.get_by_role("button", name="Generate").click()
        tab.get_by_text(answer).wait_for()


def test_the_page_is_for_this_machine_alone(server: tuple[str, subprocess.Popen]) -> None:
    port = int(server[0].rsplit(":", 1)[1])
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", port))


def test_a_port_that_is_taken_is_refused_in_one_line(
    server: tuple[str, subprocess.Popen], music_run: str, command: Command
) -> None:
    port = server[0].rsplit(":", 1)[1]
    code, _, error = command("play", music_run, "--no-browser", "--port", port)
    assert code == 2
    assert error.splitlines() == [
        f"error: --port {port}: cannot be used on 127.0.0.1 (Address already in use); name another, or 0 for any that "
        "is free"
    ]


def test_an_interrupt_ends_it(server: tuple[str, subprocess.Popen]) -> None:
    server[1].send_signal(signal.SIGINT)
    assert server[1].wait(WAIT) == 0
