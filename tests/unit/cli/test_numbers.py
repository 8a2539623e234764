"""Numbers on the command line that cannot be: refused by the name of the argument, before any work."""

from __future__ import annotations

import pytest

from fourdthinker import cli
from fourdthinker.errors import ConfigError
from fourdthinker.frames import FrameSource, read_images
from fourdthinker.thinker import question_record

NEVER = ["nan", "-1", "x", "9" * 30]
ASK = ["generate", "--checkpoint", "/no", "--question", "?"]
EVAL = ["eval", "--checkpoint", "/no", "--data", "/no", "--out", "/no/out"]
SYNTH = ["synth", "scenes:1", "-o", "/no/out"]
ARGUMENTS = [
    (["audit", "/no"], "--keep", ["0", "1.5", "-inf"]),
    (["audit", "/no"], "--worst", []),
    (["audit", "/no"], "--folds", ["1", "0", "2.5"]),
    (["audit", "/no"], "--seed", [str(2**32)]),
    (["compare", "/no", "/no"], "--flips", []),
    (["demo"], "--seed", [str(2**32)]),
    (EVAL, "--samples", ["1e3", "65537"]),
    (EVAL, "--batch", ["0"]),
    (ASK, "--samples", ["0", "65537"]),
    (ASK, "--batch", ["0"]),
    (ASK, "--start", ["inf"]),
    (ASK, "--end", ["inf", "0"]),
    (ASK, "--temperature", ["inf", "1e300"]),
    (ASK, "--top-k", []),
    (ASK, "--top-p", ["2"]),
    (ASK, "--min-p", ["1"]),
    (ASK, "--presence-penalty", ["inf", "1e300"]),
    (ASK, "--repetition-penalty", ["0", "1e-38"]),
    (ASK, "--max-new-tokens", ["0"]),
    (ASK, "--max-blocks", []),
    (ASK, "--eos-id", []),
    (["init", "/no", "/no/out"], "--latent-size", ["0", "5000"]),
    (["preview", "/no"], "--most", ["0"]),
    (["probe", "/no"], "--fps", ["0", "1e300", "inf", "1e7"]),
    (SYNTH, "--limit", ["0"]),
    (SYNTH, "--seed", ["0.5"]),
    (SYNTH, "--fps", ["0", "1e300", "inf"]),
    (SYNTH, "--workers", ["0", "5000"]),
    (SYNTH, "--timeout", ["0", "inf"]),
    (SYNTH, "--attempts", ["0"]),
]
# Numbers that may be, or that only the model refuses.
MANY = "9" * 30
ALLOWED = {
    ("--presence-penalty", "-1"),
    ("--presence-penalty", MANY),
    ("--temperature", MANY),
    ("--start", MANY),
    ("--end", MANY),
    ("--eos-id", MANY),
}


@pytest.mark.parametrize(
    ("command", "flag", "value"),
    [
        (command, flag, value)
        for command, flag, more in ARGUMENTS
        for value in [*NEVER, *more]
        if (flag, value) not in ALLOWED
    ],
)
def test_a_number_is_refused_by_name(
    command: list[str], flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = cli.main([*command, f"{flag}={value}"])
    except SystemExit as stop:
        status = int(stop.code or 0)
    said = capsys.readouterr().err.splitlines()[-1]
    assert status == 2
    assert flag.strip("-").replace("-", "_") in said.replace("-", "_")
    assert value[:30] in said or str(float(value)) in said or "nan" in said
    assert "/no" not in said


@pytest.mark.parametrize(
    ("start", "end"), [(-1, None), (float("nan"), 2), (None, float("inf")), (2, 2), (None, 0)]
)
def test_a_part_of_a_video_that_cannot_be(start: float | None, end: float | None) -> None:
    with pytest.raises(ConfigError, match=r"^(start|end) is"):
        question_record(None, "?", start=start, end=end)


def test_a_rate_that_times_cannot_tell_apart() -> None:
    for fps in (1e300, 1e7, float("nan"), 0):
        with pytest.raises(ConfigError, match=r"^fps is .*at most 1e\+06"):
            FrameSource("a.mp4", fps=fps)
        with pytest.raises(ConfigError, match=r"^fps is .*at most 1e\+06"):
            read_images(["a.png"], fps=fps)
    assert FrameSource("a.mp4", fps=1e6).fps == 1e6
