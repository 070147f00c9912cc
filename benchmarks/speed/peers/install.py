"""Makes the environment of those whom we are measured beside, apart from ours: they stand on other versions of pandas.

    python benchmarks/speed/peers/install.py              .peers in the checkout
    python benchmarks/speed/peers/install.py FOLDER       another folder

Some gigabytes and a few minutes. Run again, it mends what is missing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CPU_BUILD = "torch==2.13.0+cpu"


def main() -> None:
    """Makes the environment and installs what is pinned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=HERE.parent.parent.parent / ".peers")
    folder: Path = parser.parse_args().folder.absolute()
    if not (folder / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet"]
    cpu = subprocess.run([*pip, "install", CPU_BUILD], capture_output=True, text=True, check=False)
    if cpu.returncode:
        print(f"pip is offered no {CPU_BUILD} here: another build of it comes, some gigabytes more.", flush=True)
    for line in (["install", "--requirement", str(HERE / "requirements.txt")], ["check"]):
        if subprocess.run([*pip, *line], check=False).returncode:
            sys.exit(f"`pip {' '.join(line)}` did not go through in {folder}; pip says above what stood in the way.")
    print(f"The others are in {folder}.")


if __name__ == "__main__":
    main()
