"""What this machine can do, line by line, each with what to do when something is missing."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from fourdthinker.errors import install

Status = Literal["ok", "note", "missing"]

# module -> (what it is used for, how it is installed)
EXTRAS: dict[str, tuple[str, str]] = {
    "tensorboard": (
        "TensorBoard curves (without it, train with report_to=[])",
        install("train"),
    ),
    "peft": ("LoRA", install("train")),
    "deepspeed": ("ZeRO", f"DS_BUILD_OPS=0 {install('zero')} --no-build-isolation"),
}
DECODERS = ("h264", "hevc", "vp9", "av1")


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    status: "ok"; "note": works, with what the text says; "missing": something needed is absent or too old.
    """

    status: Status
    name: str
    text: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Check everything. Never raises: what cannot be looked at is a finding itself.

    Returns:
        All findings, most basic first.
    """
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python,
        _packages,
        _device,
        _video,
        _decoding,
        _extras,
    )
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check()
        except Exception as error:  # noqa: BLE001 - a broken install raises anything on import; the next checks still help
            name = check.__name__.strip("_")
            findings.append(
                Finding("missing", name, f"{type(error).__name__}: {error}", "reinstall fourdthinker")
            )
    return findings


def _python() -> Iterator[Finding]:
    text = f"{platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    oldest = importlib.metadata.metadata("fourdthinker")["Requires-Python"].removeprefix(">=")
    good = version(platform.python_version()) >= version(oldest)
    yield Finding(
        "ok" if good else "missing", "Python", text, "" if good else f"install Python {oldest} or newer"
    )


def _packages() -> Iterator[Finding]:
    for name, (oldest, first_unknown) in requirements().items():
        wanted = f"'{name}>={oldest}'" if oldest else name
        tested = f"{oldest} to below {first_unknown}" if first_unknown else f"{oldest} or newer"
        found = installed(name)
        if found is None and name == "triton":
            text, remedy = "not installed: kernels run as plain torch", "comes with a CUDA build of torch"
            yield Finding("note", name, text, remedy)
        elif found is None:
            yield Finding("missing", name, "not installed", f"pip install {wanted}")
        elif oldest and version(found) < version(oldest):
            yield Finding("missing", name, f"{found}, too old", f"pip install {wanted}")
        elif first_unknown and version(found) >= version(first_unknown):
            text, remedy = (
                f"{found}, newer than tested ({tested})",
                "if something breaks, install an older one",
            )
            yield Finding("note", name, text, remedy)
        else:
            yield Finding("ok", name, f"{found} ({tested})" if oldest else found)


def requirements() -> dict[str, tuple[str | None, str | None]]:
    """The bounds of every package that is always needed, from the metadata of this package.

    Returns:
        Package -> the oldest release that works, and the first one that is not known to (None: no bound).
    """
    found = {}
    for line in importlib.metadata.requires("fourdthinker") or []:
        requirement, _, marker = line.partition(";")
        if "extra ==" in marker:
            continue
        name = re.match(r"[\w.-]+", requirement)[0]  # type: ignore[index]
        bounds = dict(re.findall(r"(>=|<)\s*([\w.]+)", requirement))
        found[name] = (bounds.get(">="), bounds.get("<"))
    return found


def _device() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            text = f"{device.name}, {device.total_memory / 2**30:.0f} GiB, sm_{device.major}{device.minor}"
            yield Finding("ok", f"cuda:{index}", text)
    elif torch.version.cuda is None:
        remedy = "with an NVIDIA GPU, install a CUDA build of torch"
        yield Finding("note", "CUDA", "this torch is a CPU build: everything runs, slowly", remedy)
    else:
        remedy = "check the driver with nvidia-smi, and CUDA_VISIBLE_DEVICES"
        yield Finding(
            "note", "CUDA", f"torch is built for CUDA {torch.version.cuda}, but no GPU is usable", remedy
        )


def _video() -> Iterator[Finding]:
    try:
        module = importlib.import_module("fourdthinker._video")
    except ImportError:
        remedy = "install a C++ compiler (Debian: g++ and python3-dev) and reinstall fourdthinker"
        yield Finding("note", "_video", "not built: frames are resized by a slower fallback", remedy)
        return
    info = module.build_info()
    if not info["cuda"]:
        text = f"CPU build: frames are converted and resized on the host ({info['why_no_cuda']})"
        remedy = "" if not _has_gpu() else "install CUDA's nvcc, 12.8 or newer, and reinstall fourdthinker"
        yield Finding("note" if remedy else "ok", "_video", text, remedy)
        return
    yield Finding("ok", "_video", f"CUDA build for {', '.join(info['archs'])}")
    if not info["nvdec_headers"]:
        remedy = "install ffnvcodec's headers (Debian: libffmpeg-nvenc-dev) and reinstall fourdthinker"
        yield Finding("note", "NVDEC", "not built in: videos are decoded on the host", remedy)
        return
    library = module.nvdec_missing()
    if library is not None:
        remedy = "check the driver with nvidia-smi" if _has_gpu() else ""
        yield Finding("note", "NVDEC library", f"videos are decoded on the host: {library}", remedy)
        return
    yield Finding("ok", "NVDEC library", "libnvcuvid.so.1 is there")
    decoded, reasons = [], []
    for codec in DECODERS:
        reason = module.nvdec_refusal(codec, "420", 8, 1920, 1080, 0)
        decoded += [codec] if reason is None else []
        reasons += [reason] if reason is not None else []
    if decoded:
        lacking = f"; not {', '.join(c for c in DECODERS if c not in decoded)}" if reasons else ""
        yield Finding("ok", "NVDEC", f"decodes {', '.join(decoded)} on the GPU{lacking}")
    else:
        remedy = "check the driver with nvidia-smi" if _has_gpu() else ""
        yield Finding("note", "NVDEC", f"not usable, videos are decoded on the host: {reasons[0]}", remedy)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _decoding() -> Iterator[Finding]:
    try:
        import av
    except ImportError as error:
        yield Finding("missing", "FFmpeg", f"PyAV cannot be imported ({error})", "pip install av")
        return
    libraries = ", ".join(
        f"{name} {'.'.join(map(str, number))}"
        for name, number in sorted(av.library_versions.items())
        if name in ("libavcodec", "libavformat")
    )
    yield Finding("ok", "FFmpeg", f"{libraries}, inside PyAV {av.__version__}")
    absent = [name for name in DECODERS if not _decodes(av, name)]
    if absent:
        remedy = "pip install --force-reinstall av, whose wheel brings all of them"
        yield Finding("missing", "decoders", f"no {', '.join(absent)}", remedy)
    else:
        yield Finding("ok", "decoders", ", ".join(DECODERS))


def _decodes(av: Any, name: str) -> bool:
    try:
        av.Codec(name, "r")
    except (ValueError, av.FFmpegError):  # PyAV's UnknownCodecError is a ValueError
        return False
    return True


def _extras() -> Iterator[Finding]:
    for module, (use, remedy) in EXTRAS.items():
        found = installed(module)
        if found is not None:
            yield Finding("ok", module, f"{found}, for {use}")
        else:
            yield Finding("note", module, f"not installed; for {use}", remedy)


def installed(name: str) -> str | None:
    """The version of the distribution that provides a module, or that is called so.

    Args:
        name: of the module or distribution.

    Returns:
        The version; None where it is not installed.
    """
    try:
        return importlib.metadata.version(_distributions().get(name, [name])[0])
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()  # reads the metadata of every package: a second


def version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version; trailing zeros do not count.

    Args:
        text: such as "2.13.0+cpu".

    Returns:
        Numbers that compare as versions do, such as (2, 13).
    """
    numbers = [int(n) for n in re.match(r"\d*(?:\.\d+)*", text)[0].split(".") if n]  # type: ignore[index]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
