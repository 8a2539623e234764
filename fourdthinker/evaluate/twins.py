"""Questions that are one question under symmetry: which records say so."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from fourdthinker.records import Record

log = logging.getLogger(__name__)


def twins_of(records: Sequence[Record]) -> dict[str, str]:
    """The sets of twins that whole records name.

    A set that has fewer questions than the largest lacks some, since a line was left out or is not there:
    being right on the others says less, so that it does not count, and is logged.

    Args:
        records: those that are asked.

    Returns:
        Id of a record -> name of its set, for `EvalResult.consistency`; {} where no record names one.
    """
    named = {record.id: str(record.extra["twins"]) for record in records if "twins" in record.extra}
    sizes = Counter(named.values())
    most = max(2, *sizes.values()) if sizes else 0
    if lacking := [name for name, size in sizes.items() if size < most]:
        log.warning(
            "%d sets of twins have fewer than %d questions, such as %r, and do not count for consistency",
            len(lacking), most, lacking[0],
        )  # fmt: skip
    return {id: name for id, name in named.items() if sizes[name] == most}
