"""The protocol's metrics, and the names by which the commands know them."""

from typing import get_args

from hida.metrics.groups import LABELS
from hida.metrics.protocol import BY_KEY
from hida.training.options import METRICS, Annotation, MetricName


def test_the_commands_know_every_metric_in_the_order_of_the_tables():
    assert get_args(MetricName) == tuple(BY_KEY)
    assert tuple(key for key, metric in BY_KEY.items() if metric.usual) == METRICS
    assert get_args(Annotation) == tuple(LABELS)
