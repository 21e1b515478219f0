"""What tune_worker calls the default has no tuned entries, though its library has one for the cell.

python tests/tuned/worker_test.py WORKER, one that is linked with the library of sample.json, as on its processor.
"""

import json
import subprocess
import sys

# An entry has stats take nchw_few_channels there.
CELL = "cell stats bfloat16 nchw 2 20 10 10 1"
LINES = [CELL, "view", "check -", "measure 0.001 -", CELL + " timing", "view layout=nchw_few_channels"]

done = subprocess.run(sys.argv[1], input="\n".join(LINES), capture_output=True, text=True, check=True)
answers = [json.loads(line) for line in done.stdout.splitlines()]
assert len(answers) == len(LINES) and not any("error" in answer for answer in answers), answers
layouts = [answers[0], answers[1]["view"]["layout"], answers[2], answers[4]]
layouts = [layout if isinstance(layout, str) else layout["kernel_layout"] for layout in layouts]
assert layouts == ["nchw"] * 4, layouts
assert answers[5]["view"]["layout"] == "nchw_few_channels", answers[5]  # it could
