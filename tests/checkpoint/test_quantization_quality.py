"""Rounding costs the model in the box no more than it may; the script that reports it works."""

import json

from tests.scale import scaled
from tests.scripts import run_script
from tests.shared import shared


def test_nano_keeps_its_perplexity(tmp_path):
    """int8 within 0.5 %, int4 within 3 %, on reviews that it was not trained on."""
    data, report = shared("data", "nsmc", "reviews.tsv.xz"), tmp_path / "report.json"
    options = ("--documents", str(scaled(60, 10_000)), "--json", report)
    done = run_script("evaluate_quantization.py", data, *options)
    assert done.returncode == 0, done.stderr
    costs = json.loads(report.read_text())
    exact = costs.pop("float")
    assert exact["largest_logit_change"] == 0 and not any(exact["errors"].values())
    for kind, cost in costs.items():
        allowed, layers = (0.005, 0.01) if kind == "int8" else (0.03, 0.15)
        assert cost["perplexity"] < exact["perplexity"] * (1 + allowed), kind
        assert cost["prepared"] < exact["perplexity"] * (1 + allowed), kind
        assert max(cost["errors"].values()) < layers, kind
        assert len(cost["errors"]) == 6 * 7 + 1 and cost["nbytes"] < exact["nbytes"]
        assert f"| {kind} | {cost['nbytes']:,} |" in done.stdout
