"""Shows how far the tuner is: a bar on a terminal, a line every 10 s elsewhere."""

import sys
import time

from tqdm import tqdm

SECONDS = 10  # between lines


class Progress:
    """Of a budget of seconds."""

    def __init__(self, budget: float):
        """Starts the clock."""
        self.budget, self.begin, self.heading = budget, time.monotonic(), ""
        self.skipped = 0.0  # seconds that don't count
        self.last_line = -float(SECONDS)
        self.bar = None
        if sys.stderr.isatty():
            layout = "{desc} |{bar:20}| {postfix}"
            self.bar = tqdm(total=round(budget), bar_format=layout, dynamic_ncols=True, file=sys.stderr)

    def used(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self.begin - self.skipped

    def head(self, text: str) -> None:
        """What is under way from now on."""
        self.heading = text
        self.show("")

    def show(self, text: str) -> None:
        """How far that is."""
        used = self.used()
        left = f"{max(self.budget - used, 0):.0f} s left"
        if self.bar is not None:
            self.bar.n = min(round(used), self.bar.total)
            self.bar.set_description_str(self.heading, refresh=False)
            self.bar.set_postfix_str(f"{left}  {text}")
        elif text and used - self.last_line >= SECONDS:
            self.last_line = used
            print(f"{left:>10}  {self.heading}: {text}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.bar is not None:
            self.bar.clear()
        print(text, flush=True)

    def close(self) -> None:
        """Takes the bar away."""
        if self.bar is not None:
            self.bar.leave = False
            self.bar.close()
