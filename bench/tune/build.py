"""A build folder: the kernels it has, and the programs that compile and measure more of them."""

import hashlib
import json
import pathlib
import re
import subprocess

from . import tables
from .tables import UserError

FAMILIES = {"x86": "x86", "arm64": "arm", "armv7": "arm", "opencl": "gpu", "cuda": "gpu", "portable": "portable"}
"""The family of schedules, as in parameters.def, of each target."""


class Build:
    """What a build folder offers the tuner."""

    def __init__(self, folder: pathlib.Path, target: str, generators: pathlib.Path | None = None):
        """Looks for what tuning needs, and says what to do where it isn't there."""
        self.folder, self.target = folder, target
        self.generators = generators or folder / "hbn_generators"
        self.worker = folder / "bench" / "tune_worker"
        self.info = folder / "runtime" / "hbn-info"
        for path in [self.generators, self.worker, self.info, folder / "hbn_targets.json", folder / "hbn_kernels.h"]:
            if not path.exists():
                raise UserError(f"there is no {path}: `make tune` builds it, or name another folder by --build")
        described = json.loads((folder / "hbn_targets.json").read_text())
        self.halide_targets: dict[str, str] = described["instruction_sets"]
        self.family = FAMILIES[described["target"]]
        self.built = set(
            re.findall(r"^HBN_BUILT_KERNEL\((\w+), (\w+), (\w+)\)", (folder / "hbn_kernels.h").read_text(), re.M)
        )
        self.cpu, self.instruction_set = self._machine()
        self.fingerprint = self._fingerprint()

    def _machine(self) -> tuple[str, str]:
        done = subprocess.run([str(self.info)], capture_output=True, text=True, check=False)
        used = re.search(r"in use: (\w+)", done.stdout)
        cpu = re.search(r"^cpu: (.+)$", done.stdout, re.M)
        if not used or not cpu:
            raise UserError(f"{self.info} does not say what it runs on: {done.stderr or done.stdout}")
        return cpu[1].strip(), used[1]

    def _fingerprint(self) -> str:
        """Of what times depend on, and candidates' meaning. Times of another build are not taken for this one's."""
        digest = hashlib.sha256(self.generators.read_bytes())
        for path in (tables.PARAMETERS, tables.THRESHOLDS, tables.LAYOUTS):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:12]

    def kernel_layouts(self, kernel: str, dtype: str) -> list[str]:
        """The layouts that a kernel was built for: what may serve a cell. `strided` serves any, and is never fast."""
        found = [layout for layout in tables.kernel_layouts() if (kernel, dtype, layout) in self.built]
        return [layout for layout in found if layout != "strided"] or found
