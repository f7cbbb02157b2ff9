"""What the server counts, for Prometheus: latency by stage, sizes of batches, the queue, errors."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
  """The counters of one server, in a registry of their own."""

  def __init__(self, waiting: Callable[[], float], items: Callable[[], float]) -> None:
    self.registry = CollectorRegistry()
    new = lambda kind, *about, **more: kind(*about, namespace="qat_jax", registry=self.registry, **more)
    self.requests = new(Counter, "requests", "Requests answered", ["route", "status"])
    self.latency = new(Histogram, "request_seconds", "From a request to its answer", ["route"], buckets=SECONDS)
    self.stages = new(Histogram, "stage_seconds", "Of a batch, by stage", ["stage"], buckets=SECONDS)
    self.waits = new(Histogram, "queue_seconds", "The longest wait of a batch", buckets=SECONDS)
    self.sizes = new(Histogram, "batch_size", "Requests that went together", buckets=(1, 2, 4, 8, 16, 32, 64))
    self.refused = new(Counter, "refused", "Requests refused", ["code"])
    self.reloads = new(Counter, "reloads", "Reloads of gallery and adapter", ["result"])
    new(Gauge, "queue_length", "Requests that wait").set_function(waiting)
    new(Gauge, "items", "Items of the gallery").set_function(items)

  def count(self, route: str, status: int, seconds: float, code: str | None) -> None:
    """Counts an answer; `code` is that of a refusal."""
    self.requests.labels(route, str(status)).inc()
    self.latency.labels(route).observe(seconds)
    if code:
      self.refused.labels(code).inc()

  def batch(self, size: int, waited: float) -> None:
    """Counts a batch."""
    self.sizes.observe(size)
    self.waits.observe(waited)

  def spent(self, seconds: Mapping[str, float]) -> None:
    """Counts what a batch spent, by stage."""
    for stage, value in seconds.items():
      self.stages.labels(stage).observe(value)

  def text(self) -> bytes:
    """Returns all of it as Prometheus reads it."""
    return generate_latest(self.registry)
