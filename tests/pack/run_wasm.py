"""Runs a WebAssembly program, as its one argument names it, in wasmtime; exits with the program's status."""

import sys

import wasmtime


def main() -> None:
    """Gives it this process's output and nothing else."""
    engine = wasmtime.Engine()
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    store = wasmtime.Store(engine)
    wasi = wasmtime.WasiConfig()
    wasi.argv = sys.argv[1:]
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    store.set_wasi(wasi)
    instance = linker.instantiate(store, wasmtime.Module.from_file(engine, sys.argv[1]))
    try:
        instance.exports(store)["_start"](store)
    except wasmtime.ExitTrap as trap:
        sys.exit(trap.code)


if __name__ == "__main__":
    main()
