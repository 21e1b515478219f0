"""Tests of tune_worker, with candidates that hbn's generators compile. Run by ctest, which gives the paths.

python tests/tune/test_worker.py WORKER GENERATORS COMPILER HALIDE_TARGET
"""

import base64
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from typing import Any

PROJECT = pathlib.Path(__file__).parents[2]
# Rows of operations.def on tensors of every layout that the worker has no call and no oracle for.
NOT_SERVED = {"jvp_elemt", "double_backward_elemt"}
CELL = "cell forward_inference float32 nchw 4 24 20 20 1"

worker_program, generators, compiler, halide_target = map(str, sys.argv[1:5])
folder = pathlib.Path(tempfile.mkdtemp())
unittest.addModuleCleanup(shutil.rmtree, folder)


def compile_candidate(symbol: str, generator: str, parameters: str, more_code: str = "") -> pathlib.Path:
    """As README.md says, with more C where that is given."""
    subprocess.run(
        [
            generators,
            "-n",
            symbol,
            "-f",
            symbol,
            "-g",
            generator,
            "-e",
            "object",
            "-o",
            folder,
            f"target={halide_target}",
            *parameters.split(),
        ],
        check=True,
    )
    sources = [folder / f"{symbol}.o"]
    if more_code:
        sources.append(folder / f"{symbol}_more.c")
        sources[1].write_text(more_code)
    library = folder / f"{symbol}.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-Wl,-Bsymbolic", "-o", library, *sources], check=True)
    return library


def candidate(identifier: str, library: pathlib.Path, symbol: str, rest: str = "forward_inference float32 nchw") -> str:
    """The line; `rest` is kernel, dtype and kernel layout."""
    return f"candidate {identifier} {symbol} {rest} {base64.b64encode(library.read_bytes()).decode()}"


