"""Records: the lines of data that training and evaluation read, validated before anything else runs."""

from fourdthinker.records.line import Record, letter_of, literal, options_in, options_of
from fourdthinker.records.read import read_media, read_records, write_records
from fourdthinker.records.rejected import check_rejected, empty_rejected
from fourdthinker.records.source import media_key, question_key, source_name, source_of

__all__ = [
    "Record",
    "check_rejected",
    "empty_rejected",
    "letter_of",
    "literal",
    "media_key",
    "options_in",
    "options_of",
    "question_key",
    "read_media",
    "read_records",
    "source_name",
    "source_of",
    "write_records",
]
