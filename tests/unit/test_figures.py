"""Figures in README and docs are those of the files that they name: each row is made again from the file."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = "bench/results/2026-11-21-cpu-amd-epyc-2-cores.json"
VIDEO = "bench/results/2026-11-28-cpu-amd-epyc-2-cores.json"
ERRORS = HEAD = TRAINING = "bench/results/2026-11-30-cpu-amd-epyc-2-cores.json"
PRECISION = "bench/results/2026-12-01-cpu-amd-epyc-2-cores.json"
SAMPLER = RESIZE = "bench/results/2026-11-29-cpu-amd-epyc-2-cores.json"
LONG_GROUPS = tuple(f"h264 {size} GOP 250" for size in ("720p 20 s", "1080p 10 s"))


def load(path: str) -> Any:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def span(values: list[float], digits: int) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


# --- README: speed and memory -----------------------------------------------------------------------------


def sampler_rows() -> list[str]:
    found = load(SAMPLER)["sampler --tiny"]["rows"]
    rows = {row["case"]: row["hf"]["median"] / row["ours"]["median"] for row in found}
    return [
        "| sampling with top-p 0.9, 2 clips × 8 rows, 151,668 ids | Hugging Face `generate` "
        f"| {rows['top_p']:.1f} | [S][S] |",
        f"| the same at temperature 1, untruncated | | {rows['plain']:.1f} | [S][S] |",
        f"| the same, greedy | | {rows['greedy']:.1f} | [S][S] |",
    ]


def kernel_rows() -> list[str]:
    rows = load(KERNELS)["kernels must hold 151668"]["rows"]
    middle = {
        (row["op"], row["head"]): {k: row[k]["median"] for k in ("eager", "ours", "masked")} for row in rows
    }
    both = {
        op: " / ".join(
            digits(middle[op, head]["eager"] / middle[op, head]["ours"]) for head in ("trained", "frozen")
        )
        for op in ("linear_cross_entropy", "linear_grpo_loss")
    }
    masked = span([found["ours"] / found["masked"] for found in middle.values()], 1)
    return [
        "| `linear_cross_entropy`, 2,048 rows, 151,668 ids, head trained / frozen | eager torch "
        f"| {both['linear_cross_entropy']} | [K][K] |",
        "| `linear_grpo_loss`, the same | TRL's formula in eager torch "
        f"| {both['linear_grpo_loss']} | [K][K] |",
        f"| either, 90 % of the rows masked | itself, unmasked | {masked} | [K][K] |",
    ]


# Candidates of the head as the results call them, and as the README does. "Liger" is the name it had first.
PEERS = {
    "eager": "eager torch", "eager (TRL)": "TRL's formula in eager torch",
    "torch.compile": "eager torch, compiled",
    "F.linear_cross_entropy": "`F.linear_cross_entropy`",
    "TRL fused head": "TRL's fused head (1.16), in torch",
    "Liger, not compiled": "Liger 0.8.5, not compiled", "Liger": "Liger 0.8.5, not compiled",
}  # fmt: skip
NOT_PEERS = ("ours", "its matmuls alone")
MODES = {
    ("forward+backward, head trained", "forward+backward, head frozen"): "head trained / frozen",
    ("forward", "forward+backward, head trained"): "forward / and backward, head trained",
}
# What is known to be fast and is absent in a file of a CPU, as the README names it.
ABSENT = {
    "verl fused head": "verl's Triton head", "Liger": "Liger's Triton cross-entropy",
    "torch.compile": "`torch.compile` was left out",
}  # fmt: skip


def digits(value: float) -> str:
    """Two of them that count: 0.97, 1.0, 15."""
    return f"{value:#.2g}".rstrip(".")


def raced(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Op -> mode -> candidate that ran -> its time by ours, of the ops that contain the head's product."""
    found: dict[str, Any] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row.get("op", "").startswith("linear_") and "seconds" in row and row["candidate"] not in NOT_PEERS:
            found[row["op"]][row["mode"]][row["candidate"]] = row["time_over_ours"]
    return found


