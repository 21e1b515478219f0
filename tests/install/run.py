"""Installs hbn in every way it can be had and builds and runs programs in C and C++ with each. Run by
`make test-install`."""

import argparse
import contextlib
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONSUMER = ROOT / "tests" / "install" / "consumer"
CMAKE = pathlib.Path(sys.executable).parent / "cmake"

# Nothing of this build leads to Halide, to the virtual environment or to an hbn installed before.
# What decides on compilers' flags stays, or `make install` would compile everything anew.
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LC_ALL": "C",
    **{name: os.environ[name] for name in ("CI", "WERROR") if name in os.environ},
}
NOBODY = 65534


class Problem(Exception):
    """Why a case fails."""


class Skipped(Exception):
    """Why a case can't run here."""


def run(*command: object, environment: dict[str, object] | None = None, user: int | None = None,
        fails: bool = False) -> str:
    """What a command prints; a Problem if it fails, or if it should and doesn't."""
    result = subprocess.run([str(word) for word in command], text=True, check=False, timeout=1200, umask=0o022,
                            env=ENVIRONMENT | {name: str(value) for name, value in (environment or {}).items()},
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            **({} if user is None else {"user": user, "group": user, "extra_groups": []}))
    if (result.returncode != 0) != fails:
        raise Problem(f"{' '.join(map(str, command))}\n{result.stdout}exit status {result.returncode}")
    return result.stdout


def expect(condition: object, text: str) -> None:
    """A Problem unless that holds."""
    if not condition:
        raise Problem(text)


def read_cache(folder: pathlib.Path) -> dict[str, str]:
    """CMake's variables of a build folder."""
    lines = (folder / "CMakeCache.txt").read_text().splitlines()
    return {match[1]: match[2] for line in lines if (match := re.match(r"([\w.-]+):\w+=(.*)", line))}


