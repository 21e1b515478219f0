"""What the tuner knows, in one SQLite file.

Each statement is committed before the next step, and what was finished is not done again: the tuner may be killed at
any time. Optuna's studies are made of it (search.py).
"""

import json
import pathlib
import sqlite3
import time
from typing import Any

from .cells import Cell, Shape
from .spaces import Candidate

SCHEMA = """
CREATE TABLE IF NOT EXISTS cells (
    id INTEGER PRIMARY KEY,
    kernel TEXT, dtype TEXT, layout TEXT, n INTEGER, c INTEGER, h INTEGER, w INTEGER, threads INTEGER,
    cpu TEXT, instruction_set TEXT,
    build TEXT,              -- fingerprint of the generators and tables
    state TEXT,              -- new, searching, final (measured again), done or failed
    why TEXT,                -- it failed, or nothing was kept
    spent REAL,              -- seconds
    space INTEGER,           -- number of candidates
    kernel_layout TEXT,      -- that the default takes
    default_seconds REAL,
    bound_seconds REAL,      -- of moving the compulsory bytes, where something was found and there is such a bound
    finalists TEXT,          -- JSON: candidates' ids
    result TEXT,             -- JSON: what search.py and classes.py found
    UNIQUE (kernel, dtype, layout, n, c, h, w, threads, cpu, instruction_set, build));
CREATE TABLE IF NOT EXISTS candidates (
    id INTEGER PRIMARY KEY,
    cell INTEGER REFERENCES cells,
    key TEXT,                -- kernel layout, thresholds and parameters
    kernel_layout TEXT,
    thresholds TEXT,         -- JSON: those that differ from the default
    parameters TEXT,         -- likewise
    state TEXT,              -- new; then one of measured, slow (after a short round), same (as another one), failed
    why TEXT,                -- it failed, or which it is the same as
    code TEXT,               -- the same for the same instructions; empty for the library's own kernel
    path TEXT,               -- of the compiled kernel
    effect TEXT,             -- how its thresholds make the engine see the tensors, where the worker tells
    compile_seconds REAL,
    worst REAL,              -- share of the bound on errors that its results used
    ratio REAL,              -- the default's time / its time, the best estimate so far
    created REAL, finished REAL,
    UNIQUE (cell, key));
CREATE TABLE IF NOT EXISTS measurements (
    id INTEGER PRIMARY KEY,
    candidate INTEGER REFERENCES candidates,
    stage TEXT,              -- short, long or final
    process INTEGER,         -- of the final ones: which fresh worker
    repeat INTEGER,          -- and which time in it
    seconds REAL,            -- median of rounds
    default_seconds REAL,    -- of the default in the same rounds
    ratio REAL,              -- median of the rounds' ratios
    rounds INTEGER,
    bound REAL,              -- the time of moving the compulsory bytes / the default's, where there is such a bound
    time REAL);
CREATE INDEX IF NOT EXISTS measurements_candidate ON measurements (candidate);
CREATE TABLE IF NOT EXISTS class_measurements (
    id INTEGER PRIMARY KEY,
    candidate INTEGER REFERENCES candidates,
    n INTEGER, c INTEGER, h INTEGER, w INTEGER, threads INTEGER,
    process INTEGER, repeat INTEGER,
    seconds REAL,            -- median of rounds
    default_seconds REAL,    -- of the default in the same rounds
    ratio REAL,              -- median of the rounds' ratios; 0 where it crashed or was wrong
    default_ratio REAL,      -- the same of the default beside itself
    why TEXT,                -- there are no times
    time REAL);
CREATE INDEX IF NOT EXISTS class_measurements_candidate ON class_measurements (candidate);
"""

FINISHED = ("measured", "slow", "same", "failed")


