"""Makes a pack: a folder with a static library, a header and a size report, for a board. See `make pack`."""

import argparse

import packs
from packs.request import DTYPES
from packs.sizes import report


def main() -> None:
    """Parses what `make pack` was given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", choices=packs.TARGETS, required=True)
    parser.add_argument("--ops", default="forward_inference", help=f"some of {','.join(packs.FUNCTIONS)}")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--layout", choices=("nchw", "nhwc"), default="nchw")
    parser.add_argument("--shape", default="", help="N,C,H,W; leave out what only the call will know")
    parser.add_argument("--threads", choices=("none", "hook"), default="none")
    parser.add_argument("--parameters", default="", help="of schedules: lanes=16 forward_training:map_unroll=4,lanes=8")
    parser.add_argument("--out", required=True)
    parser.add_argument("--generators", required=True, help="the program that emits kernels")
    parser.add_argument("--halide-include", required=True)
    arguments = parser.parse_args()
    print(report(packs.make(**vars(arguments))))
    print(f"Wrote {arguments.out}")


if __name__ == "__main__":
    main()
