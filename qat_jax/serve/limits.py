"""What a request may ask for, who may ask, and how often. A refusal says what to do."""

import collections
import dataclasses
import hashlib
import hmac
import ipaddress
import math
import threading
import time
from collections.abc import Sequence

TEXT_LETTERS = 2_000
PARTS = 8  # of one query
FILTERS = 16
VALUES = 1_000  # that a filter allows
IDS = 100_000  # in exclude, allowed or a list to rerank
VECTOR = 65_536  # numbers
RIGHT = 100  # marks of one query that say "this one"
SEEN = 10_000  # ids in wrong and in seen
ASPECTS = 8  # that a request names, or brings along
NAMES = 1_000  # in one object of a body
ITEMS = 1_000  # that a request adds
COLUMNS = 1_000  # of metadata, of all items together
CLIENTS = 10_000  # whose rates are known


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a server allows; what has no name here is a constant of this module."""

  body_bytes: int = 16 << 20
  image_pixels: int = 40_000_000
  k: int = 1_000
  rate: float = 0.0  # requests a second and client, on average; 0: any number
  burst: int = 20  # requests of a client at once, where there is a rate
  waiting: int = 256  # requests in the queue
  seconds: float = 10.0  # that a request may wait in the queue

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if not math.isfinite(value) or value < 0 or (value == 0 and field.name != "rate"):
        raise ValueError(f"the limit {field.name} is {value}; it must be a number above 0")


class Refused(Exception):
  """A request that is not answered: an HTTP status, a word for programs and a sentence that says what to do."""

  def __init__(self, status: int, code: str, message: str, retry_after: float | None = None) -> None:
    super().__init__(message)
    self.status, self.code, self.message, self.retry_after = status, code, message, retry_after

  def as_json(self) -> dict[str, dict[str, str]]:
    """Returns the body of the answer."""
    return {"error": {"code": self.code, "message": self.message}}

  def headers(self) -> dict[str, str]:
    """Returns the headers of the answer."""
    return {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}


def invalid(message: str) -> Refused:
  """Returns the refusal of a request that says something wrong."""
  return Refused(422, "invalid", message)


class Rates:
  """A bucket of tokens for each client: `burst` at once, `rate` a second after that. For one process."""

  def __init__(self, rate: float, burst: int) -> None:
    self.rate, self.burst = rate, burst
    self._left: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()
    self._lock = threading.Lock()

  def take(self, client: str, now: float | None = None) -> None:
    """Counts a request of a client; raises Refused (429) where it comes too soon."""
    if not self.rate:
      return
    now = time.monotonic() if now is None else now
    with self._lock:
      left, then = self._left.pop(client, (float(self.burst), now))
      left = min(self.burst, left + (now - then) * self.rate)
      self._left[client] = (left - 1 if left >= 1 else left, now)
      if len(self._left) > CLIENTS:
        self._left.popitem(last=False)
    if left < 1:
      wait = (1 - left) / self.rate
      raise Refused(429, "too_many", f"more than {self.rate:g} requests a second; try again in {wait:.1f} s", wait)


def check_key(keys: Sequence[str], authorization: str | None, own_header: str | None) -> None:
  """Raises Refused (401) unless a request gives one of the keys, in constant time; without keys none is asked for."""
  if not keys:
    return
  given = own_header or ""
  if authorization and authorization[:7].lower() == "bearer ":
    given = authorization[7:].strip()
  if not any(hmac.compare_digest(_digest(given), _digest(key)) for key in keys):
    raise Refused(401, "no_key", "this server asks for a key: Authorization: Bearer KEY, or X-API-Key: KEY")


def check_host(header: str | None, allowed: frozenset[str]) -> None:
  """Raises Refused (421) unless a request's Host is one that this server goes by.

  A page elsewhere may name an address of its own that leads here; its requests have that name.
  """
  name = host_of(header or "")
  if name not in allowed:
    raise Refused(
      421, "wrong_host", f"this server does not go by the name {name[:100]!r}; start it with --name {name[:100]}"
    )


def host_of(header: str) -> str:
  """Returns the name in a Host header, without the port."""
  header = header.strip().lower()
  if header.startswith("["):
    return header[1:].split("]")[0]
  return header.rsplit(":", 1)[0] if header.count(":") == 1 else header


def is_loopback(host: str) -> bool:
  """Says whether an address to bind is reached from this machine alone."""
  if host == "localhost":
    return True
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return False


def _digest(text: str) -> bytes:
  return hashlib.blake2b(text.encode("utf-8", "surrogatepass")).digest()
