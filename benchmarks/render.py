"""A benchmark's result file as Markdown; with a page's path, put between its marks.

python benchmarks/render.py benchmarks/results/env.json docs/benchmarks.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- env.json -->", "<!-- end of env.json -->"


def render(result: dict[str, Any]) -> str:
    """Tables of the goals and of all that was timed, under a line that names the machine."""
    at = result["machine"]
    checkout = result["checkout"]
    lines = [
        f"{at['processor']}, {at['cores']} cores, Linux {at['kernel']}, Python {at['python']}, "
        f"git {at['tools']['git']}, bubblewrap {at['tools']['bwrap']}, commit {at['commit']}; "
        f"sympy {checkout['version'][:12]} with {checkout['files']:,} files; load "
        f"{at['load'][0]:.1f}.",
        "",
        "| Goal | at most | measured | met |",
        "|---|---|---|---|",
    ]
    for goal in result["goals"]:
        most, value = (f"{goal[key]:.3g} {goal['unit']}".strip() for key in ("most", "value"))
        lines.append(f"| {goal['name']} | {most} | {value} | {'yes' if goal['met'] else 'no'} |")
    lines += ["", "| ms | | median | quartiles | least | rounds |", "|---|---|---|---|---|---|"]
    for figure, sides in result["figures"].items():
        for side, found in sides.items():
            if "median" not in found:
                continue
            rest = [f"{found['q1']:.3g} … {found['q3']:.3g}", f"{found['least']:.3g}",
                    str(found["rounds"])] if "q1" in found else ["", "", "1"]  # fmt: skip
            lines.append(f"| {figure} | {side} | {found['median']:.3g} | {' | '.join(rest)} |")
    for figure, sides in result["figures"].items():
        for found in sides.values():
            if "median" not in found:
                said = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in found.items())
                lines += ["", f"{figure}: {said}."]
    if versions := ", ".join(f"{name} {version}" for name, version in result["peers"].items()):
        lines += ["", f"Peers: {versions}."]
    lines += [f"Left out: {name} ({why})." for name, why in result["left_out"].items()]
    return "\n".join(lines)


def put(page: Path, text: str) -> None:
    """Replace what stands between the page's marks."""
    whole = page.read_text()
    before, rest = whole.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


if __name__ == "__main__":
    shown = render(json.loads(Path(sys.argv[1]).read_text()))
    if len(sys.argv) > 2:
        put(Path(sys.argv[2]), shown)
    else:
        print(shown)
