"""Tests of costs by a model, on kernels for 64-bit ARM under qemu. Run by ctest, which gives the paths.

python tests/tune/test_model.py BUILD GENERATORS EMULATOR [ARGUMENT ...]
"""

import pathlib
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "bench"))
import cycles  # noqa: E402
from tune.build import Build  # noqa: E402
from tune.cells import Cell  # noqa: E402
from tune.classes import AsEntry  # noqa: E402
from tune.compile import Compiler  # noqa: E402
from tune.measure import Contestant, Crash, Worker  # noqa: E402
from tune.model import ModelWorker  # noqa: E402
from tune.spaces import DEFAULT, Candidate  # noqa: E402

folder, generators, *remote = sys.argv[1:]
CELL = Cell("forward_inference", "float32", "nchw", (2, 8, 14, 14), 1)
UNROLLED = Candidate("nchw", (), (("map_unroll", 2),))
LATER = Candidate("nchw", (("serial_elements", 1),), ())  # the same code


class ModelTest(unittest.TestCase):
    """All share what is compiled."""

    build: Build
    compiler: Compiler

    @classmethod
    def setUpClass(cls) -> None:
        cls.build = Build(pathlib.Path(folder), "arm64", pathlib.Path(generators), remote, "llvm-mca cortex-a53")
        kernels = tempfile.TemporaryDirectory()
        cls.addClassCleanup(kernels.cleanup)
        cls.compiler = Compiler(cls.build, pathlib.Path(kernels.name), 2)
        cls.addClassCleanup(cls.compiler.finish)

    def worker(self, model_cpu: str | None) -> ModelWorker:
        worker = ModelWorker(self.build, model_cpu, lambda cell, layout: self.path(Candidate(layout)))
        self.addCleanup(worker.close)
        return worker

    def path(self, candidate: Candidate) -> pathlib.Path | None:
        return self.compiler.start(CELL.kernel, CELL.dtype, candidate).result().path

    def contestants(self) -> list[Contestant]:
        return [Contestant(1, UNROLLED, self.path(UNROLLED)), Contestant(2, LATER, None)]

    def test_the_machine_is_the_emulated_one(self) -> None:
        self.assertEqual((self.build.cpu, self.build.instruction_set), ("0x41 0xd03", "neon"))
        self.assertEqual(self.build.family, "arm")

    def test_a_remote_worker_checks_and_times_what_it_is_sent(self) -> None:
        worker = Worker(self.build.worker)
        self.addCleanup(worker.stop)
        self.assertEqual(worker.use(CELL)["kernel_layout"], "nchw")
        unrolled, later = self.contestants()
        answer = worker.check(unrolled)
        self.assertTrue(answer["ok"] and answer["used"], answer)
        self.assertEqual(list(worker.measure(0.01, [unrolled, later])["ratios"]), [unrolled.text(), later.text()])

    def test_costs_are_the_same_each_time(self) -> None:
        answers = []
        for _ in range(2):
            worker = self.worker("cortex-a53")
            self.assertGreater(worker.use(CELL)["default_seconds"], 0)
            self.assertTrue(worker.check(self.contestants()[0])["ok"])
            answers.append(worker.measure(1, self.contestants()))
        self.assertEqual(*answers)
        unrolled, later = (answers[0]["ratios"][contestant.text()] for contestant in self.contestants())
        self.assertEqual(later, [1.0])
        self.assertNotEqual(unrolled, [1.0])
        self.assertTrue(0.5 < unrolled[0] < 2, unrolled)
        # A cycle for each element at least half: the processor loads and stores 8 bytes at once.
        self.assertGreater(answers[0]["default"]["median"] * 1e9, 2 * 8 * 14 * 14 / 2)

    def test_instructions_are_those_that_are_executed_one_by_one(self) -> None:
        worker = self.worker(None)
        worker.use(CELL)
        counted = worker.cost(Contestant(0, DEFAULT, None))
        kernel = self.path(Candidate("nchw"))
        assert kernel
        # The same calls, logged instruction by instruction.
        log = pathlib.Path(worker.folder.name) / "each"
        qemu, *others = worker.command
        others[others.index("-D") + 1] = str(log)
        each = Worker([qemu, "-singlestep", *others])
        self.addCleanup(each.stop)
        each.use(CELL)
        loaded = each.load(Contestant(1, Candidate("nchw"), kernel))
        begin = log.stat().st_size
        each.ask("call 1")
        listing = cycles.disassemble(kernel, offset=loaded["base"])
        self.assertEqual(counted, sum(cycles.counts_of(log.read_text()[begin:], listing).values()))

    def test_a_kernel_that_is_not_used_costs_what_is_used_instead(self) -> None:
        worker = self.worker(None)
        worker.use(CELL)
        unrolled = self.contestants()[0]
        elsewhere = AsEntry(1, UNROLLED._replace(thresholds=(("layout", "strided"),)), unrolled.path)
        self.assertEqual(worker.cost(elsewhere), worker.cost(Contestant(2, Candidate("strided"), None)))
        self.assertGreater(worker.cost(elsewhere), 1.5 * worker.cost(unrolled))

    def test_a_hung_worker_ends(self) -> None:
        worker = Worker(["sh", "-c", "sleep 60; :"])
        worker._start()
        process = worker.process
        assert process
        with self.assertRaisesRegex(Crash, "no answer in 1 s"):
            worker._ask("x" * 1000000, 1)  # more than the pipe holds
        self.assertIsNone(worker.process)
        for _ in range(100):
            ps = subprocess.run(
                ["ps", "-o", "stat=", "-g", str(process.pid)], capture_output=True, text=True, check=False
            )
            if not ps.stdout.replace("Z", "").strip():  # the child's child may wait for who reaps it
                return
            time.sleep(0.05)
        self.fail("what it started still runs")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
