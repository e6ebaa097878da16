"""A comparison for LaTeX: nothing of a label is a command, and what was tested is marked."""

import re

import numpy as np
import pytest
from tiny_run import R, write

from jcl.report import latex
from jcl.report.comparison import compare

pytestmark = pytest.mark.quick


def test_nothing_in_a_text_is_a_command() -> None:
    assert latex.escape(r"a\b{c}_d^e~f$#%&") == (
        r"a\textbackslash{}b\{c\}\_d\textasciicircum{}e\textasciitilde{}f\$\#\%\&"
    )
    assert latex.escape("12.3 ± 1.0") == r"12.3 $\pm$ 1.0"


def test_a_table_has_a_row_a_run_and_marks_what_differs(tmp_path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.002, (2, 4, *R.shape[1:]))
    low, high = 0.5 * R + 0.1 + noise[0], 0.5 * R + 0.3 + noise[1]
    runs = [
        write(tmp_path / "a", low, labels=["naive()"], seeds=4),
        write(tmp_path / "b", high, labels=["er_ace(rows=8)"], seeds=4),
    ]
    path = tmp_path / "table.tex"
    latex.write(compare(runs, "naive"), path)
    text = path.read_text()
    body = text.partition("\\midrule\n")[2].partition("\\bottomrule")[0].splitlines()
    first, second = (line.removesuffix(r" \\").split(" & ") for line in body)
    assert first[0] == "naive()" and second[0] == r"er\_ace(rows=8)"
    mean, half = runs[1].summary["average"]["mean"], runs[1].summary["average"]["ci95"]
    assert second[1] == rf"\textbf{{{100 * mean:.1f} $\pm$ {100 * half:.1f}}}$^\dagger$"
    assert first[1].startswith(f"{100 * runs[0].summary['average']['mean']:.1f}")
    heads = text.partition("\\toprule\n")[2].partition(r" \\")[0].split(" & ")
    assert len(heads) == len(first) == len(second) == 6
    assert heads[4] == r"forgetting $\downarrow$"
    assert "Holm" in text and "paired t" in text and "p $<$ 0.05" in text
    assert len(re.findall(r"(?<!\\)\{", text)) == len(re.findall(r"(?<!\\)\}", text))
    assert not re.search(r"(?<!\\)[&%#_](?! )", "".join(body))
