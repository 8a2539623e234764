"""For pytest -p: the extension that FOURDTHINKER_SANITIZED names, in place of the installed one."""

import importlib.util
import os
import sys
from pathlib import Path

import fourdthinker

PATH = os.environ["FOURDTHINKER_SANITIZED"]
_spec = importlib.util.spec_from_file_location("fourdthinker._video", PATH)
if _spec is None or _spec.loader is None:
    raise ImportError(f"{PATH} is no extension module")
_module = importlib.util.module_from_spec(_spec)
sys.modules["fourdthinker._video"] = _module
_spec.loader.exec_module(_module)
vars(fourdthinker)["_video"] = _module
if "libasan" not in Path("/proc/self/maps").read_text():
    raise RuntimeError("AddressSanitizer is not loaded; set LD_PRELOAD")