SIZES = ("kernels", "kernels head", "kernels head-bf16")  # as the bench saves them, those that there are


def head_rows() -> list[str]:
    """A line of each candidate that ran, the fastest first: none can be left out."""
    lines, groups = [], load(HEAD)
    for group in (name for name in SIZES if name in groups):
        rows = groups[group]["rows"]
        count, width, vocabulary, dtype = (
            next(row["size"] for row in rows if "op" in row).replace("x", "").split()
        )
        size = f"{count} rows × {int(width):,}, {int(vocabulary):,} ids, {dtype}"
        for op, modes in raced(rows).items():
            first, what = next(iter(modes.values())), MODES[tuple(modes)]
            for place, name in enumerate(sorted(first, key=first.get)):
                ratios = " / ".join(digits(found[name]) for found in modes.values())
                case = f"`{op}`, {size}, {what}" if place == 0 else "the same"
                lines.append(f"| {case} | {PEERS[name]} | {ratios} | [E][E] |")
            size = "the same"
    return lines


# TRL's candidates, by what sets them apart.
SWITCHES = {
    "TRL, fair": "`gradient_checkpointing=False`",
    "TRL, fair, gradient checkpointing": "`gradient_checkpointing=True`", "TRL, as installed": "as installed",
}  # fmt: skip
LENGTHS = (64, 32)  # of completions


def updates() -> tuple[dict[tuple[str, int], dict[str, Any]], bool]:
    """(candidate, tokens of a completion) -> row of the race at 1,000 and 8; whether all are of one run.

    Where TRL as installed is not, its row is of an older run, with that run's row of ours as "ours, older".
    """
    groups = load(TRAINING)
    found = {
        (row["candidate"], row["new_tokens"]): row
        for row in groups["training grpo"]["rows"]
        if (row["prompt_tokens"], row["completions"]) == (1_000, 8) and "absent" not in row
    }
    if at_once := ("TRL, as installed", 64) in found:
        assert "training grpo as installed" not in groups
    else:
        ours, theirs = groups["training grpo as installed"]["rows"]
        found |= {("ours, older", 64): ours, ("TRL, as installed", 64): theirs}
    return found, at_once


def best_of_trl(key: str, names: list[str]) -> dict[int, tuple[str, float]]:
    """Tokens of a completion -> candidate of ``names`` with the least ``key``, and what ours has of it."""
    found, best = updates()[0], {}
    for tokens in LENGTHS:
        name = min((name for name in names if (name, tokens) in found), key=lambda n: found[n, tokens][key])
        best[tokens] = (name, found["ours", tokens][key] / found[name, tokens][key])
    return best


def training_rows() -> list[str]:
    """Speed against the faster fair one, memory against the lowest of all."""
    found, at_once = updates()
    fair = [name for name in SWITCHES if name != "TRL, as installed"]
    fast, small = best_of_trl("median", fair), best_of_trl("peak_bytes", list(SWITCHES))

    def switches(best: dict[int, tuple[str, float]]) -> str:
        return " / ".join(dict.fromkeys(SWITCHES[best[tokens][0]] for tokens in LENGTHS))

    speed = " / ".join(digits(1 / fast[tokens][1]) for tokens in LENGTHS)
    peaks = " / ".join(digits(small[tokens][1]) for tokens in LENGTHS)
    installed = (
        found["TRL, as installed", 64]["median"] / found["ours" if at_once else "ours, older", 64]["median"]
    )
    return [
        "| a 4DRL update, 2 prompts of 1,000 tokens × 8 completions of 64 / 32, 104 M weights "
        "| `trl.GRPOTrainer` 1.16, frozen tower, masked rows left out, "
        f"{switches(fast)} | {speed} | [E][E] |",
        f"| the same, its peak of memory | the lowest of TRL's: {switches(small)} | {peaks} of it | [E][E] |",
        "| the same, completions of 64 | `trl.GRPOTrainer` 1.16 as installed "
        f"| {digits(installed)} | [E][E] |",
    ]


