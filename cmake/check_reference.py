"""Fails where doxygen's XML has something public without a description that doxygen itself doesn't warn of:
an enumerator, a file, a namespace, a defaulted constructor.

usage: check_reference.py XML_FOLDER
"""

import pathlib
import sys
from xml.etree import ElementTree

COMPOUNDS = ("file", "namespace", "class", "struct")
PRIVATE = ("private", "package")


def is_documented(element):
    return any("".join(element.find(kind).itertext()).strip()
               for kind in ("briefdescription", "detaileddescription"))


def undocumented(compound):
    """Names of what in a compound, itself included, has no description."""
    name = compound.findtext("compoundname")
    if not is_documented(compound):
        yield name
    for member in compound.iter("memberdef"):
        if member.get("prot") in PRIVATE:
            continue
        for element in [member, *member.findall("enumvalue")]:
            if not is_documented(element):
                yield f"{name}: {element.findtext('name')}{element.findtext('argsstring', '')}"


def main(folder):
    compounds = [compound for path in sorted(pathlib.Path(folder).glob("*.xml"))
                 for compound in ElementTree.parse(path).iter("compounddef")
                 if compound.get("kind") in COMPOUNDS and compound.get("prot") not in PRIVATE
                 and not compound.findtext("compoundname").endswith(".md")
                 and compound.find("location").get("file") != "[generated]"]  # std, of base classes
    missing = [name for compound in compounds for name in undocumented(compound)]
    for name in missing:
        print(f"{name} is not documented", file=sys.stderr)
    sys.exit(bool(missing) or not compounds)


if __name__ == "__main__":
    main(*sys.argv[1:])
