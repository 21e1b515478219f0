"""Files of tuned entries: what cmake/tuned.py says of bad ones, and what it makes of good ones."""

import copy
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "cmake"))

import tuned  # noqa: E402

ENTRY = {
    "kernel": "forward_training",
    "dtype": "float32",
    "layout": "nhwc",
    "shapes": {"n": [32, 63], "c": [256, 511], "plane": [2048, 4095]},
    "cpu": "GenuineIntel 6 207",
    "instruction_set": "avx512",
    "thresholds": {"nhwc_columns": 512},
    "kernel_layout": "rows",
    "parameters": {"row_lanes": 32},
    "shape": [32, 256, 56, 56],
    "threads": 2,
    "ratio": 1.12,
    "worst_in_class": 1.01,
    "share_of_bound": [0.71, 0.8],
    "measured_by": "llvm-mca cortex-a53",
    "date": "2026-11-26",
}
KERNELS = "".join(
    f"{kernel} {dtype} {layout}\n"
    for kernel in ("forward_training", "stats")
    for dtype in ("float32", "bfloat16")
    for layout in ("nchw", "blocks", "rows", "strided")
)
BUILT = "".join(f"HBN_BUILT_KERNEL({line.replace(' ', ', ')})\n" for line in KERNELS.splitlines())


def build(built=BUILT, built_sets=("avx512", "avx2", "sse41")):
    return tuned.Build(KERNELS, built, ["avx512", "avx2", "sse41"], list(built_sets))


