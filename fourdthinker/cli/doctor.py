"""`fourdthinker doctor`."""

from __future__ import annotations

import argparse
import sys

from fourdthinker.cli.shared import Commands


def add(commands: Commands) -> argparse.ArgumentParser:
    """Declare `fourdthinker doctor`."""
    parser = commands.add_parser("doctor", help="what this machine can do, and what is missing")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print one line a finding, with its remedy. Returns 1 if something that is needed is missing, else 0."""
    from fourdthinker.doctor import examine

    findings = examine()
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        remedy = f"  ->  {finding.remedy}" if finding.remedy else ""
        sys.stdout.write(f"{finding.status:<8}{finding.name:<{width}}  {finding.text}{remedy}\n")
    return 1 if any(finding.status == "missing" for finding in findings) else 0
