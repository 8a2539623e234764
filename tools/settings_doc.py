"""Write docs/settings.md anew from the settings: `python tools/settings_doc.py`."""

from __future__ import annotations

from pathlib import Path

from fourdthinker.trainers.settings_help import settings_page

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"

if __name__ == "__main__":
    PAGE.write_text(settings_page(), encoding="utf-8")
