#!/usr/bin/env python3
"""Stands in for tune_worker: its times are those of a model, with some noise.

Every choice has a best value, which its name decides; each step away from it costs a few percent. FAKE_WRONG,
FAKE_SLOW and FAKE_CRASH are lists of settings with which results are wrong (and times short), with which a call takes
1000 times as long, and with which the worker ends.
FAKE_SLOW_AT is a list of sizes at which all candidates take four times as long, as plane>100, c%16 (no multiple of it),
threads=1, or row_lanes=32@threads=1 for candidates with that setting.
FAKE_LOG is a file that gets every line, FAKE_BUSY a folder that has a file while anything compiles.
"""

import base64
import json
import os
import pathlib
import random
import re
import sys
import zlib

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "bench"))
from tune import tables  # noqa: E402

STEP = 0.05
NOISE = float(os.environ.get("FAKE_NOISE", "0.003"))
PARAMETERS = {p.name: p for p in tables.parameters()}
MATTERING = {"rows": "nhwc_columns", "nchw": "tile_elements", "nchw_few_channels": "tile_elements",
             "blocks": "block_columns"}  # fmt: skip
SERVING = {"nchw": ["nchw", "nchw_few_channels", "blocks"], "nhwc": ["rows"]}


def listed(variable):
    return set(os.environ.get(variable, "").split())


def best_position(name, count):
    return zlib.crc32(name.encode()) % count


def cost(layout, parameters, thresholds):
    """Relative to the best there is in the layout; another layout than the cell's first costs a tenth more."""
    total = 1.1 if layout in ("nchw_few_channels", "blocks") else 1.0
    for p in PARAMETERS.values():
        if layout in p.layouts and "x86" in p.families:
            distance = abs(p.values.index(parameters.get(p.name, 0)) - best_position(p.name, len(p.values)))
            total *= 1 + STEP * distance
    value = thresholds.get(MATTERING[layout])
    return total * (0.97 if value is not None and value % 2048 else 1)


class Worker:
    def __init__(self):
        self.kernels, self.layout, self.random = {}, None, random.Random(os.getpid())

    def answer(self, line):
        command, *words = line.split()
        if command == "candidate":
            number, _, kernel, dtype, layout, library = words
            settings = base64.b64decode(library).decode().split()
            assert f"dtype={dtype}" in settings and f"layout={layout}" in settings and kernel in settings
            pairs = dict(word.split("=") for word in settings if word.split("=")[0] in PARAMETERS)
            self.kernels[number] = layout, {name: int(value) for name, value in pairs.items()}
            return {"candidate": int(number), "base": 0, "code": [0, 0]}
        if command == "cell":
            self.layout = words[2]
            n, c, h, w, threads = map(int, words[3:8])
            self.sizes = {"n": n, "c": c, "plane": h * w, "threads": threads}
            self.for_times_alone = words[8:] == ["timing"]
            if words[3] == "666":
                return {"error": "no memory for such a shape"}
            return {"cell": line, "default_seconds": 1e-3, "bytes": 1000, "bound": True}
        if command == "machine":
            return {"cpu": "FakeCpu 1 2", "instruction_set": "avx512", "threads": 2, "code": [[0x1000, 0x1FFF]]}
        if command == "view":
            layout, parameters, thresholds = self.contestant("-", words)
            seen = thresholds.get(MATTERING[layout])
            return {"view": {"layout": layout, "tile": seen if seen in (256, 512, 16384) else None}}
        if command == "check":
            assert not self.for_times_alone
            layout, parameters, _ = self.contestant(words[0], words[1:])
            settings = {f"{name}={value}" for name, value in parameters.items()} | set(words[1:])
            if settings & listed("FAKE_CRASH"):
                os._exit(139)
            wrong = bool(settings & listed("FAKE_WRONG"))
            return {"ok": not wrong, "worst": 7.0 if wrong else 0.4, "kernel_layout": layout, "used": words[0] != "-"}
        if command == "measure":
            busy = os.environ.get("FAKE_BUSY")
            assert not busy or not os.listdir(busy), "something compiles while times are taken"
            default = 1e-3 * cost(*self.contestant("-", []))
            found = {"default": self.times(default), "ratios": {}}
            for text in words[1:]:
                if text in ("bound", "bound:streaming"):
                    found["ratios"][text] = [default / (0.5e-3 if text == "bound" else 0.6e-3)] * 8
                    continue
                number, *settings = text.split(":")
                layout, parameters, thresholds = self.contestant(number, settings)
                seconds = 1e-3 * cost(layout, parameters, thresholds)
                if text != "-":
                    seconds *= self.slower({f"{k}={v}" for k, v in [*parameters.items(), *thresholds.items()]})
                if {f"{name}={value}" for name, value in parameters.items()} & listed("FAKE_WRONG"):
                    seconds /= 10
                if {f"{name}={value}" for name, value in parameters.items()} & listed("FAKE_SLOW"):
                    found.setdefault("too_slow", {})[text] = 1000 * default
                    continue
                found[text] = self.times(seconds)
                found["ratios"][text] = [default / seconds * self.random.gauss(1, NOISE) for _ in range(8)]
            return found
        return {"error": f"no such command: {command}"}

    def slower(self, settings):
        for condition in listed("FAKE_SLOW_AT"):
            setting, name, relation, number = re.fullmatch(r"(?:(.+)@)?(\w+)([<>=%])(\d+)", condition).groups()
            size, number = self.sizes[name], int(number)
            holds = {"<": size < number, ">": size > number, "=": size == number, "%": size % number != 0}[relation]
            if holds and (setting is None or setting in settings):
                return 4
        return 1

    def times(self, seconds):
        return {"fastest": seconds, "median": seconds * self.random.gauss(1.01, NOISE)}

    def contestant(self, number, settings):
        thresholds = dict(setting.split("=") for setting in settings)
        layout = thresholds.pop("layout", None) or SERVING[self.layout][0]
        if layout not in SERVING[self.layout]:
            layout = SERVING[self.layout][0]
        kernel_layout, parameters = self.kernels.get(number, (layout, {}))
        return layout, parameters if kernel_layout == layout else {}, {k: int(v) for k, v in thresholds.items()}


def main():
    worker = Worker()
    for line in sys.stdin:
        if path := os.environ.get("FAKE_LOG"):
            with open(path, "a") as log:
                log.write(line)
        print(json.dumps(worker.answer(line)), flush=True)


if __name__ == "__main__":
    main()