def video_ratios() -> dict[tuple[str, str], dict[str, float]]:
    """(clip, sampling) -> peer -> its time by ours."""
    medians: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for row in load(VIDEO)["video"]["rows"]:
        if not row["fault"]:
            medians[row["clip"], row["sampling"]][row["reader"]] = row["median"]
    return {
        key: {peer: value / found["ours"] for peer, value in found.items() if not peer.startswith("ours")}
        for key, found in medians.items()
    }


def video_rows() -> list[str]:
    ratios = video_ratios()
    long_groups = [peers for (clip, _), peers in ratios.items() if clip in LONG_GROUPS]
    torchcodec = [min(v for k, v in peers.items() if k.startswith("torchcodec")) for peers in long_groups]
    best = [min(peers.values()) for (clip, _), peers in ratios.items() if "GOP" in clip]
    return [
        "| reading H.264 with B-frames, GOP 250, 720p and 1080p, at 1 a second or 16 uniform times "
        f"| decord + Pillow | {span([peers['decord + Pillow'] for peers in long_groups], 1)} | [V][V] |",
        f"| the same | the best mode of torchcodec | {span(torchcodec, 2)} | [V][V] |",
        "| reading H.264, HEVC, VP9, AV1, GOP 30 and 250, 480p to 4K "
        f"| the best of torchcodec, decord, PyAV, OpenCV | {span(best, 2)} | [V][V] |",
    ]


def resize_rows() -> list[str]:
    rows = {(row["start"], row["what"]): row["ms a frame"] for row in load(RESIZE)["resize"]["rows"]}
    ours = rows["rgb 720p", "ours, avx2"]
    return [
        "| resize 1280x720 to 588x336, Lanczos, one core with AVX2 | Pillow "
        f"| {rows['rgb 720p', 'Pillow'] / ours:.1f} | [S][S] |",
        f"| the same | torch `interpolate` | {rows['rgb 720p', 'torch'] / ours:.2f} | [S][S] |",
    ]


SPEED = (sampler_rows, kernel_rows, head_rows, training_rows, video_rows, resize_rows)


@pytest.mark.parametrize("rows", SPEED)
def test_speed_and_memory_in_the_readme(rows):
    text = page("README.md")
    assert [row for row in rows() if row not in text] == []


def test_every_row_of_the_readme_is_made_here():
    text = page("README.md")
    table = text[text.index("| | against |") :].split("\n\n")[0].splitlines()[2:]
    assert table == [row for rows in SPEED for row in rows()]
    for letter, path in {"K": KERNELS, "V": VIDEO, "S": SAMPLER, "E": ERRORS, "P": PRECISION}.items():
        assert f"[{letter}]: {path}" in text


def test_no_faster_peer_of_the_head_is_left_out_of_the_readme():
    """Of each op and mode the fastest that ran has a line, and who is absent has a word."""
    text, groups = " ".join(page("README.md").split()), load(HEAD)
    rows = [row for group in SIZES if group in groups for row in groups[group]["rows"]]
    for group in (name for name in SIZES if name in groups):
        for op, modes in raced(groups[group]["rows"]).items():
            for mode, found in modes.items():
                fastest = min(found, key=found.get)
                lines = [line for line in head_rows() if f"| {PEERS[fastest]} |" in line]
                assert any(digits(found[fastest]) in line and line in text for line in lines), (op, mode)
    missing = {row["candidate"] for row in rows if "absent" in row} - {"Liger, not compiled"}
    assert [ABSENT[name] for name in missing if ABSENT[name] not in text] == []
    assert "the Triton form of TRL's head need CUDA" in text
    if "torch.compile" in missing:  # what an older file says of it
        older = raced(load(KERNELS)["kernels"]["rows"])
        cross, grpo = (
            [digits(found["torch.compile"]) for found in older[op].values()]
            for op in ("linear_cross_entropy", "linear_grpo_loss")
        )
        assert f"took {cross[0]} (head trained) and {cross[1]} (frozen)" in text
        assert f"{grpo[0]} and {grpo[1]} of that of `linear_grpo_loss`" in text


