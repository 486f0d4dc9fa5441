"""Counters in Prometheus' text format."""

from __future__ import annotations

import time
from collections import Counter

from trimtab.generate.language_model import LanguageModel

_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Histogram:
    """Counts of observations up to each bound."""

    def __init__(self) -> None:
        self.counts = [0] * len(_BUCKETS)
        self.total = 0.0
        self.number = 0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.number += 1
        self.total += value
        for index, bound in enumerate(_BUCKETS):
            self.counts[index] += value <= bound

    def lines(self, name: str, text: str) -> list[str]:
        """Return the exposition lines."""
        lines = [f"# HELP {name} {text}", f"# TYPE {name} histogram"]
        for bound, count in zip(_BUCKETS, self.counts, strict=True):
            lines.append(f'{name}_bucket{{le="{bound}"}} {count}')
        lines.append(f'{name}_bucket{{le="+Inf"}} {self.number}')
        return [*lines, f"{name}_sum {self.total:.6f}", f"{name}_count {self.number}"]


class Measures:
    """What the server counts about itself."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.first_token = Histogram()
        self.duration = Histogram()
        self.cancelled = 0
        self.started = time.time()

    def exposition(self, model: LanguageModel) -> str:
        """Return everything as Prometheus text."""
        lines = [
            "# HELP trimtab_requests_total Requests answered, by path and status.",
            "# TYPE trimtab_requests_total counter",
        ]
        for (path, status), count in sorted(self.requests.items()):
            lines.append(f'trimtab_requests_total{{path="{path}",status="{status}"}} {count}')
        batch = model.batch
        for name, kind, text, value in (
            ("prompt_tokens_total", "counter", "Prompt tokens computed.", batch.prompt_tokens),
            ("generated_tokens_total", "counter", "Tokens generated.", batch.generated_tokens),
            ("steps_total", "counter", "Batches run.", batch.steps),
            ("cancelled_total", "counter", "Requests given up by clients.", self.cancelled),
            ("prefix_hits_total", "counter", "Prompts with a known beginning.", batch.prefix.hits),
            ("prefix_pages", "gauge", "Pages in the prefix cache.", len(batch.prefix)),
            ("requests_running", "gauge", "Requests in a slot.", batch.running),
            ("requests_waiting", "gauge", "Requests waiting for a slot.", batch.waiting),
            ("start_time_seconds", "gauge", "Unix time of the start.", int(self.started)),
        ):
            lines += [f"# HELP trimtab_{name} {text}", f"# TYPE trimtab_{name} {kind}"]
            lines.append(f"trimtab_{name} {value}")
        lines += self.first_token.lines(
            "trimtab_first_token_seconds", "From a request to its first token."
        )
        lines += self.duration.lines("trimtab_request_seconds", "From a request to its end.")
        return "\n".join(lines) + "\n"
