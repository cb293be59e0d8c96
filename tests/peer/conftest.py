"""Collects the tests of this folder only where `run` has put Transformers' own tests on the path, and counts them for it."""

import json
import os

RESULTS = os.environ.get("HEIRLOOM_PEER_RESULTS")
collect_ignore_glob = ["test_suite.py"] if RESULTS else ["test_*_peer.py"]
found: dict[str, dict[str, list[str]]] = {}


def pytest_runtest_logreport(report):
    """Remember outcome and reason of each test; of one in several parts (`subTest`) the worst."""
    if not RESULTS or "_peer.py" not in report.nodeid or (report.when != "call" and report.passed):
        return
    reason = (
        report.longrepr[2].removeprefix("Skipped: ") if report.skipped else str(report.longrepr or "")[-500:]
    )
    outcome = "excepted" if reason.startswith("exception: ") else report.outcome
    _, model, test = report.nodeid.rsplit("::", 2)
    ranks = ["passed", "skipped", "excepted", "failed"]
    held = found.setdefault(model, {}).setdefault(test, [outcome, reason])
    if ranks.index(outcome) > ranks.index(held[0]):
        held[:] = outcome, reason


def pytest_sessionfinish():
    """Write what was found, for the table."""
    if RESULTS:
        with open(RESULTS, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1, sort_keys=True)