def test_what_the_readme_says_of_the_race_with_trl():
    found, at_once = updates()
    text = " ".join(page("README.md").split())
    assert "on a CPU TRL as installed scores every position and trains the tower" in text
    assert "`gradient_checkpointing=True`, its default" in text
    both = all(("TRL, fair, gradient checkpointing", tokens) in found for tokens in LENGTHS)
    assert ("not with that switch" in text) is not both
    assert ("revision 4fb362d" in text) is not at_once


def test_how_often_was_measured_in_the_readme():
    text = " ".join(page("README.md").split())
    assert "Ratios are those of medians, of at least three runs in turn" in text
    rows = load(SAMPLER)["sampler --tiny"]["rows"]
    runs = {
        "sampling": min(row[who]["runs"] for row in rows for who in ("ours", "hf")),
        "the 4DRL update": min(row["runs"] for row in updates()[0].values()),
        "": min(row["seconds"]["runs"] for row in load(HEAD)["kernels"]["rows"] if "seconds" in row),
    }
    few = [f"{name} ({count} run{'s' * (count > 1)})" for name, count in runs.items() if count < 3]
    assert not few or f"but for {' and '.join(few)}." in text
    assert few or "but for" not in text


def test_errors_of_log_probabilities():
    """As the bench takes them, and of logits that are ten times larger."""
    ours, theirs, larger, their_larger = (
        row["largest"]
        for row in load(PRECISION)["kernels errors"]["rows"]
        if row["candidate"] in ("ours", "TRL fused head")
    )
    readme, kernels = (" ".join(page(name).split()) for name in ("README.md", "docs/kernels.md"))
    assert f"are within {ours:.1e} of float64 on the same inputs; TRL's fused head" in readme
    assert f"is within {theirs:.1e} ([P][P]; 151,668 ids" in readme
    assert f"{larger:.1e} and {their_larger:.2f} where these are ten times larger" in readme
    assert f"are within {ours:.1e} of float64 on the same inputs where logits reach 5.6" in kernels
    assert f"{larger:.1e} where they reach 56" in kernels
    assert f"is off by {theirs:.1e}, and by {their_larger:.2f} there" in kernels
    assert PRECISION in kernels
    assert ours < 1e-5


def test_sampler_page():
    text = page("docs/sampler.md")
    names = {"top_p": "temperature 1, top-p 0.9", "plain": "temperature 1", "greedy": "greedy"}
    for row in load(SAMPLER)["sampler --tiny"]["rows"]:
        theirs, ours = row["hf"]["median"], row["ours"]["median"]
        assert f"| {names[row['case']]} | {theirs:.1f} s | {ours:.2f} s | {theirs / ours:.1f} |" in text
    assert SAMPLER in text


def test_speed_in_the_video_page():
    ratios, text = video_ratios(), page("docs/video.md")
    sizes = {"h264 720p 20 s GOP 250": "1280x720, 20 s", "h264 1080p 10 s GOP 250": "1920x1080, 10 s"}
    for clip, name in sizes.items():
        for sampling, times in (("1 fps", "1 a second"), ("16 uniform", "16 uniform")):
            peers = ratios[clip, sampling]
            torchcodec = min(value for peer, value in peers.items() if peer.startswith("torchcodec"))
            cells = (torchcodec, peers["decord + Pillow"], min(peers.values()))
            assert f"| {name}, {times} | {' | '.join(f'{value:.2f}' for value in cells)} |" in text
    made = [min(peers.values()) for (clip, _), peers in ratios.items() if "GOP" in clip]
    real = [min(peers.values()) for (clip, _), peers in ratios.items() if "GOP" not in clip]
    assert f"the best peer takes {span(made, 2)} times as long" in text
    assert f"over four real clips, one of them MPEG-4, {span(real, 2)}" in text


# --- labels of motion -------------------------------------------------------------------------------------


def test_labels_from_true_geometry():
    goals = {"camera": ("camera moves", 99), "direction": ("direction", 98),
             "distance": ("distance change", 99), "speed": ("speed", 95)}  # fmt: skip
    text = page("docs/synthesis-labels.md")
    rows = load(ERRORS)["geometry truth"]["rows"]
    assert [row["label"] for row in rows] == list(goals)
    for row in rows:
        name, goal = goals[row["label"]]
        accepted, right = row["accepted"] / row["asked"], row["right"] / row["accepted"]
        cells = f"{row['asked']} | {percent(accepted)} % | {percent(right)} % | {goal} %"
        assert f"| {name} | {cells} |" in text