class Cases:
    """Each method that begins with test_ is a case. What several need is made once, in a folder of its own."""

    def __init__(self, build: pathlib.Path, packages: pathlib.Path, folder: pathlib.Path) -> None:
        self.build = build
        self.folder = folder
        self.cache = read_cache(build)
        self.version = self.cache["CMAKE_PROJECT_VERSION"]
        self.tar_gz, self.deb = (self.one_package(packages, name) for name in (
            f"hbn-{self.version}-*.tar.gz", f"libhbn-dev_{self.version}_*.deb"))

    @staticmethod
    def one_package(packages: pathlib.Path, pattern: str) -> pathlib.Path:
        """The newest of that name: a build for another processor may lie beside it."""
        found = sorted(packages.glob(pattern), key=lambda path: path.stat().st_mtime)
        if not found:
            sys.exit(f"{packages} has no {pattern}: run `make package` first")
        return found[-1]

    @functools.cached_property
    def installed(self) -> pathlib.Path:
        """A prefix."""
        prefix = self.folder / "installed"
        run(CMAKE, "--install", self.build, "--prefix", prefix)
        return prefix

    @functools.cached_property
    def moved(self) -> pathlib.Path:
        """A prefix that lies elsewhere than it was installed, with a space in its name."""
        before, after = self.folder / "before", self.folder / "moved" / "to here"
        run(CMAKE, "--install", self.build, "--prefix", before)
        after.parent.mkdir()
        before.rename(after)
        return after

    @functools.cached_property
    def unpacked(self) -> pathlib.Path:
        """The .tar.gz's one folder."""
        folder = self.folder / "unpacked"
        folder.mkdir()
        run("tar", "-xzf", self.tar_gz, "-C", folder)
        expected = self.tar_gz.name.removesuffix(".tar.gz")
        names = [path.name for path in folder.iterdir()]
        expect(names == [expected], f"{self.tar_gz.name} has {names} instead of {expected}")
        return folder / expected

    @functools.cached_property
    def debian_root(self) -> pathlib.Path:
        """A scratch system with the .deb, installed by this user."""
        return self.install_deb("debian", None)

    def install_deb(self, name: str, user: int | None) -> pathlib.Path:
        """dpkg sees what this machine has installed, so that dependencies count, but changes only the folder."""
        root = self.folder / name
        database = root / "var" / "lib" / "dpkg"
        for folder in ("info", "updates", "triggers"):
            (database / folder).mkdir(parents=True)
        shutil.copy("/var/lib/dpkg/status", database)
        package = shutil.copy(self.deb, root)
        if user is not None:
            for path in (root, *root.rglob("*")):
                os.chown(path, user, user)
        command = ["dpkg", f"--root={root}", f"--log={root}/dpkg.log"]
        if user is not None or os.geteuid() != 0:
            command.append("--force-not-root")
        environment = {"PATH": "/usr/local/sbin:/usr/sbin:/sbin:" + ENVIRONMENT["PATH"]}
        run(*command, "--install", package, environment=environment, user=user)
        status = run("dpkg-query", f"--admindir={database}", "--show",
                     "--showformat=${db:Status-Status} ${Version}", "libhbn-dev")
        expect(status == f"installed {self.version}", f"libhbn-dev is {status}")
        return root

    def configure(self, name: str, *options: str, fails: bool = False) -> tuple[pathlib.Path, str]:
        """The consumer's build folder, configured, and what CMake printed."""
        folder = self.folder / name
        return folder, run(CMAKE, "-S", CONSUMER, "-B", folder, *options, fails=fails)

    def build_and_run(self, folder: pathlib.Path, programs: tuple[str, ...]) -> None:
        """Programs compare what hbn computes with what it should."""
        run(CMAKE, "--build", folder, "--parallel", "2")
        for program in programs:
            self.run_program(folder / program)

    def run_program(self, program: pathlib.Path) -> None:
        """It says which hbn it has."""
        printed = run(program)
        expect(f"hbn {self.version} in C" in printed and printed.endswith(": 0 failures\n"), printed)

    def consume_by_cmake(self, name: str, prefix: pathlib.Path, *options: str,
                         programs: tuple[str, ...] = ("consumer", "consumer_c")) -> None:
        """Builds and runs with find_package(hbn), which must find that one, and nothing of Halide."""
        folder, _ = self.configure(name, f"-DCMAKE_PREFIX_PATH={prefix}", *options)
        found = read_cache(folder)["hbn_DIR"]
        expect(pathlib.Path(found).is_relative_to(prefix), f"found {found} instead of {prefix}")
        text = (folder / "CMakeCache.txt").read_text().replace(str(self.folder), "").replace(str(ROOT), "")
        expect("halide" not in text.lower(), f"{folder}/CMakeCache.txt names Halide")
        self.build_and_run(folder, programs)

    def consume_by_pkg_config(self, name: str, environment: dict[str, object]) -> None:
        """g++ builds the program in C++ and gcc the one in C, with what pkg-config prints and nothing else."""
        folder = self.folder / name
        folder.mkdir()
        expect(run("pkg-config", "--modversion", "hbn", environment=environment).strip() == self.version, "version")
        for compiler, standard, source in (("g++", "c++17", "consumer.cpp"), ("gcc", "c99", "consumer.c")):
            program = folder / source.replace(".", "_")
            # As a Makefile's rule has it: what pkg-config prints is for the shell.
            run("sh", "-ec", f'flags=$(pkg-config --cflags --libs hbn); eval "{compiler} -std={standard} -Wall -Wextra '
                f'-Werror -pedantic \\"$1\\" $flags -o \\"$2\\""', "sh", CONSUMER / source, program,
                environment=environment)
            self.run_program(program)

    def expect_no_machine_paths(self, prefix: pathlib.Path) -> None:
        """Not in texts, nor in the library and hbn-info."""
        paths = {str(path) for path in (ROOT, ROOT.resolve(), self.build, self.folder, pathlib.Path(sys.prefix),
                                        pathlib.Path(self.cache["HalideHelpers_DIR"]).parents[2])}
        files = [path for path in prefix.rglob("*") if path.is_file()]
        expect(any(path.name == "libhbn.a" for path in files), f"{prefix} has no libhbn.a")
        for file in files:
            content = file.read_bytes()
            for path in paths:
                expect(path.encode() not in content, f"{file} names {path}")
            if b"\0" not in content:
                expect("halide_" not in content.decode().lower(), f"{file} names something of Halide's")

    def test_find_package(self) -> None:
        self.consume_by_cmake("find_package", self.installed)
        printed = run(self.installed / "bin" / "hbn-info")
        expect(printed.startswith(f"hbn {self.version}\n"), printed)

    def test_find_package_moved(self) -> None:
        self.consume_by_cmake("find_package_moved", self.moved)

    def test_find_package_c_only(self) -> None:
        self.consume_by_cmake("find_package_c_only", self.moved, "-DCONSUMER_LANGUAGES=C", programs=("consumer_c",))

    def test_find_package_version(self) -> None:
        major, minor, _ = map(int, self.version.split("."))
        prefix = f"-DCMAKE_PREFIX_PATH={self.installed}"
        for wanted, accepted in ((f"{major}.{minor}", True), (self.version, True), (f"{major}.{minor + 1}", False),
                                 (f"{major + 1}.0", False)):
            _, printed = self.configure(f"version-{wanted}", prefix, f"-DHBN_WANTED_VERSION={wanted}", fails=not accepted)
            expect(accepted or f"version: {self.version}" in printed, printed)

    def test_pkg_config_moved(self) -> None:
        self.consume_by_pkg_config("pkg_config_moved", {"PKG_CONFIG_PATH": self.moved / "lib" / "pkgconfig"})

    def test_make_install(self) -> None:
        system = self.folder / "make_install"
        run("make", "-C", ROOT, "install", "PREFIX=/opt/hbn", f"DESTDIR={system}")
        self.consume_by_cmake("find_package_make_install", system / "opt" / "hbn")
        expect([path.name for path in system.iterdir()] == ["opt"], f"{system} has more than /opt")

    def test_add_subdirectory(self) -> None:
        kernels = self.cache.get("HBN_KERNELS_FROM") or self.build
        folder, _ = self.configure(
            "add_subdirectory", f"-DHBN_SOURCE={ROOT}", f"-DHBN_KERNELS_FROM={kernels}", "-DCMAKE_CXX_STANDARD=20",
            "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", f"-DHalideHelpers_DIR={self.cache['HalideHelpers_DIR']}")
        self.build_and_run(folder, ("consumer", "consumer_c"))
        # hbn's own settings stay its own, and the parent's are not overruled.
        commands = {pathlib.Path(entry["file"]).name: entry["command"]
                    for entry in json.loads((folder / "compile_commands.json").read_text())}
        for word in ("-Wall", "-Werror", "-O3", "-DNDEBUG", "-std=c++17", "-std=gnu++17", "halide"):
            expect(f" {word}" not in commands["consumer.cpp"], f"{word} in {commands['consumer.cpp']}")
        for word in ("-Werror", "-O3"):
            expect(f" {word}" not in commands["threads.cpp"], f"{word} in {commands['threads.cpp']}")
        expect("quickstart.cpp" not in commands, "examples are built")
        expect(not list(folder.rglob("hbn-info")), "hbn-info is built")
        prefix = self.folder / "add_subdirectory_installed"
        run(CMAKE, "--install", folder, "--prefix", prefix)
        files = sorted(path.name for path in prefix.rglob("*") if path.is_file())
        expect(files == ["consumer", "consumer_c"], f"the parent installs {files}")

    def test_add_subdirectory_installed(self) -> None:
        kernels = self.cache.get("HBN_KERNELS_FROM") or self.build
        folder, _ = self.configure(
            "add_subdirectory_install", f"-DHBN_SOURCE={ROOT}", f"-DHBN_KERNELS_FROM={kernels}", "-DHBN_INSTALL=ON",
            f"-DHalideHelpers_DIR={self.cache['HalideHelpers_DIR']}", "-DCMAKE_BUILD_TYPE=Debug")
        run(CMAKE, "--build", folder, "--parallel", "2")
        prefix = self.folder / "add_subdirectory_install_prefix"
        run(CMAKE, "--install", folder, "--prefix", prefix)
        self.consume_by_cmake("find_package_add_subdirectory", prefix)

    def test_add_subdirectory_without_halide(self) -> None:
        _, printed = self.configure("add_subdirectory_without_halide", f"-DHBN_SOURCE={ROOT}",
                                    "-DCMAKE_DISABLE_FIND_PACKAGE_HalideHelpers=ON", fails=True)
        # CMake breaks lines.
        for text in ("pip install halide", "-DHalide_DIR=", "-DHalideHelpers_DIR="):
            expect(text in " ".join(printed.split()), printed)

    def test_tar_gz(self) -> None:
        self.consume_by_cmake("find_package_tar_gz", self.unpacked)
        self.consume_by_pkg_config("pkg_config_tar_gz", {"PKG_CONFIG_PATH": self.unpacked / "lib" / "pkgconfig"})

    def test_deb(self) -> None:
        root = self.debian_root
        self.consume_by_cmake("find_package_deb", root / "usr")
        self.consume_by_pkg_config("pkg_config_deb", {"PKG_CONFIG_SYSROOT_DIR": root,
                                                      "PKG_CONFIG_LIBDIR": root / "usr" / "lib" / "pkgconfig"})

    def test_deb_not_root(self) -> None:
        if os.geteuid() != 0:
            raise Skipped("test_deb is this already")
        if not all(path.stat().st_mode & 1 for path in self.folder.parents):
            raise Skipped(f"other users can't reach {self.folder}")
        self.consume_by_cmake("find_package_deb_not_root", self.install_deb("debian_not_root", NOBODY) / "usr")

    def test_deb_contents(self) -> None:
        fields = dict(re.findall(r"^ (\S+): (.*)$", run("dpkg-deb", "--info", self.deb), re.MULTILINE))
        for field, expected in (("Package", "libhbn-dev"), ("Version", self.version), ("Section", "libdevel"),
                                ("Architecture", run("dpkg", "--print-architecture").strip())):
            expect(fields.get(field) == expected, f"{field} is {fields.get(field)} instead of {expected}")
        for field in ("Maintainer", "Description", "Installed-Size"):
            expect(fields.get(field), f"{field} is missing")
        for package in ("libc6-dev", "g++ | c++-compiler", "libstdc++6 (>= "):
            expect(package in fields["Depends"], f"Depends lacks {package}: {fields['Depends']}")
        names = set()
        for line in run("dpkg-deb", "--contents", self.deb).splitlines():
            mode, owner, *_, name = line.split()
            expected_mode = "drwxr-xr-x" if name.endswith("/") else "-rwxr-xr-x" if "/bin/" in name else "-rw-r--r--"
            expect((mode, owner) == (expected_mode, "root/root"), line)
            names.add(name)
        for name in ("share/doc/libhbn-dev/copyright", "share/doc/libhbn-dev/changelog.gz", "bin/hbn-info",
                     "lib/libhbn.a", "include/hbn/hbn.h"):
            expect(f"./usr/{name}" in names, f"{name} is missing")
        run("sh", "-ec", 'cd "$1" && md5sum --quiet --check var/lib/dpkg/info/libhbn-dev.md5sums', "sh",
            self.debian_root)

    def test_headers(self) -> None:
        headers = sorted((self.installed / "include" / "hbn").iterdir())
        expect([path.name for path in headers] == sorted(path.name for path in (ROOT / "include/hbn").iterdir()),
               f"installed {headers}")
        strict = ("-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", "-I", self.installed / "include")
        source = self.folder / "header.c"
        for header in headers:
            # Twice, for the guard; and from a file, for in a header itself "#pragma once" is a warning.
            source.write_text(f"#include <hbn/{header.name}>\n" * 2)
            run("g++", "-std=c++17", "-x", "c++", *strict, source)
            if header.name == "hbn.h":
                run("gcc", "-std=c99", *strict, source)

    def test_no_machine_paths(self) -> None:
        for prefix in (self.installed, self.unpacked, self.debian_root / "usr"):
            self.expect_no_machine_paths(prefix)

    def test_license(self) -> None:
        for file in (self.installed / "share/doc/hbn/LICENSE", self.unpacked / "share/doc/hbn/LICENSE",
                     self.debian_root / "usr/share/doc/libhbn-dev/copyright"):
            expect(file.read_text() == (ROOT / "LICENSE").read_text(), f"{file} is not LICENSE")


def main() -> None:
    """Runs everything; fails if anything does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=pathlib.Path, required=True, help="a build folder, built")
    parser.add_argument("--packages", type=pathlib.Path, required=True, help="what `make package` made of it")
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="for all that is built; emptied first")
    parser.add_argument("--filter", default="", help="only tests whose names match")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    cases = Cases(arguments.build.resolve(), arguments.packages.resolve(), folder)

    passed, failed, skipped = 0, [], 0
    for name in [name.removeprefix("test_") for name in vars(Cases) if name.startswith("test_")]:
        if not re.search(arguments.filter, name):
            continue
        try:
            getattr(cases, f"test_{name}")()
        except (Problem, OSError, subprocess.SubprocessError) as problem:
            failed.append(name)
            print(f"FAILED  {name}\n{problem}", flush=True)
        except Skipped as reason:
            skipped += 1
            print(f"skipped {name}: {reason}", flush=True)
        else:
            passed += 1
            print(f"passed  {name}", flush=True)
    print(f"{passed} passed, {skipped} skipped, {len(failed)} failed{': ' if failed else ''}{', '.join(failed)}")
    sys.exit(bool(failed) or not passed)


if __name__ == "__main__":
    main()
