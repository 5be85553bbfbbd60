"""The log and the sample grids of a run."""

from __future__ import annotations

import json
from types import SimpleNamespace

from runs import hida_train, log

from hida.training import loop
from hida.training.journal import Journal
from hida.training.state import TrainingState


def test_lines_are_json_objects_with_iteration_and_epoch(tmp_path):
    journal = Journal(tmp_path, 0, False)
    journal.write(20, 1.23456, {"pixel": 0.5})
    journal.close()
    assert json.loads((tmp_path / "log.jsonl").read_text(encoding="utf-8")) == {
        "iteration": 20,
        "epoch": 1.2346,
        "pixel": 0.5,
    }


def test_a_resumed_run_forgets_what_it_will_write_again_and_torn_lines(tmp_path):
    lines = [json.dumps({"iteration": k, "pixel": k / 10}) for k in (10, 20, 30)]
    lines[1] = lines[1].replace("}", ', "scale": Infinity}')
    (tmp_path / "log.jsonl").write_text(
        "\n".join([lines[0], "[1]", "null", "{}", "[" * 9999, *lines[1:], '{"iteration": 2']), encoding="utf-8"
    )
    journal = Journal(tmp_path, 20, False)
    journal.write(30, 3.0, {"pixel": 9.0})
    journal.close()
    kept = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(entry["iteration"], entry["pixel"]) for entry in kept] == [(10, 1.0), (20, 2.0), (30, 9.0)]


def test_the_speed_counts_the_iterations_since_the_line_before_or_the_start(data, tmp_path, monkeypatch):
    seconds, update = [0.0], TrainingState.update

    def one_second(state, batch):
        seconds[0] += 1
        return update(state, batch)

    monkeypatch.setattr(TrainingState, "update", one_second)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    options = ("--train.log-every", "2", "--train.epochs", "2", "--train.evaluate-epochs", "0")
    assert hida_train(data, tmp_path, *options, "--stop-after", "1") == 0
    assert hida_train(data, tmp_path, *options) == 0
    speeds = {entry["iteration"]: entry["images_per_second"] for entry in log(tmp_path)}
    assert speeds == {2: 2.0, 4: 2.0}  # of batches of two
