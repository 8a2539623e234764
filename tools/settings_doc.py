"""Write docs/settings.md anew from the settings: `python tools/settings_doc.py`."""

from __future__ import annotations

from pathlib import Path

from fourdthinker.settings import settings_of, settings_tables
from fourdthinker.synth.settings import SynthSettings
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig, TrainConfig

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"


def settings_page() -> str:
    """docs/settings.md: what both trainers have, then what is particular to each, then synthesis."""
    shared = {setting.key: setting for _, group in settings_of(TrainConfig) for setting in group}
    lines = [
        "# Settings",
        "",
        "Made by `python tools/settings_doc.py` from `fourdthinker/trainers/settings.py` and",
        "`fourdthinker/synth/settings.py`; change the text there. How settings are given is said in",
        "[training.md](training.md) and [synthesis.md](synthesis.md).",
        "",
        "## Both trainers",
        *settings_tables(settings_of(TrainConfig)),
    ]
    for title, config in (("DIFT", DiftConfig), ("4DRL", GrpoConfig)):
        groups = settings_of(config)
        every = [setting for _, group in groups for setting in group]
        other = [s for s in every if s.key in shared and s.default != shared[s.key].default]
        own = [(name, [s for s in group if s.key not in shared]) for name, group in groups]
        defaults = ", ".join(f"`{setting.key}={setting.default}`" for setting in other)
        lines += ["", f"## {title} alone", "", f"Other defaults of the settings above: {defaults}."]
        lines += settings_tables([group for group in own if group[1]])
    lines += ["", "## Synthesis", "", "Those of the YAML file of `fourdthinker synth --config`."]
    lines += settings_tables(settings_of(SynthSettings))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(settings_page(), encoding="utf-8")