def test_labels_from_estimated_geometry():
    names = {
        "camera": "camera moves",
        "direction": "direction",
        "distance": "distance change",
        "speed": "speed",
    }
    text = page("docs/synthesis-labels.md")
    name = "geometry estimated, masks by motion, 26 scenes of 480 at 30"
    both = [load(ERRORS)[group]["rows"] for group in (name, f"{name}, from 26")]
    assert all([row["label"] for row in rows] == list(names) for rows in both)
    for pair in zip(*both, strict=True):
        label, cells = names[pair[0]["label"]], []
        times: dict[tuple[str, str], list[int]] = {}
        for k, row in enumerate(pair):
            accepted, right = row["accepted"] / row["asked"], row["right"] / row["accepted"]
            cells.append(f"{row['asked']} | {percent(accepted)} % | {percent(right)} %")
            for other in row["other"]:
                times.setdefault((other["asked"], other["said"]), [0, 0])[k] = other["times"]
        assert f"| {label} | {' | '.join(cells)} |" in text
        for (asked, said), (first, second) in times.items():
            assert f"| {label} | {asked} | {said} | {first} | {second} |" in text
    asked, accepted, right = (sum(row[key] for row in both[1]) for key in ("asked", "accepted", "right"))
    assert f"{accepted} of {asked} labels are accepted and {right} of these are right" in text


def test_the_path_of_the_fox():
    text = page("docs/synthesis-labels.md")
    found = {row["estimator"]: row for row in load(ERRORS)["geometry fox"]["rows"]}
    turn, way, equal = (found["opencv"][key] for key in ("turn", "way", "equal_seconds"))
    assert (
        f"| turn between neighbours, median | 2° | {turn['median']:.2f}° |\n"
        f"| the same, 90 % | | {turn['90 %']:.2f}° |\n"
        f"| direction of translation, median | 15° | {way['median']:.1f}° |\n"
        f"| the same, 90 % | | {way['90 %']:.1f}° |\n"
        f"| seconds with equal camera moves | 85 % | {100 * equal:.0f} % |\n"
    ) in text


# --- every table of measured figures names its file --------------------------------------------------------

# A cell that is a number alone, with or without its unit; a table in which most lines hold two is of figures.
NUMBER = re.compile(r"[−+-]?\d[\d,.]*( ?(%|s|°|points))?(?![\w/*])")
NO_FIGURES = ("docs/settings.md", "docs/scaling.md")  # defaults, and bytes by definition


def tables() -> list[tuple[str, str, list[str]]]:
    """(page, section that holds it, lines without the head) of all tables of figures."""
    found = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        name = path.relative_to(ROOT).as_posix()
        for section in re.split(r"(?m)^(?=#)", path.read_text(encoding="utf-8")):
            for block in re.findall(r"(?m)(?:^\|.*\n?)+", section):
                lines = block.splitlines()[2:]
                numeric = [sum(bool(NUMBER.match(c.strip())) for c in line.split("|")) >= 2 for line in lines]
                if name not in NO_FIGURES and sum(numeric) > len(lines) / 2:
                    found.append((name, section, lines))
    return found


def test_every_table_of_figures_names_its_file():
    every, unnamed = tables(), []
    assert {name for name, _, _ in every} >= {"README.md", "docs/sampler.md",
                                              "docs/synthesis-labels.md", "docs/video.md"}  # fmt: skip
    for name, section, lines in every:
        links = {f"[{letter}][{letter}]" for letter in "KVSE"}
        files = re.findall(r"(?:bench/)?results/[\w./-]+\w", section)
        assert all((ROOT / file).exists() for file in files), files
        linked = all(any(link in line for link in links) for line in lines)
        if not files and not linked:
            unnamed.append(f"{name}: {lines[0]}")
    assert unnamed == []