class Files(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = pathlib.Path(folder.name, "x86.json")

    def load(self, *entries, **with_build):
        """Of a file that has each key of an entry in a line of its own: the first in line 5."""
        self.path.write_text(json.dumps({"target": "x86", "entries": list(entries)}, indent=2))
        return tuned.load(self.path, **with_build)

    def errors(self, *entries, **with_build):
        with self.assertRaises(tuned.Invalid) as caught:
            self.load(*entries, **with_build)
        return str(caught.exception)

    def expect(self, errors, key, text):
        """That there is one error, in the line that has `key` first, with that text."""
        lines = self.path.read_text().splitlines()
        line = next(i for i, line in enumerate(lines, 1) if key in line)
        self.assertEqual(errors, f"x86.json:{line}: {text}")

    def with_changes(self, **changes):
        return {**copy.deepcopy(ENTRY), **changes}

    def test_a_good_file(self):
        self.assertEqual(self.load(ENTRY, build=build()), [(4, ENTRY)])

    def test_files_of_the_repository(self):
        self.assertIn("x86.json", [path.name for path in tuned.SCHEMA.parent.glob("*.json")])
        for path in tuned.SCHEMA.parent.glob("*.json"):
            if path != tuned.SCHEMA:
                tuned.load(path)

    def test_the_schema_is_that_of_the_tables(self):
        self.assertEqual(
            tuned.SCHEMA.read_text(), tuned.schema_text(), "run `python3 cmake/tuned.py --schema` and commit the result"
        )

    def test_unknown_keys(self):
        self.expect(
            self.errors(self.with_changes(speed=3)),
            '"speed"',
            "entries[0].speed: unknown key, expected one of " + ", ".join([*ENTRY]),
        )
        errors = self.errors(self.with_changes(thresholds={"columns": 64}))
        self.assertRegex(
            errors,
            r"^x86.json:25: entries\[0\].thresholds.columns: unknown key, "
            r"expected one of layout, nhwc_columns, block_columns, [a-z_, ]+, serial_elements$",
        )
        errors = self.errors(self.with_changes(parameters={"lane": 64}))
        self.assertRegex(
            errors, r"^x86.json:\d+: entries\[0\].parameters.lane: unknown key, expected one of lanes, .*row_lanes"
        )

    def test_unknown_names(self):
        for key, allowed in {
            "kernel": "forward_training, forward_training_relu, ",
            "dtype": "float32, float64, bfloat16, float16",
            "layout": "nchw, nhwc",
            "kernel_layout": "nchw, nchw_few_channels, blocks, rows, nhwc, strided",
        }.items():
            errors = self.errors(self.with_changes(**{key: "forward"}))
            line = next(i for i, line in enumerate(self.path.read_text().splitlines(), 1) if f'"{key}"' in line)
            self.assertTrue(
                errors.startswith(f'x86.json:{line}: entries[0].{key}: "forward" is none of {allowed}'), errors
            )

    def test_what_measured_it_is_a_model(self):
        self.load({key: value for key, value in ENTRY.items() if key != "measured_by"})
        self.load(ENTRY | {"measured_by": "instructions"})
        self.expect(
            self.errors(self.with_changes(measured_by="a guess")),
            '"measured_by"',
            'entries[0].measured_by: "a guess" does not match ^(llvm-mca [a-z0-9-]+|instructions)$',
        )

    def test_thresholds_out_of_range(self):
        for value in (63, 2049, -1):
            self.expect(
                self.errors(self.with_changes(thresholds={"nhwc_columns": value})),
                '"nhwc_columns"',
                f"entries[0].thresholds.nhwc_columns: expected 64 to 2048, got {value}",
            )
        self.expect(
            self.errors(self.with_changes(thresholds={"nhwc_columns": "512"})),
            '"nhwc_columns"',
            'entries[0].thresholds.nhwc_columns: expected an integer, got "512"',
        )
        self.expect(
            self.errors(self.with_changes(thresholds={"nhwc_columns": 1024})),
            '"nhwc_columns"',
            "entries[0].thresholds.nhwc_columns: 1024 is the default, which is left out",
        )
        self.expect(
            self.errors(self.with_changes(thresholds={"layout": 3})),
            '"layout": 3',
            "entries[0].thresholds.layout: 3 is none of nchw, nchw_few_channels, blocks, rows, nhwc, strided",
        )

    def test_parameters_that_are_not_allowed(self):
        self.expect(
            self.errors(self.with_changes(parameters={"row_lanes": 12})),
            '"row_lanes"',
            "entries[0].parameters.row_lanes: 12 is none of 0, 8, 16, 32, 64",
        )
        self.expect(
            self.errors(self.with_changes(parameters={"lanes": 8})),
            '"lanes"',
            "entries[0].parameters.lanes: has no effect on rows: it is for nchw nchw_few_channels",
        )
        self.expect(
            self.errors(self.with_changes(parameters={"gpu_block": 64})),
            '"gpu_block"',
            "entries[0].parameters.gpu_block: has no effect on x86: it is for gpu",
        )

    def test_parameters_and_kernel_layout_come_together(self):
        text = "entries[0]: expected kernel_layout where there are parameters, and only there"
        self.expect(self.errors(self.with_changes(parameters={})), "    {", text)
        without = self.with_changes()
        del without["kernel_layout"]
        self.expect(self.errors(without), "    {", text)
        self.expect(
            self.errors({**without, "parameters": {}, "thresholds": {}}),
            "    {",
            "entries[0]: expected a threshold or a parameter that differs from the default",
        )

    def test_ranges_upside_down(self):
        shapes = {"n": [63, 32], "c": [256, 511], "plane": [2048, 4095]}
        self.expect(
            self.errors(self.with_changes(shapes=shapes)),
            '"n"',
            "entries[0].shapes.n: expected the least before the most, got [63, 32]",
        )

    def test_the_measured_shape_is_of_the_class(self):
        self.expect(
            self.errors(self.with_changes(shape=[32, 256, 64, 64])),
            '"shape"',
            "entries[0].shape: the shape that was measured is not of the class: plane is 4096, not 2048 to 4095",
        )

    def test_entries_that_overlap(self):
        def other(n=(63, 64), c=(511, 600), plane=(4095, 9999), shape=(64, 512, 64, 64), **changes):
            shapes = {"n": list(n), "c": list(c), "plane": list(plane)}
            return self.with_changes(shapes=shapes, shape=list(shape), **changes)

        self.assertEqual(
            self.errors(ENTRY, other()),
            "x86.json:51: entries[1].shapes: overlap those of the entry of line 4 for the same kernel, dtype, layout, "
            "CPU and instruction set: a shape may have one",
        )
        for neighbour in (
            other(n=(64, 64)),
            other(c=(512, 600)),
            other(plane=(4096, 9999)),
            other(dtype="bfloat16"),
            other(layout="nchw"),
            other(cpu="GenuineIntel 6 143"),
            other(instruction_set="avx2"),
            other(kernel="stats"),
        ):
            self.load(ENTRY, neighbour)

    def test_what_is_missing_or_of_another_type(self):
        without = self.with_changes()
        del without["date"]
        self.expect(self.errors(without), "    {", "entries[0]: lacks 'date'")
        self.expect(
            self.errors(self.with_changes(date="2026-02-30")),
            '"date"',
            'entries[0].date: "2026-02-30" is no day, expected YYYY-MM-DD',
        )
        self.expect(
            self.errors(self.with_changes(threads=True)),
            '"threads"',
            "entries[0].threads: expected an integer, got true",
        )
        self.expect(self.errors(self.with_changes(ratio=0)), '"ratio"', "entries[0].ratio: expected more than 0, got 0")
        self.expect(
            self.errors(self.with_changes(shape=[1, 2, 3])), '"shape":', "entries[0].shape: expected 4 values, got 3"
        )
        self.assertIn('"GenuineIntel" does not match', self.errors(self.with_changes(cpu="GenuineIntel")))

    def test_no_json(self):
        for text, error in {
            "": "x86.json:1: is no JSON: Expecting value",
            '{\n "target": "x86",\n "entries": [}\n': "x86.json:3: is no JSON: Expecting value",
            '{\n "target": "x86",\n "entries": []\n} 3': "x86.json:4: is no JSON: Extra data",
            '{\n "target": "x86",\n "target": "x86"}': "x86.json:3: 'target' is there twice",
            '{\n "target": NaN}': "x86.json:1: NaN is no JSON",
            "[" * 100000: "x86.json:1: is no JSON: nested too deeply",
            "[]": "x86.json:1: expected an object, got an array",
            '{\n "target": "arm64",\n "entries": []}': "x86.json:2: target: expected x86, as the file's name",
            '{\n "target": "x86",\n "entries": {}}': "x86.json:3: entries: expected an array, got an object",
        }.items():
            self.path.write_text(text)
            with self.assertRaises(tuned.Invalid) as caught:
                tuned.load(self.path)
            self.assertEqual(str(caught.exception), error)
        self.path.write_bytes(b'{"target": "\xff"}')
        with self.assertRaisesRegex(tuned.Invalid, "^x86.json:1: is no UTF-8$"):
            tuned.load(self.path)
        self.path.unlink()
        with self.assertRaisesRegex(tuned.Invalid, "^x86.json: No such file"):
            tuned.load(self.path)

    def test_every_error_is_told(self):
        errors = self.errors(self.with_changes(threads=0, thresholds={"nhwc_columns": 1}, ratio="fast"))
        self.assertEqual(len(errors.splitlines()), 3, errors)

    def test_kernels_that_the_target_lacks(self):
        self.expect(
            self.errors(self.with_changes(dtype="float16"), build=build()),
            '"dtype"',
            "entries[0].dtype: x86 has no forward_training for float16",
        )
        self.expect(
            self.errors(self.with_changes(kernel_layout="nchw_few_channels"), build=build()),
            '"kernel_layout"',
            "entries[0].kernel_layout: forward_training for float32 has nchw, blocks, rows, strided, "
            "not nchw_few_channels",
        )
        self.expect(
            self.errors(self.with_changes(instruction_set="neon"), build=build()),
            '"instruction_set"',
            'entries[0].instruction_set: "neon" is none of avx512, avx2, sse41',
        )

    def test_what_the_build_takes(self):
        small = {"n": [1, 1], "c": [1, 99], "plane": [1, 99]}
        entries = self.load(
            ENTRY,
            self.with_changes(shapes=small, shape=[1, 2, 3, 4]),
            self.with_changes(dtype="bfloat16", parameters={"row_lanes": 16}, instruction_set="avx2"),
            self.with_changes(kernel="stats", thresholds={"layout": "blocks"}, parameters={}, kernel_layout="rows")
            | {"kernel_layout": "rows", "parameters": {"column_lanes": 8}},
            build=build(),
        )
        header = tuned.header(self.path, entries, build())
        rows = re.findall(r"^HBN_TUNED_\w+\(.*\)$", header, re.MULTILINE)
        self.assertEqual(
            rows[:3],
            [
                "HBN_TUNED_ENTRY(forward_training, float32, rows, false, true, 32, 63, 256, 511, 2048, 4095, "
                '"GenuineIntel 6 207", 0, "x86.json:4", 1.12, {&Thresholds::nhwc_columns, 512})',
                "HBN_TUNED_KERNEL(forward_training, float32, rows, 0)",
                "HBN_TUNED_ENTRY(forward_training, float32, rows, false, true, 1, 1, 1, 99, 1, 99, "
                '"GenuineIntel 6 207", 0, "x86.json:47", 1.12, {&Thresholds::nhwc_columns, 512})',
            ],
        )
        self.assertIn("{&Thresholds::layout, 2}", rows[-2])
        self.assertEqual(len(rows), 8)
        # What is compiled once serves two entries.
        self.assertEqual(
            tuned.kernel_list(entries, build()).splitlines(),
            [
                "forward_training float32 rows 0 avx512 row_lanes=32",
                "forward_training bfloat16 rows 2 avx2 row_lanes=16",
                "stats float32 rows 3 avx512 column_lanes=8",
            ],
        )
        # Builds of few kernels, or instruction sets, take the entries that they have kernels for.
        few = build("HBN_BUILT_KERNEL(stats, float32, strided)\n")
        self.assertEqual(tuned.kernel_list(entries, few).splitlines(), ["stats float32 rows 3 avx512 column_lanes=8"])
        self.assertEqual(tuned.header(self.path, entries, few).count("\nHBN_TUNED_ENTRY"), 1)
        one_set = build(built_sets=["avx2"])
        self.assertEqual(tuned.header(self.path, entries, one_set).count("\nHBN_TUNED_ENTRY"), 1)
        self.assertIn('"GenuineIntel 6 207", 0, ', tuned.header(self.path, entries, one_set))

    def test_the_command(self):
        self.load(ENTRY)
        command = [sys.executable, ROOT / "cmake" / "tuned.py", self.path]
        self.assertEqual(subprocess.run(command, check=False).returncode, 0)
        self.errors(self.with_changes(threads=0))
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"^x86.json:\d+: entries\[0\].threads: expected 1 or more, got 0\n$")


if __name__ == "__main__":
    unittest.main()