class Store:
    """The file, open."""

    def __init__(self, path: pathlib.Path):
        """Makes it where there is none."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.connection = sqlite3.connect(path, timeout=60, isolation_level=None)
        self.connection.row_factory = sqlite3.Row
        # What was committed outlives the program's death; a commit need not wait for the disk.
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = NORMAL")
        self.connection.executescript(SCHEMA)

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """All that a query finds."""
        return self.connection.execute(query, values).fetchall()

    def update(self, table: str, row: int, **columns: Any) -> None:
        """Changes a row."""
        names = ", ".join(f"{name} = ?" for name in columns)
        self.connection.execute(f"UPDATE {table} SET {names} WHERE id = ?", [*columns.values(), row])

    def cell(self, cell: Cell, cpu: str, instruction_set: str, build: str) -> sqlite3.Row:
        """The cell's row, made where there is none."""
        columns = {
            "kernel": cell.kernel, "dtype": cell.dtype, "layout": cell.layout,
            **dict(zip("nchw", cell.shape, strict=True)), "threads": cell.threads,
            "cpu": cpu, "instruction_set": instruction_set, "build": build,
        }  # fmt: skip
        names, marks = ", ".join(columns), ", ".join("?" * len(columns))
        self.connection.execute(
            f"INSERT OR IGNORE INTO cells ({names}, state, spent) VALUES ({marks}, 'new', 0)", list(columns.values())
        )
        where = " AND ".join(f"{name} = ?" for name in columns)
        return self.rows(f"SELECT * FROM cells WHERE {where}", *columns.values())[0]

    def cell_row(self, row: int) -> sqlite3.Row:
        """The same by its id."""
        return self.rows("SELECT * FROM cells WHERE id = ?", row)[0]

    def candidates(self, cell: int) -> list[sqlite3.Row]:
        """All of a cell, in the order in which they came."""
        return self.rows("SELECT * FROM candidates WHERE cell = ? ORDER BY id", cell)

    def tried(self, cell: int) -> int:
        """How many of a cell are finished."""
        return self.rows("SELECT COUNT(*) FROM candidates WHERE cell = ? AND state != 'new'", cell)[0][0]

    def candidate(self, row: int) -> sqlite3.Row:
        """One."""
        return self.rows("SELECT * FROM candidates WHERE id = ?", row)[0]

    def add_candidate(self, cell: int, candidate: Candidate) -> tuple[sqlite3.Row, bool]:
        """The candidate's row, and whether it is new."""
        added = self.connection.execute(
            "INSERT OR IGNORE INTO candidates (cell, key, kernel_layout, thresholds, parameters, state, created)"
            " VALUES (?, ?, ?, ?, ?, 'new', ?)",
            [
                cell,
                candidate.key(),
                candidate.kernel_layout,
                json.dumps(dict(candidate.thresholds)),
                json.dumps(dict(candidate.parameters)),
                time.time(),
            ],
        )
        row = self.rows("SELECT * FROM candidates WHERE cell = ? AND key = ?", cell, candidate.key())[0]
        return row, added.rowcount > 0

    def finish_candidate(self, row: int, state: str, **columns: Any) -> None:
        """Says what became of it."""
        self.update("candidates", row, state=state, finished=time.time(), **columns)

    def add_measurement(self, candidate: int, stage: str, process: int = 0, repeat: int = 0, **columns: Any) -> None:
        """Keeps what one measurement gave."""
        self._add("measurements", candidate=candidate, stage=stage, process=process, repeat=repeat, **columns)

    def add_class_measurement(self, candidate: int, shape: Shape, **columns: Any) -> None:
        """The same at a shape of its class (classes.py)."""
        self._add("class_measurements", candidate=candidate, **dict(zip("nchw", shape, strict=True)), **columns)

    def _add(self, table: str, **columns: Any) -> None:
        columns["time"] = time.time()
        names, marks = ", ".join(columns), ", ".join("?" * len(columns))
        self.connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(columns.values()))

    def forget_finals(self, cell: int) -> None:
        """The search goes on, and its last measurements will be others."""
        self.connection.execute(
            "DELETE FROM measurements WHERE stage = 'final' AND candidate IN "
            "(SELECT id FROM candidates WHERE cell = ?)",
            [cell],
        )

    def measurements(self, candidate: int, stage: str) -> list[sqlite3.Row]:
        """Those of a candidate and stage, in order."""
        return self.rows("SELECT * FROM measurements WHERE candidate = ? AND stage = ? ORDER BY id", candidate, stage)

    def class_measurements(self, candidate: int) -> list[sqlite3.Row]:
        """Those of a candidate at shapes of its class, in order."""
        return self.rows("SELECT * FROM class_measurements WHERE candidate = ? ORDER BY id", candidate)


def candidate_of(row: sqlite3.Row) -> Candidate:
    """What a row of candidates stands for."""
    thresholds, parameters = json.loads(row["thresholds"]), json.loads(row["parameters"])
    return Candidate(row["kernel_layout"], tuple(sorted(thresholds.items())), tuple(sorted(parameters.items())))


def cell_of(row: sqlite3.Row) -> Cell:
    """What a row of cells stands for."""
    shape = (row["n"], row["c"], row["h"], row["w"])
    return Cell(row["kernel"], row["dtype"], row["layout"], shape, row["threads"])