# --- damaged files ----------------------------------------------------------------------------------------


def wrong_frames() -> dict[tuple[str, str], list[int]]:
    """(file, reader) -> wrong frames without an error, by kind of damage."""
    found: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for row in load(VIDEO)["damage"]["rows"]:
        found[row["file"], row["reader"]][row["kind"]] = row.get("wrong") or 0
    kinds = ("zeroed", "random", "flipped", "removed")
    return {key: [by_kind[kind] for kind in kinds] for key, by_kind in found.items()}


def test_damage_in_the_readme():
    wrong = wrong_frames()
    ours = [sum(wrong[f"h264 {container}", "ours"]) for container in ("mp4", "mkv")]
    theirs = [
        {sum(wrong[f"h264 {container}", reader]) for reader in ("torchcodec", "decord")}
        for container in ("mp4", "mkv")
    ]
    assert all(len(both) == 1 for both in theirs)
    sentence = (
        f"ours gave {ours[0]} and {ours[1]} wrong frames without an error, torchcodec and decord "
        f"{theirs[0].pop()} and {theirs[1].pop()}"
    )
    assert sentence in " ".join(page("README.md").split())


def test_damage_in_the_video_page():
    names = {
        "h264 mp4": "H.264 in MP4", "h264 mkv": "H.264 in Matroska", "h264 ts": "H.264 in MPEG-TS",
        "hevc mp4": "H.265 in MP4", "hevc mkv": "H.265 in Matroska", "hevc ts": "H.265 in MPEG-TS",
        "vp9 webm": "VP9 in WebM", "av1 mp4": "AV1 in MP4",
    }  # fmt: skip
    wrong, text = wrong_frames(), page("docs/video.md")
    for file, name in names.items():
        cells = [", ".join(map(str, wrong[file, reader])) for reader in ("ours", "torchcodec", "decord")]
        cells[2] = "does not read it" if file == "av1 mp4" else cells[2]
        assert f"| {name} | {' | '.join(cells)} |" in text
    assert VIDEO in text


# --- the demo ---------------------------------------------------------------------------------------------


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def accuracy(part: dict[str, Any], interval: bool = True) -> str:
    bounds = f" ({percent(part['low'])} – {percent(part['high'])})" if interval else ""
    return f"{percent(part['accuracy'])} %{bounds} | {percent(part['greedy'])} %"


def points(part: dict[str, float]) -> str:
    signed = [f"{100 * part[key]:+.1f}".replace("-", "−") for key in ("mean", "low", "high")]
    return f"{signed[0]} ({signed[1]} … {signed[2]})"


def demo_rows() -> list[str]:
    seeds = [load(f"results/demo/seed{seed}.json") for seed in (0, 1)]
    parts = {"majority class": "majority", "base model": "base", "after DIFT": "dift",
             "control: more DIFT": "dift_control", "after 4DRL": "rl"}  # fmt: skip
    rows = [f"| chance | {' | '.join(accuracy(seed['chance'], False) for seed in seeds)} |"]
    rows += [
        f"| {name} | {' | '.join(accuracy(seed[key]) for seed in seeds)} |" for name, key in parts.items()
    ]
    for name, key in {"DIFT": "rl_minus_dift", "control": "rl_minus_control"}.items():
        cells = [f"{points(seed[key])} | {points(seed['greedy_' + key])}" for seed in seeds]
        rows.append(f"| 4DRL − {name}, points | {' | '.join(cells)} |")
    return rows


def test_the_demo_in_the_readme():
    text = page("README.md")
    table = text[text.index("| | seed 0 |") :].split("\n\n")[0].splitlines()[2:]
    assert table == demo_rows()
    for seed in (0, 1):
        found = load(f"results/demo/seed{seed}.json")
        assert f"{found['dift']['n']:,}" in text
        dift, control = found["dift"]["entropy"], found["dift_control"]["entropy"]
        assert f"{dift:.2f} after DIFT, {control:.2f} for the control" in text
        assert f"{percent(found['black_frames']['accuracy'])} %" in text
        assert f"{percent(found['other_frames']['accuracy'])} %" in text
