"""Packs: folders with a static library, a header and a size report, for boards. `make pack` makes one.

table reads runtime/operations.def; functions says what functions there are, and binding which arguments each has;
targets, what there is a compiler for; request, what is asked for, and parameters, how it is scheduled; header and
wrapper write C; compiler calls generators and compilers; sizes measures; folder puts a pack together; programs builds
and emulates what is linked with one.
"""

from packs.compiler import Compiler
from packs.folder import make
from packs.functions import FUNCTIONS
from packs.shell import Failure, run
from packs.sizes import Size
from packs.targets import TARGETS

__all__ = ["FUNCTIONS", "TARGETS", "Compiler", "Failure", "Size", "make", "run"]
