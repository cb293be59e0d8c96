"""Each example runs with few steps, and its notebook is the one that examples/make_notebooks.py makes of it."""

import ast
import json
import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples"
MAKER = runpy.run_path(str(FOLDER / "make_notebooks.py"))
SCRIPTS = MAKER["examples"]()


def run(name: str, folder: Path, monkeypatch) -> dict:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("STEPS", "3")
    return runpy.run_path(str(FOLDER / f"{name}.py"))


def test_there_are_three():
    assert [path.stem for path in SCRIPTS] == ["few_labels", "nearest_words", "translator"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_notebooks_are_up_to_date(path):
    made = MAKER["notebook"](path.read_text("utf-8"))
    assert path.with_suffix(".ipynb").read_text("utf-8") == made, "run: python examples/make_notebooks.py"
    cells = json.loads(made)["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    tree = ast.parse(path.read_text("utf-8"))
    assert ast.dump(ast.parse(code)) == ast.dump(ast.Module(tree.body[1:], [])), (
        "the script without its docstring"
    )
    assert cells[0]["source"][0].startswith("# ")
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert not any(cell.get("outputs") for cell in cells)


def test_cells():
    book = json.loads(
        MAKER["notebook"]('"""Left out."""\n\n# %% [markdown]\n# # One\n#\n# Two\n\n# %%\nx = 1  # y\n\n')
    )
    assert [cell["source"] for cell in book["cells"]] == [["# One\n", "\n", "Two"], ["x = 1  # y"]]


def test_nearest_words(tmp_path, monkeypatch):
    found = run("nearest_words", tmp_path, monkeypatch)
    assert len(found["losses"]) == 3
    assert found["losses"][-1] < found["losses"][0]
    assert all(len(words) == 3 and name not in words for name, words in found["nearest"].items())
    assert len(found["substitutes"]) == 3


def test_translator(tmp_path, monkeypatch):
    found = run("translator", tmp_path, monkeypatch)
    assert {row.origin for row in found["translator"].origins} >= {"source LM", "target LM", "random"}
    assert len(found["losses"]) == len(found["answers"]) == 3


def test_few_labels(tmp_path, monkeypatch):
    found = run("few_labels", tmp_path, monkeypatch)
    assert list(found["results"]) == [0.0, 0.5]
    assert all(0 <= accuracy <= 1 < perplexity for accuracy, perplexity in found["results"].values())
