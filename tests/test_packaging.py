"""The package as a whole: nothing missing from the wheel, one version, a light face, registration in any order."""

import configparser
import importlib.metadata
import itertools
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import heirloom

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ["tokenization", "modeling", "objectives", "training", "conversion", "sharing", "cli"]


def run_python(code: str, folder: Path) -> None:
    """Run code in a new interpreter, away from the checkout."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_setup_cfg_lists_every_package():
    """A forgotten one would work in an editable install and be missing from the wheel."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    packages = [file.parent for room in ROOMS for file in (ROOT / room).rglob("__init__.py")]
    found = {"heirloom"} | {".".join(("heirloom", *folder.relative_to(ROOT).parts)) for folder in packages}
    assert set(config["options"]["packages"].split()) == found


def test_every_folder_of_modules_is_a_package():
    folders = {file.parent for room in ROOMS for file in (ROOT / room).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_one_version():
    assert importlib.metadata.version("heirloom-lm") == heirloom.__version__
    assert f"\nversion: {heirloom.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_tested_set_lies_within_the_ranges():
    """Every dependency that pyproject.toml names has one version in constraints.txt, inside its range."""
    requirements = pytest.importorskip("packaging.requirements")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.lower().split("==") for line in lines if "==" in line and not line.startswith("#"))
    for text in itertools.chain(project["dependencies"], *project["optional-dependencies"].values()):
        need = requirements.Requirement(text)
        if need.name != project["name"]:
            assert tested.get(need.name, "nothing") in need.specifier, text


@pytest.mark.parametrize("name", heirloom.__all__)
def test_public_names_resolve(name):
    assert getattr(heirloom, name) is not None
    assert name in dir(heirloom)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'Elmo'"):
        heirloom.Elmo  # noqa: B018


def test_import_brings_nothing_heavy(tmp_path):
    heavy = "{'torch', 'transformers', 'numpy', 'h5py', 'datasets'}"
    run_python(f"import sys, heirloom; assert not {heavy} & set(sys.modules)", tmp_path)


def test_the_command_line_brings_nothing_heavy(tmp_path):
    heavy = "{'torch', 'transformers', 'numpy', 'h5py', 'datasets'}"
    run_python(f"import sys, heirloom.cli.main; assert not {heavy} & set(sys.modules)", tmp_path)


@pytest.mark.parametrize(
    "imports",
    [
        # A stock config's import loads the Auto classes, and with them our files, before it ends.
        "import heirloom; from transformers import BertConfig, AutoConfig, AutoModel, AutoTokenizer",
        "from transformers import AutoConfig, AutoModel, AutoTokenizer; import heirloom",
        "from transformers import AutoConfig; import heirloom; from transformers import AutoModel, AutoTokenizer",
        "import heirloom, transformers as t; AutoTokenizer, AutoModel, AutoConfig = t.AutoTokenizer, t.AutoModel, t.AutoConfig",
    ],
)
def test_registration_in_any_order(imports, tmp_path):
    code = """
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING
config = AutoConfig.for_model("elmo", char_filters=[[1, 4]], char_embedding_size=4, projection_size=4, cell_size=4)
assert type(config) is heirloom.ElmoConfig
assert type(AutoModel.from_config(config)) is heirloom.ElmoModel
assert "ElmoTokenizer" in str(TOKENIZER_MAPPING[heirloom.ElmoConfig])
"""
    run_python(imports + code, tmp_path)


@pytest.mark.parametrize(
    "module",
    ["modeling.modeling_joint_loss", "sharing.pipelines", "modeling.modeling_elmo"],
)
def test_any_of_our_files_can_be_imported_first(module):
    """Whose own imports load the Auto classes, with which it is to be registered."""
    code = (
        f"import heirloom.{module}\n"
        "from transformers import AutoConfig, AutoModelForSequenceClassification\n"
        "config = AutoConfig.for_model('elmo')\n"
        "print(type(AutoModelForSequenceClassification.from_config(config)).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ElmoForSequenceClassification", done.stderr[-2000:]
