"""What `jcl survey` shows: rows of the table, one paper whole, and the counts on the page."""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from jcl.report import screen
from jcl.report.format import replace_between
from jcl.runs import experiment
from jcl.survey import commands
from jcl.survey.table import (
    SECTIONS,
    STATUSES,
    Paper,
    choose,
    counts,
    find,
    papers,
    primitives,
)

BEGIN, END = "<!-- jcl survey --table -->", "<!-- end of the survey -->"
"""What stands in experiments/README.md before and after the counts."""
HEADS = ("id", "section", "system", "status", "how")


def as_objects(rows: Sequence[Paper]) -> list[dict[str, Any]]:
    """Rows as JSON has them."""
    return [{**row._asdict(), "command": commands.here(row)} for row in rows]


def as_markdown() -> str:
    """How many systems of each section have which status, and what the planned ones need."""
    head = ["section", *STATUSES, "all"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    everything = papers()
    listed = [row for row in everything if not row.later]
    parts = {
        f"{name}: {words}": [row for row in listed if row.section.partition("/")[0] == name]
        for name, words in SECTIONS.items()
    }
    parts["**the survey**"] = listed
    parts["later systems"] = [row for row in everything if row.later]
    for name, rows in parts.items():
        cells = [*map(str, counts(rows).values()), str(len(rows))]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    wanted = [(one, sum(one.name in row.needs for row in everything)) for one in primitives()]
    most = sorted(wanted, key=lambda pair: -pair[1])[:8]
    named = ", ".join(f"`{one.name}` ({number})" for one, number in most)
    return "\n".join([*lines, "", f"What most of the planned ones need: {named}.", ""])


def describe(paper: Paper) -> str:
    """All that is known of a row and the commands that run it, as text."""
    lines = [f"{paper.title} ({paper.section}), {paper.link}", f"  what:   {paper.mechanism}"]
    if not paper.checked or paper.doubt:
        doubt = "a detail is in doubt" if paper.doubt else "from general knowledge of the paper"
        lines.append(f"          ({doubt}: to be checked against it)")
    lines += [f"  status: {paper.status}", f"  how:    {paper.recipe}"]
    known = {one.name: one for one in primitives()}
    lines += [f"  needs:  {name}: {known[name].what}" for name in paper.needs]
    if command := commands.here(paper):
        own = commands.on_files(paper) or "a few lines of Python, with the readers of jcl.data"
        lines += [f"  run:    jcl run {commands.PREFIX}{paper.id}, that is", f"    {command}"]
        lines += ["  files:  on the paper's, or your own", f"    {own}"]
        lines += [f"  differs from the paper: {paper.differs or 'in sizes and data alone'}"]
        lines += [f"  evidence: {', '.join(paper.evidence) or 'none yet, but that it runs'}"]
    if paper.code:
        lines.append(f"  code:   https://github.com/{paper.code.partition(' ')[0].rstrip(',')}")
    return "\n".join(lines)


def command(
    paper: Annotated[str, Positional, arg(metavar="ID")] = "",
    section: str = "",
    status: Literal["", "ready", "recipe", "planned", "outside"] = "",
    mechanism: Annotated[str, arg(metavar="WORD")] = "",
    needs: Annotated[str, arg(metavar="PRIMITIVE")] = "",
    json: FlagCreatePairsOff[bool] = False,
    table: FlagCreatePairsOff[bool] = False,
    draw: FlagCreatePairsOff[bool] = False,
) -> None:
    """Shows the papers of the survey of arXiv 2404.16789, and how each is done here.

    Args:
      paper: an arXiv number or a system's name; by default all that the filters leave.
      section: how its section begins, such as CPT, DAP, CIT, CMR, CMA or CMLLM.
      status: whether it is ready, a recipe, planned or outside.
      mechanism: a word of what it does, or its kind: stages, data, objective, updates, anchors,
        replay, parts, merging, editing, alignment or study.
      needs: a primitive that it lacks here, such as masking.
      json: prints all that is known of the rows as JSON.
      table: writes the counts into experiments/README.md.
      draw: draws all of them, stage by mechanism, as experiments/figures/survey.png.

    Raises:
      ValueError: if the arguments don't go together, or name what isn't there.
    """
    filters = section, status, mechanism, needs
    for flag, given in (("table", table), ("draw", draw)):
        if given and (paper or json or any(filters) or (table and draw)):
            raise ValueError(f"--{flag} is of all papers, so it takes no other argument")
    if paper and any(filters):
        raise ValueError(f"{paper!r} is one paper, so it takes no filter")
    if table:
        page = experiment.folder() / "README.md"
        page.write_text(replace_between(page.read_text(), BEGIN, END, as_markdown()))
        print(page)
        return
    if draw:
        from jcl.survey import plane  # matplotlib, which others shouldn't wait for

        picture = experiment.folder() / "figures" / "survey.png"
        plane.draw(papers()).savefig(picture)
        print(picture)
        return
    rows = [find(paper)] if paper else choose(*filters)
    if json:
        print(dumps(as_objects(rows), indent=1, ensure_ascii=False))
    elif paper:
        print(describe(rows[0]))
    else:
        screen.rows(HEADS, [(r.id, r.section, r.title, r.status, r.recipe) for r in rows])
        said = ", ".join(f"{number} {status}" for status, number in counts(rows).items() if number)
        screen.lines(f"{len(rows)} systems: {said}" if rows else "no system is like that")
