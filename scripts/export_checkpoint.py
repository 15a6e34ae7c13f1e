"""Write the weights of a run before quantisation as a checkpoint of the record scripts (final_model.pt)."""

import argparse
import sys
from pathlib import Path

from pgolf.errors import UserError
from pgolf.interop import checkpoint
from pgolf.train import weights


def main() -> int:
    """Read RUN/model.safetensors, write FILE."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("file", type=Path, help="the checkpoint to write")
    parser.add_argument("--banked", action="store_true", help="matrices in four banks, as the scripts from PR 1530 on")
    arguments = parser.parse_args()
    try:
        if arguments.file.exists():
            raise UserError(f"{arguments.file} is there already: choose another name, or move it away.")
        checkpoint.write(arguments.file, weights.load(arguments.run / "model.safetensors"), arguments.banked)
    except UserError as error:
        print(f"export: {error}", file=sys.stderr)
        return error.exit_status
    print(f"{arguments.file}: {arguments.file.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
