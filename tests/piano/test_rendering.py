"""Pictures, read back as pixels and as the bars that were drawn, and sound, measured by its spectrum."""

from __future__ import annotations

import io
import os
import shutil
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from quintet.errors import UserError
from quintet.piano import rendering
from quintet.piano.notes import Notes, notes
from quintet.piano.rendering import (
    ANSWER_COLOUR,
    PROMPT_COLOUR,
    RATE,
    SOUNDFONT,
    available,
    piano_roll,
    render,
    roll_figure,
    soundfont,
    synthesize,
)

PROMPTED = notes(*np.array([(60, 127, 0, 1), (64, 127, 1, 2)], dtype=float).T)
ANSWERED = notes(*np.array([(67, 127, 2, 4)], dtype=float).T)


def pixels(png: bytes) -> np.ndarray:
    from matplotlib.image import imread

    return np.rint(imread(io.BytesIO(png))[..., :3] * 255).astype(int)


def count(image: np.ndarray, colour: str) -> int:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(image - wanted).max(axis=-1) <= 2).sum())


def test_both_colours_are_seen_in_proportion_to_what_sounds() -> None:
    alone, both = pixels(piano_roll(PROMPTED)), pixels(piano_roll(PROMPTED, ANSWERED))
    assert count(alone, PROMPT_COLOUR) > 1000
    assert count(alone, ANSWER_COLOUR) == 0
    assert 0.8 < count(both, PROMPT_COLOUR) / count(both, ANSWER_COLOUR) < 1.25  # two seconds of each


def test_a_bar_is_a_note() -> None:
    figure = roll_figure(PROMPTED, ANSWERED, title="A title")
    (axes,) = figure.axes
    bars = [(bar.get_x(), bar.get_x() + bar.get_width(), bar.get_y() + bar.get_height() / 2) for bar in axes.patches]
    assert bars == [(0, 1, 60), (1, 2, 64), (2, 4, 67)]
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["prompt", "answer"]
    assert len({patch.get_facecolor() for patch in legend.get_patches()}) == 2
    assert "C4" in [label.get_text() for label in axes.get_yticklabels()]
    assert axes.get_xlabel() == "seconds"


def test_nothing_is_a_picture_too() -> None:
    assert pixels(piano_roll(PROMPTED[:0], ANSWERED[:0])).shape == (400, 1200, 3)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"pip install 'quintet\[piano\]'"):
        piano_roll(PROMPTED)


def played(*rows: tuple[float, float, float, float]) -> Notes:
    return notes(*np.array(rows, dtype=float).T)


def samples(data: bytes) -> np.ndarray:
    """The sound of a WAV file, float [samples] between -1 and 1, its channels added."""
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getframerate(), file.getsampwidth()) == (RATE, 2)
        sound = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(float) / 32768
        return sound.reshape(-1, file.getnchannels()).mean(axis=1)


def loudest_frequency(sound: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), n=1 << 19))
    return float(np.fft.rfftfreq(1 << 19, 1 / RATE)[spectrum.argmax()])


@pytest.mark.parametrize("pitch", [33, 57, 69, 93])
def test_a_pitch_has_its_frequency(pitch: int) -> None:
    sound = samples(render(played((pitch, 90, 0, 1)), "additive"))
    assert loudest_frequency(sound) == pytest.approx(440 * 2 ** ((pitch - 69) / 12), rel=0.003)


def test_notes_sound_when_they_should_and_as_loud() -> None:
    sound = samples(render(played((60, 127, 1, 2), (60, 40, 3, 4)), "additive"))
    level = [
        float(np.abs(sound[int(a * RATE) : int(b * RATE)]).max()) for a, b in ((0, 0.99), (1, 2), (2.1, 2.99), (3, 4))
    ]
    assert level[0] == 0
    assert level[1] == pytest.approx(0.9, abs=0.01)
    assert level[2] == 0
    assert level[3] / level[1] == pytest.approx((40 / 127) ** 2, rel=0.01)


def test_a_damper_falls_within_a_few_hundredths_of_a_second() -> None:
    sound = np.abs(synthesize(played((60, 100, 0, 1))))
    before, after = (sound[int(at * RATE) : int((at + 0.01) * RATE)].max() for at in (0.98, 1.06))
    assert 0 < after < 0.1 * before


