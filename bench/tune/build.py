"""A build folder: the kernels it has, and the programs that compile and measure more of them."""

import hashlib
import json
import pathlib
import shlex
import subprocess
from collections.abc import Sequence
from typing import Any

from . import tables
from .tables import ROOT, UserError, tuned

GENERATORS = "hbn_generators"


def generators_of(folder: pathlib.Path) -> pathlib.Path:
    """What compiles kernels for a build folder: its own, or this machine's where the folder is of another target."""
    own = folder / GENERATORS
    return own if own.exists() else ROOT / "build" / "x86" / GENERATORS


class Build:
    """What a build folder offers the tuner."""

    def __init__(
        self,
        folder: pathlib.Path,
        target: str,
        generators: pathlib.Path | None = None,
        remote: Sequence[str] = (),
        measured_by: str = "",
    ):
        """Looks for what tuning needs, and says what to do where it isn't there.

        `remote` are the words before the worker's path, of a command that runs it on a device. `measured_by` names what
        tells how fast kernels are, where that is not a clock.
        """
        self.folder, self.target, self.measured_by = folder, target, measured_by
        self.generators = generators or generators_of(folder)
        worker = folder / "bench" / "tune_worker"
        make = "make tune" + ("" if target == "x86" else f" TARGET={target}")
        for path in [worker, folder / "hbn_targets.json", folder / "hbn_kernels.h", self.generators]:
            if not path.exists():
                raise UserError(f"there is no {path}: `{make}` builds it, or name another folder by --build")
        described = json.loads((folder / "hbn_targets.json").read_text())
        if described["target"] != target:
            raise UserError(f"{folder} is a build for {described['target']}, not for {target}: --build names another")
        if "compiler" not in described:
            raise UserError(f"{folder} is of an older hbn: `{make}` builds it again")
        self.halide_targets: dict[str, str] = described["instruction_sets"]
        self.compiler: str = described["compiler"]
        self.objdump: str = described["objdump"]
        self.family = tuned.FAMILIES[target]
        self.built = tuned.built_kernels((folder / "hbn_kernels.h").read_text())
        self.worker = [*remote, str(worker)]
        machine = self._machine()
        self.cpu, self.instruction_set = machine["cpu"], machine["instruction_set"]
        self.threads: int = machine["threads"]
        self.code: list[list[int]] = machine["code"]  # where the worker's lies in memory
        self.fingerprint = self._fingerprint()

    def _machine(self) -> dict[str, Any]:
        try:
            done = subprocess.run(self.worker, input="machine\n", capture_output=True, text=True, check=False)
        except OSError as error:
            raise UserError(f"{self.worker[0]}: {error.strerror}") from error
        try:
            return dict(json.loads(done.stdout))
        except ValueError as error:
            said = (done.stderr or done.stdout).strip() or f"it ended with {done.returncode}"
            raise UserError(f"{shlex.join(self.worker)} does not run: {said}") from error

    def _fingerprint(self) -> str:
        """Of what times depend on, and candidates' meaning. Times of another build are not taken for this one's."""
        digest = hashlib.sha256(self.generators.read_bytes())
        for path in (tuned.PARAMETERS_TABLE, tuned.THRESHOLDS_TABLE, tuned.LAYOUTS_TABLE):
            digest.update(path.read_bytes())
        digest.update(self.measured_by.encode())
        return digest.hexdigest()[:12]

    def kernel_layouts(self, kernel: str, dtype: str) -> list[str]:
        """The layouts that a kernel was built for: what may serve a cell. `strided` serves any, and is never fast."""
        found = [layout for layout in tables.kernel_layouts() if (kernel, dtype, layout) in self.built]
        return [layout for layout in found if layout != "strided"] or found
