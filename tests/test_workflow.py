"""The GitHub workflow: valid YAML, whose commands, files, extras and versions are those of the repository."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / ".github" / "workflows" / "ci.yml"
pytestmark = pytest.mark.skipif(not FILE.is_file(), reason="the workflow is not in an sdist")


@pytest.fixture(scope="module")
def workflow() -> dict:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def commands(job: dict) -> list[str]:
    """Each line that the job runs."""
    return [line.strip() for step in job["steps"] for line in step.get("run", "").splitlines()]


def test_jobs(workflow):
    assert list(workflow["jobs"]) == ["lint", "test", "wheel", "publish"]
    assert "tags" in workflow[True]["push"], "YAML 1.1 reads the key `on` as true"
    for name, job in workflow["jobs"].items():
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step), f"{name}: {step}"
            if "uses" in step:
                assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step["uses"]), f"{name}: no commit"


def test_only_publishing_may_publish(workflow):
    jobs = workflow["jobs"]
    assert workflow["permissions"] == {"contents": "read"}
    assert [name for name, job in jobs.items() if "permissions" in job] == ["publish"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert set(jobs["publish"]["needs"]) == jobs.keys() - {"publish"}
    assert jobs["publish"]["if"] == "startsWith(github.ref, 'refs/tags/v')"
    assert "secrets." not in FILE.read_text(encoding="utf-8")


def test_it_runs_the_command_of_the_readme(workflow):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^pip install .*&& pytest .*$", readme, re.M)
    assert " ".join(command.split()) in commands(workflow["jobs"]["test"])


def test_versions(workflow, project):
    rows = {
        row["versions"]: row["python"] for row in workflow["jobs"]["test"]["strategy"]["matrix"]["include"]
    }
    assert rows.keys() == {"lowest", "tested", "newest"}
    assert project["requires-python"] == f">={rows['lowest']}"
    conditions = [step["if"] for step in workflow["jobs"]["test"]["steps"] if "if" in step]
    assert conditions == [f"matrix.versions == '{name}'" for name in rows]
    assert any("--resolution lowest-direct" in line for line in commands(workflow["jobs"]["test"]))


def test_what_it_names_exists(workflow, project):
    lines = [line for job in workflow["jobs"].values() for line in commands(job)]
    text = "\n".join(lines)
    extras = {name for group in re.findall(r"\.\[([\w,-]+)\]", text) for name in group.split(",")}
    assert extras
    assert extras <= project["optional-dependencies"].keys()
    verbs = {verb for verb in re.findall(r"bin/heirloom\"? ([\w-]+)", text) if not verb.startswith("-")}
    assert verbs == {"env"}
    assert (ROOT / "cli" / "env.py").is_file()
    for name in ("constraints.txt", ".ci/smoke.py", "__init__.py"):
        assert name in text
        assert (ROOT / name).is_file()
    (tag_check,) = [line for line in lines if line.startswith("grep -qx")]
    assert '__version__ = \\"' in tag_check
    assert re.search(r'^__version__ = "[\d.]+"$', (ROOT / "__init__.py").read_text(encoding="utf-8"), re.M)
