"""Writing files: whole files at once, JSONL files line by line, and what stops either; reading JSON.

What is written goes through here, so that the same rules hold everywhere: a symbolic link is followed and
stays a link, only regular files are written, a reader sees the old file or the new one and never a half, and
every failure is an `OutputError` that names the file and the remedy. A folder that is itself an output is
created (`make_folder`); the folder that an output file is to stand in must exist. The names
that readers and writers share (picture suffixes, option letters) are here too.
"""

from fourdthinker.files.arrays import create_array
from fourdthinker.files.folders import check_new_folder, new_folder
from fourdthinker.files.jsonl import JsonLines, append_lines, check_output, whole_lines
from fourdthinker.files.locks import FOLDER_LOCK, close_locked, locked_folder, open_locked
from fourdthinker.files.paths import (
    PathLike,
    check_folder,
    is_inside,
    make_folder,
    named_path,
    output_path,
    read_regular,
)
from fourdthinker.files.reading_json import parse_json, read_json_object
from fourdthinker.files.whole import (
    UNFINISHED,
    atomic_writer,
    sync_file,
    sync_folder,
    sync_tree,
    write_bytes,
    write_json,
    write_text,
    writing,
)

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # of the options of a question, in order
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")

__all__ = [
    "FOLDER_LOCK",
    "LETTERS",
    "PICTURE_SUFFIXES",
    "UNFINISHED",
    "JsonLines",
    "PathLike",
    "append_lines",
    "atomic_writer",
    "check_folder",
    "check_new_folder",
    "check_output",
    "close_locked",
    "create_array",
    "is_inside",
    "locked_folder",
    "make_folder",
    "named_path",
    "new_folder",
    "open_locked",
    "output_path",
    "parse_json",
    "read_json_object",
    "read_regular",
    "sync_file",
    "sync_folder",
    "sync_tree",
    "whole_lines",
    "write_bytes",
    "write_json",
    "write_text",
    "writing",
]