class Worker:
    """The program, asked line by line."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([worker_program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, line: str) -> dict[str, Any]:
        """Its answer; nothing where it ended."""
        assert self.process.stdin and self.process.stdout  # pipes
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        return json.loads(answer) if answer else {}

    def ask_all(self, *lines: str) -> dict[str, Any]:
        """The answer to the last one, where none is an error."""
        answer: dict[str, Any] = {}
        for line in lines:
            answer = self.ask(line)
            assert "error" not in answer, (line, answer)
        return answer

    def end(self) -> int:
        """Its exit status."""
        self.process.communicate()
        return self.process.returncode


class WorkerTest(unittest.TestCase):
    """Each test has a worker of its own."""

    map_kernel: pathlib.Path
    sums_kernel: pathlib.Path

    @classmethod
    def setUpClass(cls) -> None:
        cls.map_kernel = compile_candidate("a_map", "forward_inference", "dtype=float32 layout=nchw")
        cls.sums_kernel = compile_candidate("sums", "backward_training", "dtype=bfloat16 layout=rows")

    def setUp(self) -> None:
        self.worker = Worker()

    def tearDown(self) -> None:
        if self.worker.process.poll() is None:
            self.assertEqual(self.worker.end(), 0)

    def load_map(self) -> None:
        """Candidate m."""
        self.worker.ask_all(candidate("m", self.map_kernel, "a_map"))

    def test_default_parameters_give_the_same_bits(self) -> None:
        self.load_map()
        self.worker.ask_all(CELL)
        answer = self.worker.ask("check m")
        self.assertLess(answer.pop("worst"), 1)
        self.assertEqual(answer, {"ok": True, "kernel_layout": "nchw", "used": True, "same_bits": True})
        self.worker.ask_all(
            candidate("s", self.sums_kernel, "sums", "backward_training bfloat16 rows"),
            "cell backward_training bfloat16 nhwc 4 24 20 20 2",
        )
        answer = self.worker.ask("check s")
        self.assertLessEqual(answer.pop("worst"), 1)
        self.assertEqual(answer, {"ok": True, "kernel_layout": "rows", "used": True, "same_bits": True})

    def test_thresholds_choose(self) -> None:
        self.load_map()
        self.worker.ask_all(CELL)
        answer = self.worker.ask("check m layout=strided")
        self.assertEqual((answer["ok"], answer["kernel_layout"], answer["used"]), (True, "strided", False))
        self.assertEqual(self.worker.ask("check -")["kernel_layout"], "nchw")

    def test_a_wrong_kernel_is_caught(self) -> None:
        library = compile_candidate("relu", "forward_inference", "dtype=float32 layout=nchw activation=relu")
        self.worker.ask_all(candidate("r", library, "relu"), CELL)
        answer = self.worker.ask("check r")
        self.assertEqual((answer["ok"], answer["used"], answer["same_bits"]), (False, True, False))
        self.assertGreater(answer["worst"], 1)
        self.assertRegex(answer["why"], "^y of channel [0-9]+ is off by .* times the bound, on ordinary inputs$")

    def test_a_kernel_that_is_wrong_on_hard_inputs_alone_is_caught(self) -> None:
        # It adds 1 to what is right wherever the first x is far from zero.
        library = compile_candidate(
            "late",
            "forward_inference",
            "dtype=float32 layout=nchw",
            """
            #include <stdint.h>
            struct buffer { uint64_t device; void *interface; uint8_t *host; };
            int late_argv(void **arguments);
            const void *late_metadata(void);
            const void *worse_metadata(void) { return late_metadata(); }
            int worse_argv(void **arguments) {
                const int code = late_argv(arguments);
                const float *x = (const float *)((struct buffer *)arguments[OF_X])->host;
                float *y = (float *)((struct buffer *)arguments[OF_Y])->host;
                y[0] += x[0] > 1000 ? 1 : 0;
                return code;
            }""".replace("OF_X", str(self.index_of("x"))).replace("OF_Y", str(self.index_of("y"))),
        )
        self.worker.ask_all(candidate("w", library, "worse"), CELL)
        answer = self.worker.ask("check w")
        self.assertFalse(answer["ok"])
        self.assertRegex(answer["why"], "^y of channel 0 is off by .*, on hard inputs$")

    def index_of(self, argument: str) -> int:
        """Of forward_inference's, as its header has them."""
        subprocess.run(
            [
                generators,
                "-n",
                "header",
                "-f",
                "header",
                "-g",
                "forward_inference",
                "-e",
                "c_header",
                "-o",
                folder,
                f"target={halide_target}",
                "dtype=float32",
                "layout=nchw",
            ],
            check=True,
        )
        signature = re.search(r"int header\((.*?)\)", (folder / "header.h").read_text(), re.S)
        assert signature
        return [f"*_{argument}_buffer" in parameter for parameter in signature[1].split(",")].index(True)

    def test_a_crash_ends_the_worker(self) -> None:
        library = compile_candidate(
            "dying",
            "forward_inference",
            "dtype=float32 layout=nchw",
            """
            const void *dying_metadata(void);
            const void *crash_metadata(void) { return dying_metadata(); }
            int crash_argv(void **arguments) { __builtin_trap(); }""",
        )
        self.worker.ask_all(candidate("c", library, "crash"), CELL)
        self.assertEqual(self.worker.ask("check c"), {})
        self.assertLess(self.worker.end(), 0)

    def test_bad_lines_get_errors(self) -> None:
        text = folder / "text.so"
        text.write_text("no library")
        library = self.map_kernel
        for line, error in {
            "check -": "there is no cell yet",
            "call -": "there is no cell yet",
            "view": "there is no cell yet",
            "measure 1": "there is no cell yet",
            "": "the line is empty",
            "hello": "`candidate ID SYMBOL KERNEL DTYPE KERNEL_LAYOUT LIBRARY`, ",
            "cell forward_inference float32 nchw 1 2 3": "`candidate ID SYMBOL KERNEL DTYPE KERNEL_LAYOUT LIBRARY`, ",
            "cell forward_inference float32 nchw 1 2 3 x 1": "size 'x' is not a whole number from 1 to ",
            "cell forward_inference float32 nchw 1 2 3 0 1": "size '0' is not a whole number from 1 to ",
            "cell forward_inference float32 nchw 99999 99999 1 1 1": "more than 2^31 - 1 elements",
            "cell forward_inference float32 nchw 1 2 3 4 0": "THREADS '0' is not a whole number from 1 to ",
            "cell forward_inference float32 strided 1 2 3 4 1": "LAYOUT 'strided' is none of nchw, nhwc",
            "cell forward_inference int8 nchw 1 2 3 4 1": "unknown dtype int8",
            "cell convolution float32 nchw 1 2 3 4 1": "kernel 'convolution' is none of forward_training, ",
            "cell forward_training float32 nchw 1 2 1 1 1": "Expected more than 1 value per channel when training",
            candidate("a", text, "a_map"): "file too short",
            candidate("a", library, "a_map")[:-1]: "LIBRARY is not in base64, or not whole",
            candidate("a", library, "a_map")[:-4] + "A===": "LIBRARY is not in base64, or not whole",
            candidate("a", library, "a_map")[:-4] + "A?==": "LIBRARY is not in base64, or not whole",
            "candidate a a_map forward_inference float32 nchw": "expected `machine`, ",
            candidate("a", library, "b_map"): "there is no symbol b_map_argv",
            candidate(
                "a", library, "a_map", "forward_inference float32 chwn"
            ): "KERNEL_LAYOUT 'chwn' is none of nchw, ",
            candidate("a", library, "a_map", "stats float32 nchw"): "takes other arguments than the same kernel",
            candidate("a", library, "a_map", "convert float32 nchw"): "kernel 'convert' is none of ",
            candidate("-", library, "a_map"): "ID '-' must be a new one",
            candidate("a:b", library, "a_map"): "ID 'a:b' must be a new one",
        }.items():
            with self.subTest(line[:80]):
                self.assertIn(error, self.worker.ask(line)["error"])
        self.load_map()
        self.assertIn("must be a new one", self.worker.ask(candidate("m", library, "a_map"))["error"])
        self.worker.ask_all(CELL)
        for line, error in {
            "call other": "no candidate 'other' was loaded",
            "check other": "no candidate 'other' was loaded",
            "check - rows": "expected THRESHOLD=VALUE, got 'rows'",
            "check - no_such=1": "unknown threshold 'no_such': expected one of ",
            "check - nhwc_columns=0": "threshold nhwc_columns: expected 64 to 2048, got 0",
            "check m nhwc_columns=4x": "threshold nhwc_columns: expected a number from 64 to 2048, got '4x'",
            "check - layout=chwn": "threshold layout: ",
            "measure soon": "SECONDS 'soon' is not a number from 0 to 300",
            "measure 0 m m": "contestant 'm' is there twice",
            "measure 0 default": "contestant 'default' is there twice",
            "measure 0 m:nhwc_columns=0": "threshold nhwc_columns: ",
        }.items():
            with self.subTest(line[:80]):
                self.assertIn(error, self.worker.ask(line)["error"])
        self.assertTrue(self.worker.ask("check m")["used"], "after all these errors")
        self.worker.ask_all("cell stats float32 nchw 2 3 4 5 1")
        self.assertIn(
            "candidate 'm' is for forward_inference of float32, the cell for stats of float32",
            self.worker.ask("check m")["error"],
        )

    def test_measures(self) -> None:
        self.load_map()
        # The second beyond any core's L2, so that copies take turns.
        for sizes, threads, copies in (((4, 24, 20, 20), 1, False), ((8, 64, 80, 80), 2, True)):
            cell = self.worker.ask_all(f"cell forward_inference float32 nchw {' '.join(map(str, sizes))} {threads}")
            elements = sizes[0] * sizes[1] * sizes[2] * sizes[3]
            self.assertEqual(cell["bytes"], 2 * 4 * elements)
            self.assertEqual(cell["kernel_layout"], "nchw")
            self.assertEqual(cell["copies"] > 1, copies)
            self.assertGreater(cell["default_seconds"], cell["bytes"] / 1e12)
            answer = self.worker.ask("measure 0.05 m -:layout=strided m:cached_bytes=0")
            names = ["default", "m", "-:layout=strided", "m:cached_bytes=0"]
            self.assertEqual(sorted(answer), sorted([*names, "repeats", "ratios"]))
            self.assertEqual(list(answer["ratios"]), names[1:])
            for name in names:
                self.assertGreater(answer[name]["fastest"], cell["bytes"] / 1e12)
                self.assertLessEqual(answer[name]["fastest"], answer[name]["median"])
            rounds = {len(ratios) for ratios in answer["ratios"].values()}
            self.assertEqual(len(rounds), 1)
            self.assertGreaterEqual(min(rounds), 6)
            # The same code.
            self.assertTrue(0.2 < sorted(answer["ratios"]["m"])[min(rounds) // 2] < 5)

    def test_a_cell_for_times_alone_has_nothing_to_check(self) -> None:
        self.load_map()
        cell = self.worker.ask_all(CELL + " timing")
        self.assertEqual((cell["worst"], cell["kernel_layout"]), (0, "nchw"))
        # The default beside itself.
        answer = self.worker.ask_all("measure 0.05 - m")
        self.assertTrue(0.5 < sorted(answer["ratios"]["-"])[len(answer["ratios"]["-"]) // 2] < 2)
        self.assertIn("view", self.worker.ask("view"))
        self.assertEqual(self.worker.ask("check m")["error"], "the cell is for `timing` alone")
        self.assertIn("THREADS [timing]`", self.worker.ask(CELL + " times")["error"])

    def test_what_is_much_slower_is_left_out(self) -> None:
        self.load_map()
        # The same kernel, 1000 times for each call, though no more often than it takes to tell.
        library = compile_candidate(
            "quick",
            "forward_inference",
            "dtype=float32 layout=nchw",
            """
            int quick_argv(void **arguments);
            const void *quick_metadata(void);
            const void *slow_metadata(void) { return quick_metadata(); }
            int slow_argv(void **arguments) {
                static int calls;
                if (++calls > 2) {
                    __builtin_trap();
                }
                for (int i = 1; i < 1000; i++) {
                    quick_argv(arguments);
                }
                return quick_argv(arguments);
            }""",
        )
        self.worker.ask_all(candidate("s", library, "slow"), CELL)
        answer = self.worker.ask_all("measure 0.02 s m")
        self.assertEqual((list(answer["too_slow"]), list(answer["ratios"])), (["s"], ["m"]))
        self.assertGreater(answer["too_slow"]["s"], 30 * answer["default"]["fastest"])
        self.assertNotIn("s", answer)

    def test_calls_once_and_tells_where_code_lies(self) -> None:
        # Of another kind than a call: what the program consists of before it.
        code = [tuple(one) for one in self.worker.ask("machine")["code"]]
        self.assertTrue(all(0 < first < last for first, last in code))
        loaded = self.worker.ask_all(candidate("m", self.map_kernel, "a_map"))
        first, last = loaded["code"]
        self.assertLessEqual(loaded["base"], first)
        self.assertTrue(all(last < other[0] or other[1] < first for other in code))
        self.assertEqual(self.worker.ask("machine")["code"], [*map(list, code), [first, last]])
        self.worker.ask_all(CELL)
        self.assertEqual(self.worker.ask("call m"), {"called": True, "kernel_layout": "nchw", "used": True})
        answer = self.worker.ask("call m layout=strided")
        self.assertEqual(answer, {"called": True, "kernel_layout": "strided", "used": False})
        self.assertFalse(self.worker.ask("call -")["used"])

    def test_views_tell_whether_thresholds_make_a_difference(self) -> None:
        self.worker.ask_all("cell forward_training float32 nhwc 8 64 20 20 1")
        view = self.worker.ask("view")["view"]
        self.assertEqual((view["layout"], view["sizes"][0]), ("rows", 1024))
        for same in ("layout=rows", "nhwc_columns=1024", "block_columns=64", "few_channels=0"):
            self.assertEqual(self.worker.ask(f"view {same}")["view"], view)
        for setting, name in (
            ("layout=strided", "layout"),
            ("nhwc_columns=256", "sizes"),
            ("row_tile_rows=16 row_tile_elements=8192", "tile"),
            ("cached_bytes=0", "streams"),
            ("serial_elements=1000000", "serial"),
        ):
            with self.subTest(setting):
                self.assertNotEqual(self.worker.ask(f"view {setting}")["view"][name], view[name])
        self.assertIn("unknown threshold", self.worker.ask("view no_such=1")["error"])
        # What a view says of layouts is what a call does.
        self.assertEqual(self.worker.ask("check - layout=strided")["kernel_layout"], "strided")

    def test_the_memory_bound_is_a_contestant(self) -> None:
        for kernel, dtype, exists in (
            ("forward_training", "float32", True),
            ("backward_training", "bfloat16", True),
            ("stats", "float32", False),
            ("forward_training_add_relu", "float32", False),
        ):
            with self.subTest(kernel):
                self.assertEqual(self.worker.ask_all(f"cell {kernel} {dtype} nchw 3 7 9 9 2")["bound"], exists)
                answer = self.worker.ask("measure 0.01 bound bound:streaming")
                if exists:
                    self.assertEqual(list(answer["ratios"]), ["bound", "bound:streaming"])
                else:
                    self.assertEqual(answer["error"], "there is no bound for this kernel")
        # Beyond the cache, nothing moves the bytes in less time.
        self.worker.ask_all("cell forward_training float32 nchw 16 64 56 56 1")
        self.assertGreater(sorted(self.worker.ask("measure 0.2 bound")["ratios"]["bound"])[3], 0.9)

    def test_float16_gradients_near_0_are_normal_numbers(self) -> None:
        # Of as many elements, some are.
        answer = self.worker.ask_all("cell backward_training_add_relu float16 nhwc 2 251 28 28 1")
        self.assertLess(answer["worst"], 1)

    def test_names_the_machine(self) -> None:
        answer = self.worker.ask("machine")
        self.assertEqual(sorted(answer), ["code", "cpu", "instruction_set", "threads"])
        self.assertGreaterEqual(answer["threads"], 1)
        self.assertRegex(answer["cpu"], r"^\S+ \d+ \d+$")

    def test_serves_what_operations_def_has(self) -> None:
        served = self.worker.ask("cell none float32 nchw 1 1 1 1 1")["error"].split("none of ")[1].split(", ")
        rows = [
            re.split(r" *, *", row)
            for row in re.findall(r"^HBN_KERNEL\((.*)\)$", (PROJECT / "runtime/operations.def").read_text(), re.M)
        ]
        self.assertEqual(set(served), {row[0] for row in rows if row[5] == "all"} - NOT_SERVED)
        for kernel in served:
            with self.subTest(kernel):
                self.assertLess(self.worker.ask_all(f"cell {kernel} float32 nhwc 3 7 5 5 1")["worst"], 1)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[5:])
