"""Write the notebook of each example beside it: `# %% [markdown]` begins a cell of text, `# %%` one of code.

python examples/make_notebooks.py
"""

import json
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
MARK, TEXT_MARK = "# %%\n", "# %% [markdown]\n"


def notebook(source: str) -> str:
    """The notebook (nbformat 4.5, nothing executed) of a script.

    Args:
        source: of the script; what stands before its first cell is left out.

    Returns:
        JSON.
    """
    cells = []
    for line in source.splitlines(keepends=True):
        if line in (MARK, TEXT_MARK):
            cells.append((line, []))
        elif cells:
            mark, lines = cells[-1]
            lines.append(line.removeprefix("#").removeprefix(" ") if mark == TEXT_MARK else line)
    found = []
    for number, (mark, lines) in enumerate(cells):
        text = "".join(lines).strip("\n").splitlines(keepends=True)
        cell = {"cell_type": "markdown", "id": f"cell-{number}", "metadata": {}, "source": text}
        if mark == MARK:
            cell |= {"cell_type": "code", "execution_count": None, "outputs": []}
        found.append(cell)
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    book = {"cells": found, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(book, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def examples() -> list[Path]:
    """The scripts that have cells."""
    here = Path(__file__).resolve()
    return [
        path
        for path in sorted(FOLDER.glob("*.py"))
        if path != here and f"\n{TEXT_MARK}" in path.read_text("utf-8")
    ]


if __name__ == "__main__":
    for script in examples():
        script.with_suffix(".ipynb").write_text(notebook(script.read_text("utf-8")), encoding="utf-8")
        print(script.with_suffix(".ipynb").name)
