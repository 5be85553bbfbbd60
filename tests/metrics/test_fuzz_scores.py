"""Whatever is in a file of scores: it is refused when it is read, or it can be compared."""

from __future__ import annotations

import itertools
import json

import pytest
from fuzzing import json_mutations, mutations, withstand
from metrics.test_comparison import evaluation

from hida.metrics.comparison import comparison
from hida.metrics.scores import load

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("error")]


def test_scores(tmp_path, monkeypatch):
    monkeypatch.setattr("hida.metrics.comparison.mean_interval", lambda values: (values.min(0), values.max(0)))
    path, good = tmp_path / "scores.json", evaluation("a", count=4)

    def read(data):
        path.write_bytes(data)
        result = load(path)
        for results in ([result], [good, result], [result, good], [result, result]):
            text = comparison(results)
            assert text.encode()
            assert "nan" not in text

    samples = [evaluation("b", 0.05, count=4), {**good, "metrics": ["lpips"]}]
    text = json.dumps(samples[0]).encode()
    assert 50 < withstand(read, itertools.chain(json_mutations(samples, 800), mutations([text], 200))) < 700