def test_the_highest_key_has_no_false_overtones() -> None:
    """Those above half the sampling rate would come back as tones that are no multiple of the pitch."""
    spectrum = np.abs(np.fft.rfft(synthesize(played((108, 100, 0, 1)))))
    multiple = np.fft.rfftfreq(int(RATE * 1.08), 1 / RATE) / (440 * 2 ** (39 / 12))
    false = np.abs(multiple - np.round(multiple)) > 0.1
    assert spectrum[false].max() < 0.001 * spectrum.max()


def test_two_notes_are_the_sum_of_both() -> None:
    low, high = played((50, 100, 0, 1)), played((71, 100, 0, 1))
    both = synthesize(played((50, 100, 0, 1), (71, 100, 0, 1)))
    parts = np.stack([synthesize(low), synthesize(high)], axis=1)
    _, missing, *_ = np.linalg.lstsq(parts, both, rcond=None)
    assert missing.sum() < 1e-6 * (both**2).sum()


def test_nothing_is_silence() -> None:
    empty = played((60, 1, 0, 1))[:0]
    assert np.abs(samples(render(empty, "additive"))).sum() == 0


def test_what_is_missing_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UserError, match=r"fluidsynth was not found; install fluidsynth and a soundfont \(Debian"):
        render(played((60, 64, 0, 1)), "fluidsynth")
    assert available().startswith("a plain synthesiser; for the sound of a piano, install fluidsynth")
    assert samples(render(played((60, 64, 0, 1)))).std() > 0.01  # still heard

    monkeypatch.setattr(shutil, "which", lambda _: "/bin/true")
    monkeypatch.setattr(rendering, "_FOLDERS", (str(tmp_path),))
    monkeypatch.delenv(SOUNDFONT, raising=False)
    with pytest.raises(UserError, match="a soundfont was not found"):
        render(played((60, 64, 0, 1)), "fluidsynth")


def test_which_soundfont(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(SOUNDFONT, raising=False)
    monkeypatch.setattr(rendering, "_FOLDERS", (str(tmp_path),))
    assert soundfont() is None
    for name, size in (("a.sf2", 10), ("b.sf3", 30), ("c.txt", 90)):
        (tmp_path / name).write_bytes(b"RIFF....sfbk" + b"." * size)
    assert soundfont() == tmp_path / "b.sf3"
    monkeypatch.setenv(SOUNDFONT, str(tmp_path / "a.sf2"))
    assert soundfont() == tmp_path / "a.sf2"
    (tmp_path / "a.sf2").write_text("no such thing as a soundfont")
    with pytest.raises(UserError, match="is no soundfont"):
        soundfont()
    monkeypatch.setenv(SOUNDFONT, str(tmp_path / "missing.sf2"))
    with pytest.raises(UserError, match=r"missing\.sf2 is no soundfont"):
        soundfont()


@pytest.mark.skipif(not shutil.which("fluidsynth") or not soundfont(), reason="fluidsynth and a soundfont are needed")
def test_fluidsynth_plays_the_same_pitch_at_the_same_time() -> None:
    sound = samples(render(played((69, 100, 1, 2)), "fluidsynth"))
    assert np.abs(sound[: int(0.99 * RATE)]).max() < 0.01
    assert np.abs(sound[RATE : 2 * RATE]).max() > 0.2
    assert loudest_frequency(sound[RATE : 2 * RATE]) == pytest.approx(440, rel=0.01)


@pytest.mark.skipif(os.name != "posix", reason="a shell script stands for fluidsynth")
def test_a_soundfont_that_fluidsynth_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program, font = tmp_path / "fluidsynth", tmp_path / "a.sf2"
    program.write_text("#!/bin/sh\necho cannot load it >&2\nexit 1\n")
    program.chmod(0o755)
    font.write_bytes(b"RIFF....sfbk")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv(SOUNDFONT, str(font))
    with pytest.raises(UserError, match=r"could not render with .*a\.sf2 \(cannot load it\)"):
        render(played((60, 64, 0, 1)))
