"""A build folder: the kernels it has, and the programs that compile and measure more of them."""

import hashlib
import json
import pathlib
import subprocess

from . import tables
from .tables import UserError, tuned


class Build:
    """What a build folder offers the tuner."""

    def __init__(self, folder: pathlib.Path, target: str, generators: pathlib.Path | None = None):
        """Looks for what tuning needs, and says what to do where it isn't there."""
        self.folder, self.target = folder, target
        self.generators = generators or folder / "hbn_generators"
        self.worker = folder / "bench" / "tune_worker"
        for path in [self.generators, self.worker, folder / "hbn_targets.json", folder / "hbn_kernels.h"]:
            if not path.exists():
                raise UserError(f"there is no {path}: `make tune` builds it, or name another folder by --build")
        described = json.loads((folder / "hbn_targets.json").read_text())
        self.halide_targets: dict[str, str] = described["instruction_sets"]
        self.family = tuned.FAMILIES[described["target"]]
        self.built = tuned.built_kernels((folder / "hbn_kernels.h").read_text())
        machine = self._machine()
        self.cpu, self.instruction_set = machine["cpu"], machine["instruction_set"]
        self.fingerprint = self._fingerprint()

    def _machine(self) -> dict[str, str]:
        done = subprocess.run([str(self.worker)], input="machine\n", capture_output=True, text=True, check=False)
        try:
            return json.loads(done.stdout)
        except ValueError as error:
            raise UserError(f"{self.worker} does not run: {done.stderr.strip() or done.returncode}") from error

    def _fingerprint(self) -> str:
        """Of what times depend on, and candidates' meaning. Times of another build are not taken for this one's."""
        digest = hashlib.sha256(self.generators.read_bytes())
        for path in (tuned.PARAMETERS_TABLE, tuned.THRESHOLDS_TABLE, tuned.LAYOUTS_TABLE):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:12]

    def kernel_layouts(self, kernel: str, dtype: str) -> list[str]:
        """The layouts that a kernel was built for: what may serve a cell. `strided` serves any, and is never fast."""
        found = [layout for layout in tables.kernel_layouts() if (kernel, dtype, layout) in self.built]
        return [layout for layout in found if layout != "strided"] or found
