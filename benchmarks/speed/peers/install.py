"""Creates the environment of the peers, separate from ours because they need other versions of pandas.

    python benchmarks/speed/peers/install.py              .peers in the checkout
    python benchmarks/speed/peers/install.py FOLDER       another folder

Takes some gigabytes and a few minutes. A second run installs what is missing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CPU_BUILD = "torch==2.13.0+cpu"


def main() -> None:
    """Creates the environment and installs the pinned packages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=HERE.parent.parent.parent / ".peers")
    folder: Path = parser.parse_args().folder.absolute()
    if not (folder / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet"]
    cpu_install = subprocess.run([*pip, "install", CPU_BUILD], capture_output=True, text=True, check=False)
    if cpu_install.returncode:
        print(
            f"pip found no {CPU_BUILD}: another build will be installed, which takes some gigabytes more.", flush=True
        )
    for arguments in (["install", "--requirement", str(HERE / "requirements.txt")], ["check"]):
        if subprocess.run([*pip, *arguments], check=False).returncode:
            sys.exit(
                f"Expected `pip {' '.join(arguments)}` to succeed in {folder}; it failed. See the output of pip above."
            )
    print(f"The environment of the peers is in {folder}.")


if __name__ == "__main__":
    main()
