"""What `/metrics` tells Prometheus of a server."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ollm_rl.serving.batching import Batcher, Job

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """Counts of one server, in a registry of their own.

    Args:
        routes: by which requests are counted; all others are "other".
    """

    def __init__(self, batcher: Batcher, routes: frozenset[str]):
        self.registry, self.batcher, self.routes = CollectorRegistry(), batcher, routes
        self._requests = Counter(
            "ollm_rl_requests", "answered, by route and status", ["route", "status"], registry=self.registry
        )
        self._first = Histogram(
            "ollm_rl_time_to_first_token_seconds", "until an answer has one", buckets=SECONDS, registry=self.registry
        )
        self._latency = Histogram(
            "ollm_rl_answer_seconds", "until an answer is whole", buckets=SECONDS, registry=self.registry
        )
        self.registry.register(self)

    def counted(self, path: str, status: int) -> None:
        """A request was answered."""
        self._requests.labels(path if path in self.routes else "other", str(status)).inc()

    def ended(self, job: Job, now: float) -> None:
        """An answer is whole; `now` by `time.monotonic`."""
        if job.first is not None:
            self._first.observe(job.first - job.begun)
        self._latency.observe(now - job.begun)

    def collect(self) -> Iterator[Metric]:
        """What the batcher knows, for the registry."""
        yield CounterMetricFamily("ollm_rl_generated_tokens", "of all answers", value=self.batcher.num_tokens)
        yield GaugeMetricFamily("ollm_rl_waiting_answers", "without a row", value=self.batcher.waiting)
        yield GaugeMetricFamily("ollm_rl_active_answers", "under way", value=self.batcher.active)

    def page(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
